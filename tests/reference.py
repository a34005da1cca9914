"""Hook-free references: plain forward passes written out, weights without a head, greedy decoding without a cache.

Nothing here uses Chainwright, so that what it measures is compared with something independent of it.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

# largest difference allowed, relative to the largest number of what is expected
TOLERANCE = {torch.float64: 1e-10, torch.float32: 2e-5, torch.bfloat16: 3e-2}

_LLAMA_LIKE = ("model.layers.{}", "self_attn", "o_proj")
_PLACES = {
    "gpt2": ("transformer.h.{}", "attn", "c_proj"),
    "gpt_neox": ("gpt_neox.layers.{}", "attention", "dense"),
}


def assert_close(got: Tensor, want: Tensor, what: str = "tensors", tolerance: float | None = None) -> None:
    """Fail, naming the largest and the mean difference, unless both are equal up to the tolerance of their type."""
    assert got.shape == want.shape, f"{what}: shape {list(got.shape)}, expected {list(want.shape)}"
    room = TOLERANCE[want.dtype] if tolerance is None else tolerance
    off = (got.double() - want.double()).abs()
    largest = max(1.0, float(want.abs().max()))
    assert float(off.max()) <= room * largest, (
        f"{what}: max difference {float(off.max()):.3g}, mean {float(off.mean()):.3g}, "
        f"allowed {room:.1g} of {largest:.3g}"
    )


def assert_equal(got: Tensor, want: Tensor, what: str = "tensors") -> None:
    """Fail unless both are equal bit for bit."""
    off = (got.double() - want.double()).abs()
    assert torch.equal(got, want), f"{what}: max difference {float(off.max()):.3g}, mean {float(off.mean()):.3g}"


def block(model: PreTrainedModel, family: str, layer: int) -> nn.Module:
    """Return a block, by the name that its modelling file gives it."""
    return model.get_submodule(_PLACES.get(family, _LLAMA_LIKE)[0].format(layer))


def attention(model: PreTrainedModel, family: str, layer: int) -> nn.Module:
    """Return a block's attention module."""
    return block(model, family, layer).get_submodule(_PLACES.get(family, _LLAMA_LIKE)[1])


def out_proj(model: PreTrainedModel, family: str, layer: int) -> nn.Module:
    """Return a layer's output projection."""
    return attention(model, family, layer).get_submodule(_PLACES.get(family, _LLAMA_LIKE)[2])


def without_heads(model: PreTrainedModel, family: str, heads: Iterable[tuple[int, int]]) -> PreTrainedModel:
    """Return a copy whose output projections have no weights for these heads."""
    changed = copy.deepcopy(model)
    for layer, head in heads:
        projection = out_proj(changed, family, layer)
        weight = projection.weight.T if isinstance(projection, nn.Linear) else projection.weight  # (in, out)
        d_head = weight.shape[0] // model.config.num_attention_heads
        with torch.no_grad():
            weight[head * d_head : (head + 1) * d_head] = 0
    return changed


@torch.no_grad()
def greedy(model: PreTrainedModel, ids: Tensor, n_new: int) -> Tensor:
    """Return `n_new` greedy tokens after one row of ids `[1, T]`, each from a pass over everything before it."""
    for _ in range(n_new):
        chosen = model(input_ids=ids, use_cache=False).logits[:, -1].argmax(-1, keepdim=True)
        ids = torch.cat([ids, chosen], dim=1)
    return ids[0, -n_new:]


class Plain(NamedTuple):
    """What a written-out forward pass returns: z `[L, T, H, d]` and logits `[T, V]`."""

    z: Tensor
    logits: Tensor


def _attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Return z `[T, H, d]` of causal attention over `[T, H, d]`."""
    scores = torch.einsum("qhd,khd->hqk", q, k) / q.shape[-1] ** 0.5
    seen = torch.tril(torch.ones(scores.shape[-2:], dtype=torch.bool))
    return torch.einsum("hqk,khd->qhd", scores.masked_fill(~seen, -torch.inf).softmax(-1), v)


def _rms(x: Tensor, norm: nn.Module) -> Tensor:
    return norm.weight * x / (x.pow(2).mean(-1, keepdim=True) + norm.variance_epsilon).sqrt()


def _rotate(x: Tensor, base: float) -> Tensor:
    """Return `[T, H, d]` with the two halves of d turned by position."""
    n_tokens, _, d_head = x.shape
    frequency = base ** (-torch.arange(0, d_head, 2) / d_head)
    angle = torch.arange(n_tokens)[:, None, None] * frequency
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()], dim=-1)


@torch.no_grad()
def plain_llama(model: PreTrainedModel, ids: Tensor) -> Plain:
    """Return z and logits of one row in a Llama, Qwen2 or Qwen3 model, from its weights."""
    config, zs = model.config, []
    n_rep = config.num_attention_heads // config.num_key_value_heads
    x = model.model.embed_tokens.weight[ids]
    for layer in model.model.layers:
        attn, normed = layer.self_attn, _rms(x, layer.input_layernorm)
        q, k, v = (p(normed).unflatten(-1, (-1, attn.head_dim)) for p in (attn.q_proj, attn.k_proj, attn.v_proj))
        if hasattr(attn, "q_norm"):
            q, k = _rms(q, attn.q_norm), _rms(k, attn.k_norm)
        q, k = (_rotate(part, config.rope_parameters["rope_theta"]) for part in (q, k))
        zs.append(_attend(q, k.repeat_interleave(n_rep, 1), v.repeat_interleave(n_rep, 1)))
        x = x + attn.o_proj(zs[-1].flatten(-2))
        mlp, normed = layer.mlp, _rms(x, layer.post_attention_layernorm)
        x = x + mlp.down_proj(nn.functional.silu(mlp.gate_proj(normed)) * mlp.up_proj(normed))
    return Plain(torch.stack(zs), _rms(x, model.model.norm) @ model.lm_head.weight.T)


@torch.no_grad()
def plain_gpt2(model: PreTrainedModel, ids: Tensor) -> Plain:
    """Return z and logits of one row in a GPT-2 model, from its weights."""
    gpt, zs = model.transformer, []

    def norm(v: Tensor, module: nn.Module) -> Tensor:
        return nn.functional.layer_norm(v, v.shape[-1:], module.weight, module.bias, module.eps)

    x = gpt.wte.weight[ids] + gpt.wpe.weight[: len(ids)]
    for layer in gpt.h:
        attn = layer.attn
        q, k, v = (norm(x, layer.ln_1) @ attn.c_attn.weight + attn.c_attn.bias).chunk(3, dim=-1)
        q, k, v = (part.unflatten(-1, (attn.num_heads, -1)) for part in (q, k, v))
        zs.append(_attend(q, k, v))
        x = x + zs[-1].flatten(-2) @ attn.c_proj.weight + attn.c_proj.bias
        hidden = norm(x, layer.ln_2) @ layer.mlp.c_fc.weight + layer.mlp.c_fc.bias
        x = x + nn.functional.gelu(hidden, approximate="tanh") @ layer.mlp.c_proj.weight + layer.mlp.c_proj.bias
    return Plain(torch.stack(zs), norm(x, gpt.ln_f) @ model.lm_head.weight.T)
