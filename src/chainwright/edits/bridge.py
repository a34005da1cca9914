"""The bridge (odds-equal bridge, OEB): a floor under the attention from a segment to the one that it builds on.

1. A query of the thinking builds on the question, one of the summary builds on the thinking: its bridge B. Its own
   segment so far is S, everything else (sinks too) is O.
2. If a head gives B less than `tau`, its weights are changed as little as possible (in the Kullback-Leibler sense) to
   give it `tau`: inside B and inside S they keep their proportions, O keeps its mass.

Source: StepFlow (arXiv 2604.06695), odds-equal bridge. The projection is computed as two factors on the weights, which
is the same as shifting the scores of B by `log(tau / p_B)` and those of S by `log((1 - p_O - tau) / p_S)`.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor

from chainwright._errors import BadInput
from chainwright._registry import register
from chainwright.edits._passes import Pass
from chainwright.edits.base import Edit, Touched
from chainwright.edits.reading import Reading
from chainwright.models.anatomy import Anatomy
from chainwright.models.attention_weights import attn_pattern, weighted_values
from chainwright.models.seam import Attend, AttentionCall, Handler, Handlers, is_plain
from chainwright.traces.live import LiveSteps, Place

EPSILON = 1e-6
_WEIGHTS_AT_ONCE = 2**22
_FEW = 8  # queries for which slices cost less than a mask


class Factors(NamedTuple):
    """What to multiply the weights of B and S by, and whether at all; all of one shape."""

    bridge: Tensor
    own: Tensor
    is_needed: Tensor


def bridge_factors(p_bridge: Tensor, p_own: Tensor, tau: Tensor | float, epsilon: float = EPSILON) -> Factors:
    """Return the projection onto `p_bridge >= tau` that leaves the mass of everything else as it is.

    Where `tau` is more than there is to share, `p_bridge + p_own - epsilon` takes its place. Where the own segment, the
    bridge or both have next to no mass, nothing is needed.

    Args:
        p_bridge: Mass on B.
        p_own: Mass on S.
        tau: The floor, above 0.
        epsilon: What counts as next to no mass.
    """
    tiny = torch.finfo(p_bridge.dtype).tiny
    room = p_bridge + p_own
    # at least `tiny`, so that no quotient below is 0 / 0; without mass in S it is not above p_bridge
    floor = (room - epsilon).clamp(max=tau).clamp(min=tiny)
    is_needed = (p_bridge < floor) & (p_bridge > tiny / epsilon)
    rest = room - floor
    bridge = floor / torch.where(is_needed, p_bridge, floor)
    own = rest / torch.where(is_needed, p_own, rest)
    return Factors(bridge, own, is_needed)


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
        queries = _Queries(reading)
        floors = self._floors(parts)
        for layer in self.acting_layers(parts):
            tau_max = floors.get(layer, self.tau_max)
            by_layer[layer] = (partial(_bridge, queries, tau_max, touched, touched.counter(parts, layer)),)
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


class _Bounds(NamedTuple):
    """Where the segments of a query lie, in slots: B is `[start, border)`, S is `[border, end)`."""

    start: int
    border: int
    end: int

    @property
    def share(self) -> float:
        """Return the floor before it is limited: large where the bridge is long beside what follows it."""
        return math.sqrt((self.border - self.start) / max(1, self.end - self.start))


_NO_BOUNDS = _Bounds(0, 0, 0)


def _bounds(place: Place | None, first: int, slot: int) -> _Bounds:
    """Return B and S of one query."""
    if place is None:
        return _NO_BOUNDS
    question_end, thinking_end = place.question_end + first, place.thinking_end
    if slot < question_end:
        return _NO_BOUNDS
    if thinking_end < 0:
        return _Bounds(first, question_end, slot + 1)
    border = thinking_end + first
    if border == question_end or slot < border:
        return _NO_BOUNDS
    return _Bounds(question_end, border, slot + 1)


class _Queries:
    """B, S and the floor of each query of the pass that is running, worked out once for all layers.

    Attributes:
        bounds: For each row those of its queries.
        has_bridge: Whether any query has one.
        common: The bounds of all queries, if they are the same.
    """

    def __init__(self, reading: Reading):
        self.reading = reading
        self.bounds: list[list[_Bounds]] = []
        self.has_bridge = False
        self.common: _Bounds | None = None
        self._share: Tensor | None = None
        self._of: Pass | None = None

    def update(self) -> Pass:
        """Read the pass that is running, if that was not done, and return it."""
        now = self.reading.run.latest
        if self._of is not now:
            self.bounds = [
                [_bounds(place, first, now.n_past + i) for i, place in enumerate(row)]
                for row, first in zip(self.reading.places, now.first, strict=True)
            ]
            different = {one for row in self.bounds for one in row}
            self.has_bridge = different != {_NO_BOUNDS}
            self.common = different.pop() if len(different) == 1 else None
            self._share, self._of = None, now
        return now

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


def _bridge(
    queries: _Queries,
    floors: float | tuple[float, ...],
    touched: Touched,
    counter: Tensor,
    call: AttentionCall,
    attend: Attend,
) -> Tensor:
    """Return z with the floor under every query that has a bridge; `floors` has the largest one, or one per head."""
    with touched.timed():
        now = queries.update()
    if not queries.has_bridge:
        return attend(call)
    tau_max = floors if isinstance(floors, float) else _per_head(floors, call)
    n_queries = call.q.shape[2]
    if n_queries > 1 or not is_plain(attend):
        z = attend(call)  # (batch, query, head, d_head)
        with touched.timed():
            return _in_stretches(queries, tau_max, touched, counter, call, z)
    # the weights are needed anyway, so the delegate would only do the same work again; the time of the two products
    # counts as the model's own attention, which they replace
    weights = attn_pattern(call)
    with touched.timed():
        weights, is_needed = _floored(queries, tau_max, slice(0, 1), weights, now.offset(call.layer))
        if is_needed is not None:
            _count(touched, counter, call, is_needed, slice(0, 1))
    z = weighted_values(call, weights)
    if call.weights is not None:
        call.weights.append(weights.to(z.dtype))
    return z


def _per_head(floors: tuple[float, ...], call: AttentionCall) -> Tensor:
    """Return the largest floors of a layer's heads `[1, H, 1]`."""
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
        if all(bounds == _NO_BOUNDS for row in queries.bounds for bounds in row[here]):
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
        groups: _Groups = _Slices(weights, [(..., queries.common)], offset)
    else:
        bounds = [row[here] for row in queries.bounds]
        is_few = weights.shape[0] * weights.shape[2] <= _FEW
        groups = _Slices(weights, _each(bounds), offset) if is_few else _Members(weights, bounds, offset)
    p_bridge, p_own = groups.masses()
    # mostly none needs it, and one comparison is a tenth of the work; a GPU would have to be waited for
    if p_bridge.device.type == "cpu" and bool((p_bridge >= tau).all()):
        return _Floored(weights, None)
    factors = bridge_factors(p_bridge, p_own, tau)
    groups.scale(factors)
    return _Floored(weights, factors.is_needed)


