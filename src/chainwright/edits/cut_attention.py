"""Cutting attention: some positions may no longer look at some earlier ones, and look at the rest instead."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from chainwright._errors import BadInput
from chainwright._registry import register
from chainwright.edits.base import Edit, Touched
from chainwright.models.anatomy import Anatomy
from chainwright.models.seam import Attend, AttentionCall, Handlers


class Cut(NamedTuple):
    """Which queries may no longer look at which keys: half-open columns of the batch.

    Attributes:
        queries: Start and end.
        keys: Start and end; they end before the queries start.
    """

    queries: tuple[int, int]
    keys: tuple[int, int]


@register("edit", "cut-attention")
@dataclass(frozen=True)
class CutAttention(Edit):
    """Cuts the attention from some positions to some earlier ones; the weights of the rest are scaled up to one.

    Attributes:
        cuts: One for all rows, or one for each batch row (None: nothing is cut in it).
        layers: Which layers; None takes all.

    Note:
        Columns are those of one uncached pass over a whole batch, padding counted.
    """

    cuts: Sequence[Cut | None]
    layers: Collection[int] | None = None

    def __post_init__(self) -> None:
        """Check the cuts."""
        for cut in self.cuts:
            if cut is None:
                continue
            (first, last), (start, end) = cut
            if not 0 <= start < end <= first < last:
                raise BadInput(
                    f"A cut takes away earlier positions, so its keys end before its queries start; got queries "
                    f"({first}, {last}) and keys ({start}, {end})."
                )

    def handlers(self, parts: Anatomy, touched: Touched) -> Handlers:
        """Return one handler for each layer."""
        layers = range(parts.n_layers) if self.layers is None else sorted({parts.check_layer(i) for i in self.layers})
        handlers = {i: (partial(_cut, self.cuts, touched, touched.counter(parts, i)),) for i in layers}
        return Handlers(handlers, per_head=True)


def _cut(cuts: Sequence[Cut | None], touched: Touched, counter: Tensor, call: AttentionCall, attend: Attend) -> Tensor:
    """Return z of the call with the cut pairs hidden."""
    n_rows, _, n_queries, _ = call.q.shape
    n_keys = call.k.shape[2]
    if n_queries != n_keys:
        raise BadInput("CutAttention works on a whole batch in one pass without a cache; pass use_cache=False.")
    if n_rows % len(cuts):
        raise BadInput(f"CutAttention was given cuts for {len(cuts)} rows, but the batch has {n_rows}; give one a row.")
    repeats = n_rows // len(cuts)
    hidden = torch.zeros(n_rows, 1, n_queries, n_keys, dtype=torch.bool, device=call.q.device)
    for row in range(n_rows):
        cut = cuts[row // repeats]
        if cut is not None:
            hidden[row, 0, slice(*cut.queries), slice(*cut.keys)] = True
    touched.count(counter, call.n_heads * hidden[:, 0].any(-1))
    return attend(replace(call, mask=_hidden(call, hidden)))


def _hidden(call: AttentionCall, hidden: Tensor) -> Tensor:
    """Return the call's mask with some more pairs hidden."""
    if call.mask is None:
        return torch.ones_like(hidden[:1]).tril() & ~hidden
    if call.mask.dtype == torch.bool:
        return call.mask & ~hidden
    return call.mask.masked_fill(hidden, torch.finfo(call.mask.dtype).min)
