"""The logit lens and answer-writing scores against passes written out by hand, from each model's weights."""

from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from chainwright._errors import BadInput
from chainwright.diagnose import LogitLens, answer_writing_scores, logit_lens
from families import FAMILIES, left_padded, random_ids, tiny
from reference import _attend, _rms, _rotate, assert_close, plain_gpt2, plain_llama

TOKENS = torch.tensor([5, 17, 40])
TOLERANCE = 2e-5  # nats, and shares of a probability
norms = pytest.mark.parametrize("norm", ["final", "frozen"])


class Stream(NamedTuple):
    """The residual stream at the last position, read by hand: `[L, D]` each; writes `[L, H, D]`."""

    pre: Tensor
    mid: Tensor
    post: Tensor
    writes: Tensor


def by_head(z: Tensor, weight: Tensor) -> Tensor:
    """Return each head's part of `z @ weight`: z `[H, d]`, weight `[H d, D]`."""
    return torch.einsum("hd,hdm->hm", z, weight.unflatten(0, z.shape))


def layer_norm(v: Tensor, module: nn.Module) -> Tensor:
    return nn.functional.layer_norm(v, v.shape[-1:], module.weight, module.bias, module.eps)


def llama_stream(model: PreTrainedModel, ids: Tensor) -> Stream:
    z = plain_llama(model, ids).z  # (layer, position, head, d)
    x, rows = model.model.embed_tokens.weight[ids], []
    for layer, z_layer in zip(model.model.layers, z, strict=True):
        mid = x + layer.self_attn.o_proj(z_layer.flatten(-2))
        mlp, normed = layer.mlp, _rms(mid, layer.post_attention_layernorm)
        post = mid + mlp.down_proj(nn.functional.silu(mlp.gate_proj(normed)) * mlp.up_proj(normed))
        rows.append((x[-1], mid[-1], post[-1], by_head(z_layer[-1], layer.self_attn.o_proj.weight.T)))
        x = post
    return Stream(*map(torch.stack, zip(*rows, strict=True)))


def gpt2_stream(model: PreTrainedModel, ids: Tensor) -> Stream:
    z, gpt, rows = plain_gpt2(model, ids).z, model.transformer, []
    x = gpt.wte.weight[ids] + gpt.wpe.weight[: len(ids)]
    for layer, z_layer in zip(gpt.h, z, strict=True):
        mid = x + z_layer.flatten(-2) @ layer.attn.c_proj.weight + layer.attn.c_proj.bias
        hidden = layer_norm(mid, layer.ln_2) @ layer.mlp.c_fc.weight + layer.mlp.c_fc.bias
        wide = nn.functional.gelu(hidden, approximate="tanh")
        post = mid + wide @ layer.mlp.c_proj.weight + layer.mlp.c_proj.bias
        rows.append((x[-1], mid[-1], post[-1], by_head(z_layer[-1], layer.attn.c_proj.weight)))
        x = post
    return Stream(*map(torch.stack, zip(*rows, strict=True)))


def neox_stream(model: PreTrainedModel, ids: Tensor) -> Stream:
    """Attention and MLP side by side; a quarter of each head is rotated."""
    rows, x = [], model.gpt_neox.embed_in.weight[ids]
    for layer in model.gpt_neox.layers:
        attn = layer.attention
        fused = attn.query_key_value(layer_norm(x, layer.input_layernorm)).unflatten(-1, (4, 3 * 16))
        q, k, v = fused.chunk(3, dim=-1)
        n_rotated = int(16 * model.config.rope_parameters["partial_rotary_factor"])
        q, k = (torch.cat([_rotate(part[..., :n_rotated], 10000.0), part[..., n_rotated:]], dim=-1) for part in (q, k))
        z = _attend(q, k, v)
        attn_out = attn.dense(z.flatten(-2))
        hidden = layer.mlp.dense_h_to_4h(layer_norm(x, layer.post_attention_layernorm))
        mid = x + attn_out
        post = mid + layer.mlp.dense_4h_to_h(nn.functional.gelu(hidden))
        rows.append((x[-1], mid[-1], post[-1], by_head(z[-1], attn.dense.weight.T)))
        x = post
    return Stream(*map(torch.stack, zip(*rows, strict=True)))


