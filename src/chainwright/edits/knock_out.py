"""Knocking out heads: their output z is set to zero, or scaled down, before the output projection.

Zeroing a slice of the projection's OUTPUT would not do: after the projection the heads are mixed.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import partial
from numbers import Integral
from typing import get_args

import torch
from torch import Tensor

from chainwright._config import Positions
from chainwright._errors import BadInput
from chainwright._registry import register
from chainwright.edits.base import Edit, Touched
from chainwright.edits.run import Run
from chainwright.models.anatomy import Anatomy
from chainwright.models.seam import Attend, AttentionCall, Handler, Handlers

Head = tuple[int, int]
"""An attention head: its layer and its number in the layer, both from 0."""
_FORM = "Heads are given as a collection of (layer, head) pairs of whole numbers, or a list of such collections"


@register("edit", "knock-out")
@dataclass(frozen=True)
class KnockOut(Edit):
    """Silences attention heads (zero ablation).

    Zero is a strong baseline: it also takes away what a head writes on average. A head that matters little by this
    measure does matter little; one that matters much may do so only through its mean.

    Attributes:
        heads: A collection of (layer, head), the same for all rows, or a list of such collections, one a batch row.
            When the batch is a multiple of the list (beams, several samples a prompt) each row's set is repeated.
        positions: "all" silences them at every position of each forward pass, so while decoding at all generated
            positions and, in the prefill, in the whole prompt; "last" only at the last token of each row in each pass
            (padding on the right is skipped).
        scale: What the heads' outputs are multiplied by: 0 silences them, 0.5 halves them, 1 leaves them.

    Source: TCR (arXiv 2601.21214), section 3, zero ablation of head outputs.
    """

    heads: Collection[Head] | Sequence[Collection[Head]]
    positions: Positions = "all"
    scale: float = 0.0

    def __post_init__(self) -> None:
        """Check the form of the arguments."""
        if self.positions not in get_args(Positions):
            raise BadInput(f"positions must be 'all' or 'last'; got {self.positions!r}.")
        if not math.isfinite(self.scale):
            raise BadInput(f"scale must be a finite number (0 silences a head, 1 leaves it); got {self.scale!r}.")
        for row in self._rows():
            if not isinstance(row, Collection):
                raise BadInput(f"{_FORM}; got {row!r} where a collection of pairs was due.")
            for head in row:
                if not _is_head(head):
                    raise BadInput(f"{_FORM}; got {head!r} where a pair was due.")

    def _rows(self) -> list[Collection[Head]]:
        if isinstance(self.heads, (list, tuple)) and not all(_is_head(h) for h in self.heads):
            return list(self.heads)
        return [self.heads]  # type: ignore[list-item]

    def handlers(self, parts: Anatomy, touched: Touched) -> Handlers:
        """Return one handler for each layer in which some row has a head."""
        rows = [{parts.check_head(*head) for head in row} for row in self._rows()]
        by_layer: dict[int, tuple[Handler, ...]] = {}
        for layer in sorted({layer for row in rows for layer, _ in row}):
            counter = touched.counter(parts, layer)
            drop = torch.zeros(len(rows), parts.n_heads, dtype=torch.bool, device=counter.device)
            for i, row in enumerate(rows):
                drop[i, [head for at, head in row if at == layer]] = True
            by_layer[layer] = (partial(_silence, drop, drop.sum(1), int(drop.sum()), self, touched, counter),)
        return Handlers(by_layer, per_head=True)


def _is_head(value: object) -> bool:
    return (
        isinstance(value, tuple)
        and len(value) == 2
        and all(isinstance(i, Integral) and not isinstance(i, bool) for i in value)
    )


def _silence(
    drop: Tensor,
    n_heads: Tensor,
    n_dropped: int,
    knock_out: KnockOut,
    touched: Touched,
    counter: Tensor,
    call: AttentionCall,
    attend: Attend,
) -> Tensor:
    """Return z with the dropped heads at zero or scaled down; `drop` is `[rows, H]`, `n_heads` and `n_dropped` sums."""
    z = attend(call)  # (batch, query, head, d_head)
    drop = drop if call.shards is None else drop[:, call.shards.slice_of(drop.shape[1])]
    repeats = _repeats(z.shape[0], drop.shape[0])
    silenced = drop.repeat_interleave(repeats, dim=0) if drop.shape[0] > 1 else drop
    silenced = silenced[:, None, :, None]
    n_positions = z.shape[1]
    if knock_out.positions == "last" and (n_positions > 1 or touched.run.latest.last is not None):
        silenced = silenced & _at_last(touched.run, z)[:, :, None, None]
    if touched.run.counted is None:
        counter.add_(n_dropped * repeats * (n_positions if knock_out.positions == "all" else 1))
    else:
        by_row = n_heads.repeat_interleave(repeats)[:, None].expand(-1, n_positions)
        touched.count(counter, by_row if knock_out.positions == "all" else by_row * _at_last(touched.run, z))
    return z.masked_fill(silenced, 0.0) if knock_out.scale == 0 else torch.where(silenced, knock_out.scale * z, z)


def _at_last(run: Run, z: Tensor) -> Tensor:
    """Return which positions of z are the last token of their row, `[1 or N, Tq]`; with padding on the right not -1."""
    index = torch.arange(z.shape[1], device=z.device)[None]
    last = run.latest.last
    return index == (z.shape[1] - 1 if last is None else last.to(z.device)[:, None])


def _repeats(n_batch: int, n_rows: int) -> int:
    if n_batch % n_rows:
        raise BadInput(
            f"KnockOut was given one set of heads for each of {n_rows} rows, but the batch has {n_batch}; give one "
            "set, one a row, or a batch that is a multiple of the rows."
        )
    return n_batch // n_rows
