r"""Attention whose backward pass also sums `|A dL/dA|` between steps, a block of queries at a time.

With `z = A V` the gradient of a loss with respect to the attention weights is `dA = dz V^T`, so `A`, `dA` and their
product are needed for one block of queries at a time, to

1. recompute the block's scores and weights from queries and keys (with softcap, sinks, masks and biases);
2. compute `dA`, multiply, take the mean over heads and add it up by the steps of query and key;
3. add the block's part to the gradients of queries, keys and values.

Blocks are as wide as the keys that their queries can see, which saves half of the work of a full matrix, and with a
sliding window only the window is computed. The two or three block buffers are allocated once and written in place: with
a new allocation of another size for each block, the allocator fragments until it holds as much as the full matrix.

This module knows nothing of layers, traces, or how the loss is computed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from chainwright._errors import UnsupportedModel
from chainwright.models.attention_weights import attention_sinks
from chainwright.models.seam import Attend, AttentionCall, widened

BLOCK_BYTES = {"cpu": 2**22, "other": 2**28}
"""Size of one buffer: what a processor's caches hold; on a GPU, what keeps it busy between two starts of a kernel."""


def usual_block(device: torch.device) -> int:
    """Return the size of one buffer on a device."""
    return BLOCK_BYTES["cpu" if device.type == "cpu" else "other"]


class Block(NamedTuple):
    """Queries `[start, end)` of a sequence and the keys `[first_key, end)` that they can see."""

    start: int
    end: int
    first_key: int


class Steps(NamedTuple):
    """The step of every token.

    Attributes:
        of_token: `[N, T]`; padding has the step `n_steps`.
        n_steps: Steps of the row with the most (S).
    """

    of_token: Tensor
    n_steps: int


@dataclass
class Workspace:
    """The block buffers, shared by all layers."""

    block_bytes: int
    buffers: dict[str, Tensor] = field(default_factory=dict)

    def view(self, name: str, shape: tuple[int, ...], like: Tensor, largest: int) -> Tensor:
        """Return a contiguous tensor of `shape` in the named buffer; its former content is overwritten.

        Args:
            name: Buffers of different names do not overlap.
            shape: The shape.
            like: Gives the dtype and the device.
            largest: Numbers in the largest tensor that will be requested, so that the buffer never has to grow.
        """
        buffer = self.buffers.get(name)
        if buffer is None or buffer.numel() < largest or buffer.dtype != like.dtype or buffer.device != like.device:
            self.buffers[name] = buffer = torch.empty(largest, dtype=like.dtype, device=like.device)
        return buffer[: math.prod(shape)].view(shape)