def _gemma_rms(v: Tensor, norm: nn.Module) -> Tensor:
    return v / (v.pow(2).mean(-1, keepdim=True) + norm.eps).sqrt() * (1 + norm.weight)


def _gemma_attention(layer: nn.Module, normed: Tensor, window: int | None) -> Tensor:
    """Return z: scores softcapped at 50, and a sliding window in every other layer."""
    attn = layer.self_attn
    q, k, v = (p(normed).unflatten(-1, (-1, 16)) for p in (attn.q_proj, attn.k_proj, attn.v_proj))
    q, k = _rotate(q, 10000.0), _rotate(k, 10000.0)
    k, v = k.repeat_interleave(2, 1), v.repeat_interleave(2, 1)
    scores = 50 * torch.tanh(torch.einsum("qhd,khd->hqk", q, k) / 16**0.5 / 50)
    seen = torch.ones(scores.shape[-2:]).tril()
    if window is not None:
        seen = seen - torch.ones_like(seen).tril(-window)
    return torch.einsum("hqk,khd->qhd", scores.masked_fill(seen == 0, -torch.inf).softmax(-1), v)


def gemma2_stream(model: PreTrainedModel, ids: Tensor) -> Stream:
    """Attention and MLP are normed before they are added; a head's part is taken at the scale of all together."""
    rows, x = [], model.model.embed_tokens.weight[ids] * 48**0.5
    for i, layer in enumerate(model.model.layers):
        is_sliding = model.config.layer_types[i] == "sliding_attention"
        z = _gemma_attention(layer, _gemma_rms(x, layer.input_layernorm), 6 if is_sliding else None)
        whole, norm = layer.self_attn.o_proj(z.flatten(-2)), layer.post_attention_layernorm
        mid = x + _gemma_rms(whole, norm)
        mlp, normed = layer.mlp, _gemma_rms(mid, layer.pre_feedforward_layernorm)
        wide = nn.functional.gelu(mlp.gate_proj(normed), approximate="tanh") * mlp.up_proj(normed)
        post = mid + _gemma_rms(mlp.down_proj(wide), layer.post_feedforward_layernorm)
        scale = (1 + norm.weight) / (whole[-1].pow(2).mean() + norm.eps).sqrt()
        rows.append((x[-1], mid[-1], post[-1], by_head(z[-1], layer.self_attn.o_proj.weight.T) * scale))
        x = post
    return Stream(*map(torch.stack, zip(*rows, strict=True)))


STREAMS = {"llama": llama_stream, "gpt2": gpt2_stream, "gpt_neox": neox_stream, "gemma2": gemma2_stream}


def log_lens(model: PreTrainedModel, family: str, v: Tensor, last: Tensor, norm: str) -> Tensor:
    """Return `log softmax(unembed(final_norm(v)))`, the scale of `v` itself or of the last layer's output."""
    source = v if norm == "final" else last
    if family in ("gpt2", "gpt_neox"):
        final = model.transformer.ln_f if family == "gpt2" else model.gpt_neox.final_layer_norm
        centred = v - v.mean(-1, keepdim=True)
        normed = centred / (source.var(-1, keepdim=True, unbiased=False) + final.eps).sqrt()
        normed = normed * final.weight + final.bias
    else:
        final = model.model.norm
        eps = final.eps if family == "gemma2" else final.variance_epsilon
        weight = 1 + final.weight if family == "gemma2" else final.weight
        normed = v / (source.pow(2).mean(-1, keepdim=True) + eps).sqrt() * weight
    logits = normed @ model.get_output_embeddings().weight.T
    return (30 * torch.tanh(logits / 30) if family == "gemma2" else logits).log_softmax(-1)


def shaken(family: str) -> PreTrainedModel:
    """Return a model whose norms have weights and biases other than one and zero."""
    # with the usual width a quarter of a head of GPT-NeoX would be an odd number
    model = tiny(family, **({"hidden_size": 64} if family == "gpt_neox" else {}))
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() == 1 and ("norm" in name or "ln_" in name):
                weight.add_(0.3 * torch.randn(weight.shape, generator=generator))
    return model


