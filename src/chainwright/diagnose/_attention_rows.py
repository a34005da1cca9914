"""Attention from a few positions to everything before them, read while the model runs; no full map is stored."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from chainwright.models.anatomy import Anatomy
from chainwright.models.attention_weights import attn_pattern
from chainwright.models.capture import forward
from chainwright.models.seam import Attend, AttentionCall, Handlers, attach

_BLOCK = 64  # query rows that are computed together

ReadRows = Callable[[int, Tensor, Tensor], None]
"""Called with a layer, some positions `[R]` and their attention weights `[H, R, T]` (float32 or wider)."""


@torch.no_grad()
def read_rows(parts: Anatomy, input_ids: Tensor, positions: Tensor, read: ReadRows, *, innermost: bool = False) -> None:
    """Run one unpadded row of ids `[T]` and pass the attention of some positions to `read`, block by block.

    With `innermost` the attention is read inside attached edits, after they have changed queries, keys or the mask.
    """
    positions = positions.to(parts.device)

    def handler(call: AttentionCall, attend: Attend) -> Tensor:
        for rows in torch.split(positions, _BLOCK):
            read(call.layer, rows, attn_pattern(_only(call, rows))[0])
        return attend(call)

    handlers = Handlers({i: (handler,) for i in range(parts.n_layers)})
    with attach(parts.model, handlers, innermost=innermost):
        forward(parts, input_ids[None].to(parts.device), None, last_only=True)


def _only(call: AttentionCall, rows: Tensor) -> AttentionCall:
    """Return the call restricted to some of its query rows."""
    n_query, keys = call.q.shape[2], torch.arange(call.k.shape[2], device=call.q.device)
    mask = (keys <= rows[:, None])[None, None] if call.mask is None else call.mask[..., rows, :]
    options = dict(call.options)
    bias = options.get("position_bias")
    if isinstance(bias, Tensor) and bias.shape[-2] == n_query:
        options["position_bias"] = bias[..., rows, :]
    return replace(call, q=call.q[:, :, rows], mask=mask, options=options)
