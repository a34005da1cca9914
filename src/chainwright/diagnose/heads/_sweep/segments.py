"""What several contexts have in common at their start, run once per knockout instead of once per context.

A causal model computes its states at the tokens that contexts share from those tokens alone, with a head silenced as
with every head in place. So where the contexts of a group begin alike, a variant runs the shared beginning once, as one
row, and only the rest of each context as rows of its own, whose queries also see the keys and values of that row.

The rest of each context is its last S columns, S being the length of the rest in the longest context. Of a shorter
context it thus includes some of the shared tokens again, so that all rests end in the last column.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from chainwright.diagnose.heads._sweep.baseline_pass import FEWEST_SHARED, BaselinePass, Contexts, LayerCall
from chainwright.models._probe import first_tensor
from chainwright.models.seam import AttentionCall

Join = Callable[[AttentionCall], AttentionCall]
"""Puts the keys and values of the shared beginning in front of those of a call."""


class Keys(NamedTuple):
    """Keys and values of a shared beginning `[V, G, P, d]`, for V variants."""

    k: Tensor
    v: Tensor


@dataclass(frozen=True)
class Segment:
    """Some columns of the baseline pass.

    Attributes:
        calls: Each layer's call, cut to those columns.
        n_rows: Rows of those calls.
        n_tokens: Columns.
    """

    calls: list[LayerCall]
    n_rows: int
    n_tokens: int


@dataclass(frozen=True)
class Split:
    """The baseline pass in two segments.

    Attributes:
        start: The shared beginning, one row.
        rest: The last columns of every row.
        source: For each row and each column before the rest, the column of `start` with the same token `[N, P]`; None
            if every row has the tokens at the same columns.
    """

    start: Segment
    rest: Segment
    source: Tensor | None

    def joined(self, call: AttentionCall, keys: Keys, rows: Tensor, variants: Tensor) -> AttentionCall:
        """Return the rest's attention call with the keys and values of the beginning in front of its own.

        Args:
            call: The call, with the rest's own keys and values `[R, G, S, d]`.
            keys: Those of the beginning, by variant.
            rows: Row of the baseline pass that each row of the call belongs to `[R]`.
            variants: The variant of each row of the call `[R]`.
        """
        k = torch.cat([self._before(keys.k, rows, variants), call.k], dim=2)
        v = torch.cat([self._before(keys.v, rows, variants), call.v], dim=2)
        mask = call.mask
        if mask is None:  # nothing is padded: each query sees the beginning and what came before it in the rest
            n_rest, n_all = call.q.shape[2], k.shape[2]
            hidden = torch.ones(n_rest, n_all, dtype=torch.bool, device=k.device).triu(n_all - n_rest + 1)
            mask = torch.zeros(1, 1, n_rest, n_all, dtype=call.q.dtype, device=k.device)
            mask.masked_fill_(hidden, torch.finfo(call.q.dtype).min)
        return replace(call, k=k, v=v, mask=mask)

    def _before(self, states: Tensor, rows: Tensor, variants: Tensor) -> Tensor:
        picked = picked_rows(states, variants).expand(len(rows), -1, -1, -1)
        if self.source is None:
            return picked
        index = self.source[rows.to(self.source.device)][:, None, :, None]
        return picked.gather(2, index.expand(-1, picked.shape[1], -1, picked.shape[3]))


def picked_rows(values: Tensor, rows: Tensor) -> Tensor:
    """Return `values[rows]` `[R, ...]`; where all rows are the same `[1, ...]`, and a view where one is possible."""
    first, last = int(rows[0]), int(rows[-1])
    if bool((rows == first).all()):
        return values[first : first + 1]
    if last - first + 1 == len(rows) and bool((rows.diff() == 1).all()):
        return values[first : last + 1]
    return values[rows.to(values.device)]


def whole(plain: BaselinePass, contexts: Contexts) -> Segment:
    """Return the baseline pass as one segment."""
    return Segment(plain.calls, *contexts.input_ids.shape)


def split(plain: BaselinePass, contexts: Contexts) -> Split | None:
    """Return the baseline pass in two segments, or None if the contexts share no beginning that is worth it."""
    n_rows, n_columns = contexts.input_ids.shape
    n_shared = n_shared_tokens(contexts)
    if n_rows < 2 or n_shared < FEWEST_SHARED or not all(call.is_positionwise for call in plain.calls):
        return None
    padding = n_columns - contexts.mask.sum(-1).long()
    longest = int(padding.argmin())
    source = (torch.arange(n_shared, device=padding.device) - padding[:, None]).clamp(min=0)
    row = slice(longest, longest + 1)
    start = [_cut(call, n_rows, row, slice(0, n_shared), slice(0, n_shared)) for call in plain.calls]
    rest = [_cut(call, n_rows, slice(None), slice(n_shared, None), slice(None)) for call in plain.calls]
    return Split(
        Segment(start, 1, n_shared),
        Segment(rest, n_rows, n_columns - n_shared),
        source if bool(padding.any()) else None,
    )


def n_shared_tokens(contexts: Contexts) -> int:
    """Return how many tokens all contexts begin with, at most all but one of the shortest."""
    lengths = contexts.mask.sum(-1).long()
    n_columns, shortest = contexts.input_ids.shape[1], int(lengths.min())
    columns = (n_columns - lengths)[:, None] + torch.arange(shortest, device=lengths.device)
    starts = contexts.input_ids.gather(1, columns)
    n_equal = int((starts == starts[:1]).all(0).int().cumprod(0).sum())
    return min(n_equal, shortest - 1)


def _cut(call: LayerCall, n_rows: int, rows: slice, queries: slice, keys: slice) -> LayerCall:
    """Return a layer's call for some rows and columns; what is per row and per position among its arguments is cut."""

    def cut(value: Any, name: str) -> Any:
        if isinstance(value, tuple):
            return tuple(cut(v, name) for v in value)
        if not isinstance(value, Tensor):
            return value
        is_per_row = len(value) == n_rows and (value.dim() > 2 or name == "position_ids")
        value = value[rows] if is_per_row else value
        if value.dim() == 4:
            return value[:, :, queries, keys]
        if name in ("position_ids", "cache_position"):
            return value[..., queries]
        return value[..., queries, :]

    args = (cut(call.args[0], "hidden_states"), *call.args[1:]) if call.args else ()
    kwargs = {name: cut(value, name) for name, value in call.kwargs.items()}
    output = _cut_output(call.attn_output, n_rows, rows, queries)
    return replace(call, args=args, kwargs=kwargs, z=call.z[rows, queries], attn_output=output)


def _cut_output(output: Any, n_rows: int, rows: slice, columns: slice) -> Any:
    recorded = first_tensor(output)
    if recorded is None:
        return output
    is_flat = recorded.dim() == 2
    cut = recorded.reshape(n_rows, -1, recorded.shape[-1])[rows, columns]
    cut = cut.flatten(0, 1) if is_flat else cut
    return cut if isinstance(output, Tensor) else type(output)((cut, *output[1:]))