@pytest.mark.parametrize("family", STREAMS)
@norms
@torch.no_grad()
def test_lens_and_scores_equal_passes_written_by_hand(family: str, norm: str) -> None:
    model, rows = shaken(family), [random_ids(1, n, seed=n)[0] for n in (11, 8, 1)]
    ids, mask = left_padded(rows)
    lens = logit_lens(model, ids, TOKENS, attention_mask=mask, norm=norm)
    scores = answer_writing_scores(model, ids, TOKENS, attention_mask=mask, norm=norm)
    assert lens.points == ["embedding", "0 mid", "0 post", "1 mid", "1 post", "2 mid", "2 post"]
    for i, row in enumerate(rows):
        stream, token = STREAMS[family](model, row), int(TOKENS[i])
        last = stream.post[-1]

        def lens_at(v: Tensor, last: Tensor = last, token: int = token) -> Tensor:
            return log_lens(model, family, v, last, norm)[..., token]

        depths = torch.stack([stream.pre[0], *torch.stack([stream.mid, stream.post], 1).flatten(0, 1)])
        assert_close(lens.logprob[i], lens_at(depths), f"{family} lens, row {i}", TOLERANCE)
        p = lens_at(stream.mid)[:, None].exp()
        without = lens_at(stream.mid[:, None] - stream.writes).exp()
        assert_close(scores[i], (p - without) / p, f"{family} scores, row {i}", TOLERANCE)
    assert float(scores.abs().max()) > 0.05, "no head writes anything in this model"


@pytest.mark.parametrize("family", FAMILIES)
@norms
@torch.no_grad()
def test_the_deepest_lens_point_is_the_models_own_log_probability(family: str, norm: str) -> None:
    model, rows = shaken(family), [random_ids(1, n, seed=n)[0] for n in (9, 5, 1)]
    ids, mask = left_padded(rows)
    lens = logit_lens(model, ids, TOKENS, attention_mask=mask, norm=norm)
    for i, row in enumerate(rows):
        own = model(input_ids=row[None]).logits[0, -1].log_softmax(-1)[TOKENS[i]]
        assert_close(lens.logprob[i, -1], own, f"{family} row {i}")


@norms
def test_training_mode_is_kept_and_dropout_does_not_count(norm: str) -> None:
    model, ids = tiny("gpt2"), random_ids(3, 7)
    want = answer_writing_scores(model, ids, TOKENS, norm=norm), logit_lens(model, ids, TOKENS, norm=norm).logprob
    model.train()
    got = answer_writing_scores(model, ids, TOKENS, norm=norm), logit_lens(model, ids, TOKENS, norm=norm).logprob
    assert model.training and all(module.training for module in model.modules())
    assert_close(got[0], want[0])
    assert_close(got[1], want[1])


@pytest.mark.parametrize("measure", [answer_writing_scores, logit_lens])
def test_what_was_asked_wrongly_is_said(measure) -> None:
    model, ids = tiny("llama"), random_ids(3, 5)
    wrong = [
        ({"token_ids": torch.tensor([5, 61, 3])}, "token_ids must be between 0 and 60; got 61"),
        ({"token_ids": TOKENS[:2]}, "one id for each of 3 rows"),
        ({"input_ids": ids[0]}, r"shape \[N, T\]"),
        ({"input_ids": ids + 60}, "input_ids must be between 0 and 60"),
        ({"attention_mask": torch.ones_like(ids).index_fill(1, torch.tensor([4]), 0)}, "padded on the left"),
        ({"norm": "none"}, "norm must be 'final' or 'frozen'; got 'none'"),
    ]
    for change, says in wrong:
        with pytest.raises(BadInput, match=says):
            measure(model, **({"input_ids": ids, "token_ids": TOKENS} | change))


def test_table_and_summary() -> None:
    found = LogitLens(logprob=torch.tensor([[-4.0, -3.5, -0.5], [-4.0, -4.5, -1.5]]), points=["a", "b", "c"])
    assert found.summary() == "The token rises most from b to c: +3.00 nats."
    assert found.to_frame().to_pylist()[4] == {"row": 1, "point": "b", "logprob": -4.5}
