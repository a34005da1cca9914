"""One pass for the logit flow: the residual stream, queries, keys, values and head outputs of every layer.

Memory: about `L T (4 D + (2 H + 2 G) d)` numbers. Attention weights are recomputed row by row when needed, and no
tensor of size neurons x vocabulary or heads x T x T is ever stored.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from chainwright._errors import UnsupportedModel
from chainwright.models._probe import first_tensor, given_tensor
from chainwright.models.anatomy import Anatomy
from chainwright.models.attention_weights import attn_pattern
from chainwright.models.capture import forward
from chainwright.models.residual import norm_at_scale
from chainwright.models.seam import STATE_KEY, Attend, AttentionCall, Handlers, attach, widened
from chainwright.models.writers import FeedForward


@dataclass
class LayerRead:
    """One layer's activations at all positions: each `[T, D]`, z `[T, H, d]`.

    Attributes:
        args, kwargs: The layer's arguments, to rerun it.
        attn_given: Input of the attention module.
        mlp_given: Input of the MLP.
        first: Of layer 0, its input when it first ran: the embedding, even if something was added to it later.
        call: The call of the attention function.
    """

    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    first: Tensor = field(default_factory=lambda: torch.empty(0))
    pre: Tensor = field(default_factory=lambda: torch.empty(0))
    mid: Tensor = field(default_factory=lambda: torch.empty(0))
    post: Tensor = field(default_factory=lambda: torch.empty(0))
    attn_given: Tensor = field(default_factory=lambda: torch.empty(0))
    mlp_given: Tensor = field(default_factory=lambda: torch.empty(0))
    z: Tensor = field(default_factory=lambda: torch.empty(0))
    call: AttentionCall | None = None

    def pattern(self, position: int) -> Tensor:
        """Return the attention weights of one query position, `[H, T]`."""
        assert self.call is not None
        mask = self.call.mask
        if mask is None:
            # the causal mask's row must be explicit: a single query without a mask would see every key
            seen = torch.arange(self.call.k.shape[2], device=self.call.k.device) <= position
            mask = seen[None, None, None]
        else:
            mask = mask[:, :, position : position + 1]
        bias = self.call.options.get("position_bias")
        own = {} if bias is None else {"position_bias": bias[:, :, position : position + 1]}
        options = {**self.call.options, **own}
        call = replace(self.call, q=self.call.q[:, :, position : position + 1], mask=mask, options=options)
        return attn_pattern(call)[0, :, 0]

    def values(self) -> Tensor:
        """Return the values that each query head reads, `[H, T, d]`."""
        assert self.call is not None
        return self.call.v[0].repeat_interleave(self.call.q.shape[1] // self.call.v.shape[1], dim=0)


def read_pass(parts: Anatomy, ffs: tuple[FeedForward, ...], input_ids: Tensor) -> list[LayerRead]:
    """Run one row of ids `[1, T]` and return each layer's activations; if a layer runs again, those of its last run.

    Raises:
        UnsupportedModel: Attention weights times values do not add up to the head outputs.
    """
    reads = [LayerRead() for _ in parts.layers]

    def heads(call: AttentionCall, attend: Attend) -> Tensor:
        z = attend(call)
        reads[call.layer].z, reads[call.layer].call = z[0].clone(), call
        return z

    with attach(parts.model, Handlers({i: (heads,) for i in range(parts.n_layers)})), _hooks(parts, ffs, reads):
        forward(parts, input_ids, None, last_only=True)
    for i, read in enumerate(reads):
        if parts.layers[i].mid_reader is None:
            read.mid = read.pre + attn_write(parts, i, read)
        _check_values(parts, i, read)
    return reads


def attn_write(parts: Anatomy, i: int, read: LayerRead) -> Tensor:
    """Return what the attention of layer `i` adds to the residual stream, `[T, D]`."""
    layer = parts.layers[i]
    out = layer.project(read.z)
    return layer.multiplier * (out if layer.post_attn is None else layer.post_attn(out))


def _check_values(parts: Anatomy, i: int, read: LayerRead) -> None:
    weighted = torch.einsum("hk,hkd->hd", read.pattern(-1 % read.z.shape[0]).to(read.z.dtype), read.values())
    off = widened(weighted - read.z[-1]).norm() / (1e-6 + widened(read.z[-1]).norm())
    if not off <= {torch.float64: 1e-6, torch.float32: 1e-3}.get(read.z.dtype, 0.1):
        raise UnsupportedModel(
            f"In layer {i} of this {parts.model.config.model_type} model the attention weights times the values miss "
            f"the head outputs by a share of {float(off):.2g}, so the contribution of each position is unknown."
        )


@contextmanager
def _hooks(parts: Anatomy, ffs: tuple[FeedForward, ...], reads: list[LayerRead]) -> Iterator[None]:
    with ExitStack() as stack:
        for i, layer in enumerate(parts.layers):
            stack.callback(layer.block.register_forward_pre_hook(_opener(reads, i), with_kwargs=True).remove)
            # before other hooks: one that reruns layers must not hide their output
            stack.callback(layer.block.register_forward_hook(_closer(reads, i)).remove)
            for name, module in (
                ("attn_given", layer.attention),
                ("mlp_given", ffs[i].mlp),
                ("mid", layer.mid_reader),
            ):
                if module is not None:
                    hook = _taker(reads, i, name)
                    stack.callback(module.register_forward_pre_hook(hook, with_kwargs=True).remove)
        yield


def _row(tensor: Tensor) -> Tensor:
    return tensor.reshape(-1, tensor.shape[-1]).clone()


def _opener(reads: list[LayerRead], i: int) -> Any:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = given_tensor(args, kwargs)
        assert given is not None
        pre = _row(given)
        # the arguments refer to our copy, so that the stream is stored only once
        args, kwargs = with_hidden(args, kwargs, pre.view_as(given))
        plain = {name: value for name, value in kwargs.items() if name != STATE_KEY}
        first = reads[i].first if reads[i].first.numel() else pre
        reads[i] = replace(LayerRead(args=args, kwargs=plain), pre=pre, first=first if i == 0 else reads[i].first)

    return hook


def _taker(reads: list[LayerRead], i: int, name: str) -> Any:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = given_tensor(args, kwargs)
        if given is not None and not getattr(reads[i], name).numel():
            setattr(reads[i], name, _row(given))

    return hook


def _closer(reads: list[LayerRead], i: int) -> Any:
    def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        returned = first_tensor(output)
        assert returned is not None
        if not reads[i].post.numel():
            reads[i].post = _row(returned)

    return hook


def with_hidden(
    args: tuple[Any, ...], kwargs: dict[str, Any], hidden: Tensor
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return a module's arguments with `hidden` in place of the tensor that it works on."""
    for k, value in enumerate(args):
        if isinstance(value, Tensor):
            return (*args[:k], hidden, *args[k + 1 :]), kwargs
    name = next(name for name, value in kwargs.items() if isinstance(value, Tensor))
    return args, {**kwargs, name: hidden}


def linear_norm(norm: nn.Module | None, v: Tensor, reference: Tensor) -> Tensor:
    """Return a norm of `v` held at its scale for `reference`, without its bias."""
    if norm is None:
        return v
    return norm_at_scale(norm, v, reference) - norm_at_scale(norm, torch.zeros_like(v), reference)