def _each(bounds: list[list[_Bounds]]) -> list[tuple[Any, _Bounds]]:
    return [((i, slice(None), query), one) for i, row in enumerate(bounds) for query, one in enumerate(row)]


class _Groups(Protocol):
    """The weights `[N, H, Q, K]` on B and on S."""

    def masses(self) -> tuple[Tensor, Tensor]:
        """Return their sums, both `[N, H, Q]`."""

    def scale(self, factors: Factors) -> None:
        """Multiply them in place."""


class _Slices:
    """The groups as slices, for few queries: `where` is an index into `[N, H, Q]` and what it has in common."""

    def __init__(self, weights: Tensor, where: list[tuple[Any, _Bounds]], offset: int):
        self.shape = weights.shape[:-1]
        self.parts: list[tuple[Any, Tensor, Tensor]] = []
        for at, bounds in where:
            start, border, end = (max(0, slot - offset) for slot in bounds)
            own = weights if at is ... else weights[at]
            self.parts.append((at, own[..., start:border], own[..., border:end]))

    def masses(self) -> tuple[Tensor, Tensor]:
        """Return their sums."""
        first, bridge, own = self.parts[0]
        if first is ...:
            return bridge.sum(-1), own.sum(-1)
        p_bridge, p_own = bridge.new_zeros(self.shape), bridge.new_zeros(self.shape)
        for at, bridge, own in self.parts:
            p_bridge[at], p_own[at] = bridge.sum(-1), own.sum(-1)
        return p_bridge, p_own

    def scale(self, factors: Factors) -> None:
        """Multiply them in place."""
        for at, bridge, own in self.parts:
            bridge.mul_(factors.bridge[at].unsqueeze(-1))
            own.mul_(factors.own[at].unsqueeze(-1))


class _Members:
    """The groups as a mask `[N, Q, K, 2]`, for many queries."""

    def __init__(self, weights: Tensor, bounds: list[list[_Bounds]], offset: int):
        at = (torch.tensor(bounds, device=weights.device) - offset)[..., None]  # (batch, query, 3, 1)
        is_before = torch.arange(weights.shape[-1], device=weights.device) < at  # (batch, query, 3, key)
        self.weights = weights
        self.member = (is_before[:, :, 1:] & ~is_before[:, :, :-1]).transpose(-1, -2).to(weights.dtype)

    def masses(self) -> tuple[Tensor, Tensor]:
        """Return their sums."""
        masses = torch.einsum("nhqk,nqkg->nhqg", self.weights, self.member)
        return masses[..., 0], masses[..., 1]

    def scale(self, factors: Factors) -> None:
        """Multiply them in place."""
        change = torch.stack([factors.bridge - 1, factors.own - 1], dim=-1)
        self.weights.mul_(1 + torch.einsum("nhqg,nqkg->nhqk", change, self.member))


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