@dataclass(frozen=True)
class Attention:
    """One layer's attention in the dtype it is computed in, key/value heads not repeated.

    Attributes:
        q: Scaled queries `[N, G, R, T, d]`, R query heads per key/value head.
        k: `[N, G, T, d]`.
        v: `[N, G, T, dv]`.
        mask: As in `AttentionCall`.
        softcap: Bound of the scores, or None.
        sinks: Logits of the heads' sinks `[G, R]`, or None.
        bias: Added to the scores `[1 or N, H, T, T]`, or None.
        block_size: Queries per block.
        scale: The factor that the queries were multiplied by.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    mask: Tensor | None
    softcap: float | None
    sinks: Tensor | None
    bias: Tensor | None
    block_size: int
    scale: float

    @classmethod
    def of(cls, call: AttentionCall, block_bytes: int) -> Attention:
        """Return the attention of a layer's call, in blocks of about `block_bytes`."""
        _check_square(call)
        n_rows, n_heads, n_tokens, _ = call.q.shape
        n_kv = call.k.shape[1]
        scale = call.options.get("scaling")
        scale = call.q.shape[-1] ** -0.5 if scale is None else float(scale)
        q = _by_kv_head(widened(call.q) * scale, n_kv)
        sinks = attention_sinks(call)
        a_row = n_rows * n_heads * n_tokens * q.element_size()
        return cls(
            q=q,
            k=widened(call.k),
            v=widened(call.v),
            mask=call.mask,
            softcap=call.options.get("softcap"),
            sinks=None if sinks is None else sinks.reshape(n_kv, -1).to(q.dtype),
            bias=call.options.get("position_bias"),
            block_size=max(1, min(n_tokens, block_bytes // a_row)),
            scale=scale,
        )

    @property
    def largest(self) -> int:
        """Return the number of weights in the largest block."""
        n_rows, n_kv, n_rep, n_tokens, _ = self.q.shape
        return n_rows * n_kv * n_rep * self.block_size * n_tokens

    def blocks(self) -> Iterator[Block]:
        """Yield the blocks of queries, first to last."""
        n_tokens = self.q.shape[3]
        for start in range(0, n_tokens, self.block_size):
            end = min(start + self.block_size, n_tokens)
            yield Block(start, end, self._first_key(start, end))

    def _first_key(self, start: int, end: int) -> int:
        if self.mask is None:
            return 0
        seen = self._visible(Block(start, end, 0)).flatten(0, -2).any(0).nonzero()
        return int(seen[0]) if len(seen) else 0

    def _visible(self, block: Block) -> Tensor:
        """Return which keys the block's queries can see, `[1 or N, 1, B, K]`; the call must have a mask."""
        assert self.mask is not None
        mask = self.mask[:, :, block.start : block.end, block.first_key : block.end]
        # a float mask hides a key by adding the smallest number of its dtype
        return mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2

    def weights(self, block: Block, workspace: Workspace) -> tuple[Tensor, Tensor | None]:
        """Return the weights `[N * G, R * B, K]` in the buffer "weights", and the derivative of the softcap or None.

        The buffer "scores" may be reused afterwards.
        """
        n_rows, n_kv, n_rep, _, d = self.q.shape
        n_queries, n_keys = block.end - block.start, block.end - block.first_key
        shape = (n_rows * n_kv, n_rep * n_queries, n_keys)
        scores = workspace.view("scores", shape, self.q, self.largest)
        q = self.q[:, :, :, block.start : block.end].reshape(n_rows * n_kv, n_rep * n_queries, d)
        k = self.k[:, :, block.first_key : block.end].reshape(n_rows * n_kv, n_keys, d)
        torch.bmm(q, k.transpose(1, 2), out=scores)
        slope = None
        if self.softcap is not None:
            slope = workspace.view("slope", shape, self.q, self.largest)
            scores.div_(self.softcap).tanh_()
            torch.mul(scores, scores, out=slope).neg_().add_(1)  # d tanh(x) = 1 - tanh(x)^2
            scores.mul_(self.softcap)
        self._hide(block, scores.view(n_rows, n_kv * n_rep, n_queries, n_keys))
        weights = torch.softmax(scores, -1, out=workspace.view("weights", shape, self.q, self.largest))
        if self.sinks is not None:
            # a sink takes part in the softmax but has no value: the other weights shrink to their share of the mass
            total = scores.logsumexp(-1).view(n_rows, n_kv, n_rep, n_queries)
            share = (total - self.sinks[None, :, :, None]).sigmoid()
            weights.mul_(share.view(n_rows * n_kv, n_rep * n_queries, 1))
        return weights, slope

    def _hide(self, block: Block, scores: Tensor) -> None:
        """Add biases to the scores `[N, H, B, K]` and hide the keys that a query cannot see, in place."""
        keys = slice(block.first_key, block.end)
        if self.bias is not None:
            scores.add_(self.bias[:, :, block.start : block.end, keys])
        lowest = torch.finfo(scores.dtype).min
        if self.mask is None:
            n_queries = block.end - block.start
            later = torch.ones(n_queries, n_queries, dtype=torch.bool, device=scores.device).triu(1)
            scores[..., block.start - block.first_key :].masked_fill_(later, lowest)
            return
        if self.mask.dtype != torch.bool:
            scores.add_(self.mask[:, :, block.start : block.end, keys])
        scores.masked_fill_(~self._visible(block), lowest)


def _by_kv_head(heads: Tensor, n_kv: int) -> Tensor:
    """Return `[N, H, T, d]` as `[N, G, R, T, d]`."""
    n_rows, n_heads, n_tokens, d = heads.shape
    return heads.reshape(n_rows, n_kv, n_heads // n_kv, n_tokens, d)


def _check_square(call: AttentionCall) -> None:
    if call.q.shape[2] != call.k.shape[2]:
        raise UnsupportedModel(
            f"Layer {call.layer} attends from {call.q.shape[2]} positions to {call.k.shape[2]}; step saliency runs a "
            "whole trace in one uncached pass, where the two must be equal."
        )


def blockwise(call: AttentionCall, workspace: Workspace) -> Tensor:
    """Return z `[N, T, H, dv]` of an uncached call, without storing all weights at once."""
    attention = Attention.of(call, workspace.block_bytes)
    n_rows, n_kv, n_rep, n_tokens, _ = attention.q.shape
    z = torch.empty(n_rows, n_kv, n_rep, n_tokens, call.v.shape[-1], dtype=attention.q.dtype, device=call.q.device)
    for block in attention.blocks():
        weights, _ = attention.weights(block, workspace)
        v = attention.v[:, :, block.first_key : block.end].flatten(0, 1)
        out = torch.bmm(weights, v).view(n_rows, n_kv, n_rep, block.end - block.start, -1)
        z[:, :, :, block.start : block.end] = out
    return z.flatten(1, 2).transpose(1, 2).to(call.q.dtype)


@dataclass
class StepSums:
    """Adds `mean over heads |A dA|` up by (step of the query, step of the key).

    Attributes:
        steps: The step of every token.
        total: `[N, S + 1, S + 1]` float64; the last row and column belong to padding.
        n_blocks: Blocks added so far.
    """

    steps: Steps
    total: Tensor
    n_blocks: int = 0

    @classmethod
    def of(cls, steps: Steps) -> StepSums:
        """Return empty sums for traces with these steps."""
        n_rows, n = len(steps.of_token), steps.n_steps + 1
        # mps is the only device without float64
        dtype = torch.float32 if steps.of_token.device.type == "mps" else torch.float64
        return cls(steps, torch.zeros(n_rows, n, n, dtype=dtype, device=steps.of_token.device))

    def add(self, block: Block, influence: Tensor) -> None:
        """Add the influence `[N, B, K]` of one block."""
        of_query = self.steps.of_token[:, block.start : block.end]
        of_key = self.steps.of_token[:, block.first_key : block.end]
        lowest = int(of_query.min())
        n_here = int(of_query.max()) - lowest + 1
        chosen = torch.nn.functional.one_hot(of_query - lowest, n_here).to(influence.dtype)  # (row, query, step)
        by_step = torch.bmm(chosen.transpose(1, 2), influence)
        part = by_step.new_zeros(len(by_step), n_here, self.total.shape[-1])
        part.scatter_add_(2, of_key[:, None].expand(-1, n_here, -1), by_step)
        self.total[:, lowest : lowest + n_here] += part
        self.n_blocks += 1


@dataclass(frozen=True)
class Recorder:
    """The state that the backward pass of one layer needs besides tensors.

    Attributes:
        sums: Where the layer's influence is added up.
        workspace: The shared buffers.
        wants_gradients: Whether any layer below needs gradients.
    """

    sums: StepSums
    workspace: Workspace
    wants_gradients: bool

    def record(self, forward: Attend, call: AttentionCall) -> Tensor:
        """Return z of `forward(call)`; when its backward pass runs, the call's influence is added to `sums`."""
        z: Tensor = _Recorded.apply(call.q, call.k, call.v, call, forward, self)  # type: ignore[no-untyped-call]
        return z


class _Recorded(torch.autograd.Function):
    """Attention with any forward function, and a backward pass block by block."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, call: AttentionCall, forward: Attend, recorder: Recorder
    ) -> Tensor:
        ctx.save_for_backward(q, k, v)
        ctx.call, ctx.recorder = call, recorder
        return forward(call)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v = ctx.saved_tensors
        call = AttentionCall(ctx.call.module, ctx.call.layer, q, k, v, ctx.call.mask, ctx.call.options)
        gradients = _backward(Attention.of(call, ctx.recorder.workspace.block_bytes), grads[0], ctx.recorder)
        if gradients is None:
            return None, None, None, None, None, None
        return gradients[0].to(q.dtype), gradients[1].to(k.dtype), gradients[2].to(v.dtype), None, None, None


def _backward(attention: Attention, grad: Tensor, recorder: Recorder) -> tuple[Tensor, Tensor, Tensor] | None:
    """Add up the influence, and return the gradients of queries `[N, H, T, d]`, keys and values if needed."""
    n_rows, n_kv, n_rep, _, d = attention.q.shape
    dz = _by_kv_head(widened(grad).transpose(1, 2), n_kv)  # (batch, kv head, repeat, query, dv)
    dk, dv = torch.zeros_like(attention.k), torch.zeros_like(attention.v)
    dq = torch.empty_like(attention.q) if recorder.wants_gradients else None
    for block in attention.blocks():
        weights, slope = attention.weights(block, recorder.workspace)
        n_queries = block.end - block.start
        keys = slice(block.first_key, block.end)
        dz_here = dz[:, :, :, block.start : block.end].reshape(n_rows * n_kv, n_rep * n_queries, -1)
        v_here, k_here = attention.v[:, :, keys].flatten(0, 1), attention.k[:, :, keys].flatten(0, 1)
        product = recorder.workspace.view("scores", tuple(weights.shape), weights, attention.largest)
        torch.bmm(dz_here, v_here.transpose(1, 2), out=product).mul_(weights)
        _add_influence(recorder, block, product.view(n_rows, n_kv * n_rep, n_queries, -1), attention.largest)
        if dq is None:
            continue
        _add_product(recorder.workspace, dv, block, weights, dz_here)
        # the softmax's backward pass, A (dA - sum A dA), with the product A dA already in the buffer
        d_scores = product.addcmul_(weights, product.sum(-1, keepdim=True), value=-1)
        if slope is not None:
            d_scores.mul_(slope)
        q_here = attention.q[:, :, :, block.start : block.end].reshape(n_rows * n_kv, n_rep * n_queries, d)
        _add_product(recorder.workspace, dk, block, d_scores, q_here)
        dq[:, :, :, block.start : block.end] = torch.bmm(d_scores, k_here).view(n_rows, n_kv, n_rep, n_queries, d)
    return None if dq is None else (dq.mul_(attention.scale).flatten(1, 2), dk, dv)


def _add_product(workspace: Workspace, total: Tensor, block: Block, a: Tensor, b: Tensor) -> None:
    """Add `a^T b` to the gradients `[N, G, T, d]` of a block's keys; a and b are `[N * G, R * B, K or d]`."""
    out = workspace.view("product", (a.shape[0], a.shape[2], b.shape[2]), a, total.numel())
    here = total[:, :, block.first_key : block.end]
    here += torch.bmm(a.transpose(1, 2), b, out=out).view(here.shape)


def _add_influence(recorder: Recorder, block: Block, product: Tensor, largest: int) -> None:
    """Add the mean over heads of `|product|`, with `product` `[N, H, B, K]`."""
    n_rows, n_heads, n_queries, n_keys = product.shape
    out = recorder.workspace.view("influence", (n_rows, n_queries, n_keys), product, largest // n_heads)
    torch.linalg.vector_norm(product, ord=1, dim=1, out=out)
    recorder.sums.add(block, out.div_(n_heads))
