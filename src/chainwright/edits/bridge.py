"""The bridge (odds-equal bridge, OEB): a floor under the attention from a segment to the one that it builds on.

1. A query of the thinking builds on the question, one of the summary builds on the thinking: its bridge B. Its own
   segment so far is S, everything else (sinks too) is O.
2. If a head gives B less than `tau`, its weights are changed as little as possible (in the Kullback-Leibler sense) to
   give it `tau`: inside B and inside S they keep their proportions, O keeps its mass.

Source: StepFlow (arXiv 2604.06695), odds-equal bridge. The projection is computed as two factors on the weights, which
is the same as shifting the scores of B by `log(tau / p_B)` and those of S by `log((1 - p_O - tau) / p_S)`.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from time import perf_counter
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from chainwright._errors import BadInput
from chainwright._registry import register
from chainwright.edits._floor import (
    NO_BOUNDS,
    Bounds,
    Groups,
    Members,
    Slices,
    bridge_factors,
    each_query,
    put_under_one,
)
from chainwright.edits._passes import Pass
from chainwright.edits.base import Edit, Touched
from chainwright.edits.reading import Reading
from chainwright.models.anatomy import Anatomy
from chainwright.models.attention_weights import (
    attn_pattern,
    has_one_query,
    one_query_pattern,
    one_query_values,
    weighted_values,
)
from chainwright.models.seam import Attend, AttentionCall, Handler, Handlers, is_plain
from chainwright.traces.live import LiveSteps, Place

_WEIGHTS_AT_ONCE = 2**22
_FEW = 8  # queries for which slices cost less than a mask


@register("edit", "bridge")
@dataclass(frozen=True)
class Bridge(Edit):
    """Gives the segment that a query builds on at least a share of its attention, in some layers.

    Attributes:
        layers: Which layers, counted from 0; negative ones from the last.
        steps: How the response is read while it is written.
        tau_max: Largest floor. The floor is `min(sqrt(|B| / (|B| + |S|)), tau_max)`, sizes in tokens.
        heads: Largest floors of single heads, (layer, head, floor) each, in place of `layers`; the other heads are left
            alone.
        n_question: Tokens of each row's question; None: the first forward pass of a run reads the question. It has to
            be given for a pass over a whole trace and for assisted decoding, whose first pass holds more.

    Note:
        Rows of a batch may stand in different segments; tokens of the question are never touched. Caches of all kinds,
        beams and speculative decoding are followed. Sites are counted where a weight was changed.
    """

    is_innermost: ClassVar[bool] = True
    needs_whole: ClassVar[bool] = True

    layers: Collection[int]
    steps: LiveSteps | None
    tau_max: float = 0.15
    n_question: tuple[int, ...] | None = None
    heads: tuple[tuple[int, int, float], ...] = ()

    def __post_init__(self) -> None:
        """Check the floors."""
        check_floor(self.tau_max)
        check_head_floors(self.heads)
        if self.heads and len(self.layers):
            raise BadInput(
                f"The bridge is on whole layers or on single heads; got layers {list(self.layers)} and heads."
            )

    def handlers(self, parts: Anatomy, touched: Touched) -> Handlers:
        """Return one handler for each layer."""
        layers = self.acting_layers(parts)
        return self.on(touched.read(self.steps, self.n_question), parts, touched) if layers else Handlers({})

    def acting_layers(self, parts: Anatomy) -> list[int]:
        """Return the layers in which anything may change."""
        if self.heads:
            return sorted(self._floors(parts))
        layers = sorted({parts.check_layer(layer) for layer in self.layers})
        return layers if self.tau_max > 0 else []

    def _floors(self, parts: Anatomy) -> dict[int, tuple[float, ...]]:
        """Return the largest floor of every head of the layers in which some head has one."""
        floors: dict[int, list[float]] = {}
        for layer, head, floor in self.heads:
            where = parts.check_head(layer, head)
            floors.setdefault(where[0], [0.0] * parts.n_heads)[where[1]] = floor
        return {layer: tuple(own) for layer, own in floors.items() if any(own)}

    def on(self, reading: Reading, parts: Anatomy, touched: Touched) -> Handlers:
        """Return the handlers that act on places which are read already, perhaps for other edits too."""
        by_layer: dict[int, tuple[Handler, ...]] = {}
        queries = _Queries(reading, touched)
        floors = self._floors(parts)
        for layer in self.acting_layers(parts):
            tau_max = floors.get(layer, self.tau_max)
            by_layer[layer] = (_Bridging(queries, tau_max, touched.counter(parts, layer)),)
        return Handlers(by_layer, reads_state=True, per_head=True)


def check_head_floors(heads: Sequence[tuple[int, int, float]]) -> None:
    """Raise BadInput unless these can be floors of single heads, each named once."""
    for layer, head, floor in heads:
        if not 0 < floor < 1:
            raise BadInput(f"The floor of head L{layer}H{head} must be above 0 and below 1; got {floor}.")
    named = [(layer, head) for layer, head, _ in heads]
    if twice := [where for where in named if named.count(where) > 1]:
        raise BadInput(f"Head L{twice[0][0]}H{twice[0][1]} has two floors; name each head once.")


def check_floor(tau_max: float) -> None:
    """Raise BadInput unless `tau_max` can be a floor."""
    if not 0 <= tau_max < 1:
        raise BadInput(f"tau_max must be at least 0 and below 1; got {tau_max}.")


def _bounds(place: Place | None, first: int, slot: int) -> Bounds:
    """Return B and S of one query."""
    if place is None:
        return NO_BOUNDS
    question_end, thinking_end = place.question_end + first, place.thinking_end
    if slot < question_end:
        return NO_BOUNDS
    if thinking_end < 0:
        return Bounds(first, question_end, slot + 1)
    border = thinking_end + first
    if border == question_end or slot < border:
        return NO_BOUNDS
    return Bounds(question_end, border, slot + 1)


class _Queries:
    """B, S and the floor of each query of the pass that is running, worked out once for all layers.

    Attributes:
        bounds: For each row those of its queries.
        has_bridge: Whether any query has one.
        common: The bounds of all queries, if they are the same.
        alone: Those of the one query of one row, if its sites count.
    """

    def __init__(self, reading: Reading, touched: Touched):
        self.reading, self.touched = reading, touched
        self.bounds: list[list[Bounds]] = []
        self.has_bridge = False
        self.common: Bounds | None = None
        self.alone: Bounds | None = None
        self._share: Tensor | None = None
        self._taus: dict[float | tuple[float, ...], list[float]] = {}
        self._of: Pass | None = None

    def update(self) -> Pass:
        """Read the pass that is running, if that was not done, and return it."""
        now = self.reading.run.latest
        if self._of is not now:
            since = perf_counter()
            self._read(now)
            self.touched.worked(since)
        return now

    def _read(self, now: Pass) -> None:
        self.bounds = [
            [_bounds(place, first, now.n_past + i) for i, place in enumerate(row)]
            for row, first in zip(self.reading.places, now.first, strict=True)
        ]
        different = {one for row in self.bounds for one in row}
        self.has_bridge = different != {NO_BOUNDS}
        self.common = different.pop() if len(different) == 1 else None
        is_one = now.n_new == len(self.bounds) == 1 and self.reading.run.counted is None
        self.alone = self.common if is_one else None
        self._taus, self._share, self._of = {}, None, now

    def taus(self, floors: float | tuple[float, ...], n_heads: int) -> list[float]:
        """Return the floors of the heads of a layer, where all queries have the same bounds."""
        if floors not in self._taus:
            assert self.common is not None
            share = self.common.share
            limits = floors if isinstance(floors, tuple) else (floors,) * n_heads
            self._taus[floors] = [min(share, limit) for limit in limits]
        return self._taus[floors]

    def tau(self, tau_max: float | Tensor, like: Tensor, here: slice) -> Tensor | float:
        """Return the floors of the queries `here` `[N or 1, H or 1, Q]`, or the one of all of them."""
        share: Tensor | float
        if self.common is not None:
            share = self.common.share
        else:
            if self._share is None or self._share.device != like.device or self._share.dtype != like.dtype:
                shares = [[[one.share for one in row]] for row in self.bounds]
                self._share = torch.tensor(shares, dtype=like.dtype, device=like.device)
            share = self._share[..., here]  # (row, 1, query)
        if isinstance(share, Tensor):
            return share.clamp(max=tau_max) if isinstance(tau_max, float) else torch.minimum(share, tau_max)
        return min(share, tau_max) if isinstance(tau_max, float) else tau_max.clamp(max=share)


class _Bridging:
    """The handler of one layer; `floors` has the largest floor of it, or one per head."""

    def __init__(self, queries: _Queries, floors: float | tuple[float, ...], counter: Tensor):
        self.queries, self.floors, self.touched, self.counter = queries, floors, queries.touched, counter

    def is_idle(self) -> bool:
        """Return whether no query of the pass that is running has a bridge."""
        self.queries.update()
        return not self.queries.has_bridge

    def __call__(self, call: AttentionCall, attend: Attend) -> Tensor:
        """Return z with the floor under every query that has a bridge."""
        queries, touched = self.queries, self.touched
        now = queries.update()
        if not queries.has_bridge:  # only compiled models come here then
            return attend(call)
        if call.q.shape[2] > 1 or not is_plain(attend):
            z = attend(call)  # (batch, query, head, d_head)
            since = perf_counter()
            z = _in_stretches(queries, _largest(self.floors, call), touched, self.counter, call, z)
            touched.worked(since)
            return z
        if queries.alone is not None and call.shards is None and has_one_query(call):
            return self._under_one(queries.alone.among(now.offset(call.layer)), call)
        # the weights are needed anyway, so the delegate would only do the same work again; the time of the two products
        # counts as the model's own attention, which they replace
        weights = attn_pattern(call)
        since = perf_counter()
        weights, is_needed = _floored(
            queries, _largest(self.floors, call), slice(0, 1), weights, now.offset(call.layer)
        )
        if is_needed is not None:
            _count(touched, self.counter, call, is_needed, slice(0, 1))
        touched.worked(since)
        z = weighted_values(call, weights)
        if call.weights is not None:
            call.weights.append(weights.to(z.dtype))
        return z

    def _under_one(self, bounds: Bounds, call: AttentionCall) -> Tensor:
        """Return z of a token that is decoded alone."""
        weights, n_heads = one_query_pattern(call), call.q.shape[1]
        since = perf_counter()
        by_head = weights.view(n_heads, -1)
        if n_needed := put_under_one(by_head, bounds, self.queries.taus(self.floors, n_heads)):
            self.counter.add_(n_needed)
        self.touched.worked(since)
        z = one_query_values(call, weights)
        if call.weights is not None:
            call.weights.append(by_head[None, :, None].to(z.dtype))
        return z


def _largest(floors: float | tuple[float, ...], call: AttentionCall) -> float | Tensor:
    """Return the largest floor of a layer, or those of its heads `[1, H, 1]`."""
    if isinstance(floors, float):
        return floors
    dtype = torch.float32 if call.q.dtype.itemsize < 4 else call.q.dtype
    own = floors if call.shards is None else floors[call.shards.slice_of(len(floors))]
    return torch.tensor(own, dtype=dtype, device=call.q.device)[None, :, None]


def _in_stretches(
    queries: _Queries,
    tau_max: float | Tensor,
    touched: Touched,
    counter: Tensor,
    call: AttentionCall,
    z: Tensor,
) -> Tensor:
    """Return z of many queries, changed in stretches whose weights take little memory."""
    n_rows, n_heads, n_queries, _ = call.q.shape
    offset = queries.reading.run.latest.offset(call.layer)
    size = max(1, _WEIGHTS_AT_ONCE // (n_rows * n_heads * call.k.shape[2]))
    out = z
    for start in range(0, n_queries, size):
        here = slice(start, min(start + size, n_queries))
        if all(bounds == NO_BOUNDS for row in queries.bounds for bounds in row[here]):
            continue
        part = _at_queries(call, here)
        changed, is_needed = _floored(queries, tau_max, here, attn_pattern(part), offset)
        if is_needed is None:
            continue
        _count(touched, counter, call, is_needed, here)
        if call.weights:
            call.weights.append(_replaced(call.weights[-1], here, changed, is_needed))
        out = z.clone() if out is z else out
        out[:, here] = torch.where(is_needed.transpose(1, 2)[..., None], weighted_values(part, changed), z[:, here])
    return out


def _replaced(weights: Tensor, here: slice, changed: Tensor, is_needed: Tensor) -> Tensor:
    """Return attention weights `[N, H, Tq, Tk]` with those of some queries changed where a head needed it."""
    weights = weights.clone()
    weights[:, :, here] = torch.where(is_needed[..., None], changed.to(weights.dtype), weights[:, :, here])
    return weights


def _count(touched: Touched, counter: Tensor, call: AttentionCall, is_needed: Tensor, here: slice) -> None:
    counted = touched.run.counted
    if counted is not None:
        is_needed = is_needed & counted[:, None, here].to(is_needed.device)
    if call.shards is None:
        counter.add_(is_needed.sum())
    else:
        touched.count_own(call, is_needed.sum())


class _Floored(NamedTuple):
    """Weights `[N, H, Q, K]` with the floor, and which heads need it `[N, H, Q]`; None: none does."""

    weights: Tensor
    is_needed: Tensor | None


def _floored(queries: _Queries, tau_max: float | Tensor, here: slice, weights: Tensor, offset: int) -> _Floored:
    """Return the weights of the queries `here` with the floor under each bridge."""
    if weights.requires_grad:
        weights = weights.clone()  # they are written over, and the backward pass of the softmax reads them
    tau = queries.tau(tau_max, weights, here)
    if queries.common is not None:
        groups: Groups = Slices(weights, [(..., queries.common)], offset)
    else:
        bounds = [row[here] for row in queries.bounds]
        is_few = weights.shape[0] * weights.shape[2] <= _FEW
        groups = Slices(weights, each_query(bounds), offset) if is_few else Members(weights, bounds, offset)
    p_bridge, p_own = groups.masses()
    # mostly none needs it, and one comparison is a tenth of the work; a GPU would have to be waited for
    if p_bridge.device.type == "cpu" and bool((p_bridge >= tau).all()):
        return _Floored(weights, None)
    factors = bridge_factors(p_bridge, p_own, tau)
    groups.scale(factors)
    return _Floored(weights, factors.is_needed)


def _at_queries(call: AttentionCall, here: slice) -> AttentionCall:
    """Return the call for some of its queries alone."""
    n_queries, n_keys = call.q.shape[2], call.k.shape[2]
    if here.stop - here.start == n_queries:
        return call
    if call.mask is None:
        asking = torch.arange(here.start, here.stop, device=call.q.device)[:, None]
        mask = (torch.arange(n_keys, device=call.q.device) <= asking)[None, None]
    else:
        mask = call.mask[:, :, here]
    options = dict(call.options)
    if options.get("position_bias") is not None:
        options["position_bias"] = options["position_bias"][:, :, here]
    return replace(call, q=call.q[:, :, here], mask=mask, options=options)
