"""The bridge (odds-equal bridge, OEB): a floor under the attention from a segment to the one that it builds on.

1. A query of the thinking builds on the question, one of the summary builds on the thinking: its bridge B. Its own
   segment so far is S, everything else (sinks too) is O.
2. If a head gives B less than `tau`, its weights are changed as little as possible (in the Kullback-Leibler sense) to
   give it `tau`: inside B and inside S they keep their proportions, O keeps its mass.

Source: StepFlow (arXiv 2604.06695), odds-equal bridge. The projection is computed as two factors on the weights, which
is the same as shifting the scores of B by `log(tau / p_B)` and those of S by `log((1 - p_O - tau) / p_S)`.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from chainwright._errors import BadInput
from chainwright.edits.base import Edit, Touched
from chainwright.edits.following import Follower, LiveSteps, Pass
from chainwright.models.anatomy import Anatomy
from chainwright.models.seam import Attend, AttentionCall, Handler, Handlers, attn_pattern, widened
from chainwright.traces.live import Place

EPSILON = 1e-6
_WEIGHTS_AT_ONCE = 2**22
_FEW = 8  # queries for which slices cost less than a mask


class Factors(NamedTuple):
    """What to multiply the weights of B and S by, and whether at all; all of one shape."""

    bridge: Tensor
    own: Tensor
    is_needed: Tensor


def bridge_factors(p_bridge: Tensor, p_own: Tensor, tau: Tensor, epsilon: float = EPSILON) -> Factors:
    """Return the projection onto `p_bridge >= tau` that leaves the mass of everything else as it is.

    Where `tau` is more than there is to share, `p_bridge + p_own - epsilon` takes its place. Where the own segment, the
    bridge or both have next to no mass, nothing is needed.

    Args:
        p_bridge: Mass on B.
        p_own: Mass on S.
        tau: The floor.
        epsilon: What counts as next to no mass.
    """
    room = p_bridge + p_own
    floor = torch.minimum(tau.expand_as(room), room - epsilon)
    tiny = torch.finfo(p_bridge.dtype).tiny
    is_needed = (p_bridge < floor) & (p_own > epsilon) & (room > epsilon) & (p_bridge > tiny / EPSILON)
    one = torch.ones_like(room)
    bridge = torch.where(is_needed, floor / p_bridge.clamp(min=tiny), one)
    own = torch.where(is_needed, (room - floor) / p_own.clamp(min=tiny), one)
    return Factors(bridge, own, is_needed)


@dataclass(frozen=True)
class Bridge(Edit):
    """Gives the segment that a query builds on at least a share of its attention, in some layers.

    Attributes:
        layers: Which layers, counted from 0; negative ones from the last.
        steps: How the response is read while it is written.
        tau_max: Largest floor. The floor is `min(sqrt(|B| / (|B| + |S|)), tau_max)`, sizes in tokens.
        n_question: Tokens of each row's question; None: the first forward pass of a run reads the question. It has to
            be given for a pass over a whole trace and for assisted decoding, whose first pass holds more.

    Note:
        Rows of a batch may stand in different segments; tokens of the question are never touched. Caches of all kinds,
        beams and speculative decoding are followed. Sites are counted where a weight was changed.
    """

    layers: Collection[int]
    steps: LiveSteps | None
    tau_max: float = 0.15
    n_question: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        """Check the floor."""
        if not 0 <= self.tau_max < 1:
            raise BadInput(f"tau_max must be at least 0 and below 1; got {self.tau_max}.")

    def handlers(self, parts: Anatomy, touched: Touched) -> Handlers:
        """Return one handler for each layer, and what follows the run."""
        follower = Follower(self.steps, self.n_question)
        return self.following(follower, parts, touched)

    def following(self, follower: Follower, parts: Anatomy, touched: Touched) -> Handlers:
        """Return the handlers of a run that `follower` follows, and the follower's own."""
        by_layer: dict[int, tuple[Handler, ...]] = {}
        spans = _Spans(follower, self.tau_max)
        for layer in sorted({parts.check_layer(layer) for layer in self.layers}):
            by_layer[layer] = (partial(_bridge, spans, touched.counter(parts, layer)),)
        return Handlers(by_layer, (follower.before,))


class _Spans:
    """The bridge and the own segment of each query of the pass that is running, worked out once for all layers."""

    def __init__(self, follower: Follower, tau_max: float):
        self.follower = follower
        self.tau_max = tau_max
        self._of: Pass | None = None
        self._bounds: Tensor | None = None

    def bounds(self) -> Tensor | None:
        """Return first and last slots of B and S `[N, Tq, 4]`, zero for queries without a bridge; None if all are."""
        now = self.follower.latest
        if self._of is not now:
            rows = [
                [_bounds(place, first, now.n_past + i) for i, place in enumerate(row)]
                for row, first in zip(now.places, now.first, strict=True)
            ]
            found = torch.tensor(rows, dtype=torch.long).view(len(rows), now.n_new, 4)
            self._of, self._bounds = now, found if bool(found.any()) else None
        return self._bounds


def _bounds(place: Place | None, first: int, slot: int) -> tuple[int, int, int, int]:
    """Return B and S of one query in slots."""
    if place is None:
        return 0, 0, 0, 0
    question_end, thinking_end = place.question_end + first, place.thinking_end
    if slot < question_end:
        return 0, 0, 0, 0
    if thinking_end < 0:
        return first, question_end, question_end, slot + 1
    border = thinking_end + first
    if border == question_end or slot < border:
        return 0, 0, 0, 0
    return question_end, border, border, slot + 1


def _bridge(spans: _Spans, counter: Tensor, call: AttentionCall, attend: Attend) -> Tensor:
    """Return z with the floor under every query that has a bridge."""
    z = attend(call)  # (batch, query, head, d_head)
    bounds = spans.bounds()
    if bounds is None:
        return z
    offset = spans.follower.latest.offsets(call.layer)
    n_rows, n_queries, n_heads, _ = z.shape
    size = max(1, _WEIGHTS_AT_ONCE // (n_rows * n_heads * call.k.shape[2]))
    out = z
    for start in range(0, n_queries, size):
        here = slice(start, min(start + size, n_queries))
        if not bool(bounds[:, here].any()):
            continue
        weights = attn_pattern(_at_queries(call, here))
        found = _bridged(call, weights, bounds[:, here] - offset, spans.tau_max)
        if found is None:
            continue
        changed, is_needed = found
        counter.add_(is_needed.sum())
        out = z.clone() if out is z else out
        out[:, here] = torch.where(is_needed.transpose(1, 2)[..., None], changed.to(z.dtype), z[:, here])
    return out


def _bridged(call: AttentionCall, weights: Tensor, bounds: Tensor, tau_max: float) -> tuple[Tensor, Tensor] | None:
    """Return the changed z `[N, Q, H, dv]` and which heads need it `[N, H, Q]`, or None if none does.

    Bounds are indices into the keys; the weights are written over.
    """
    sizes = torch.stack([bounds[..., 1] - bounds[..., 0], bounds[..., 3] - bounds[..., 2]], dim=-1).to(weights)
    tau = (sizes[..., 0] / sizes.sum(-1).clamp(min=1)).sqrt().clamp(max=tau_max)[:, None]
    groups = _Groups.of(bounds, weights)
    p_bridge, p_own = groups.masses(weights)
    factors = bridge_factors(p_bridge, p_own, tau)
    if not bool(factors.is_needed.any()):
        return None
    groups.scale(weights, factors)
    n_rows, n_heads, n_queries, n_keys = weights.shape
    by_key_head = weights.view(n_rows, call.v.shape[1], -1, n_keys)
    z = (by_key_head @ widened(call.v)).view(n_rows, n_heads, n_queries, -1)
    return z.transpose(1, 2), factors.is_needed


class _Groups(NamedTuple):
    """The keys of B and S of each query: as slices where queries are few, else as a mask.

    Attributes:
        slices: (row, query, keys of B, keys of S).
        member: `[N, Q, K, 2]`, one for the keys of B and of S; None where slices are used.
    """

    slices: list[tuple[int, int, slice, slice]]
    member: Tensor | None

    @classmethod
    def of(cls, bounds: Tensor, weights: Tensor) -> _Groups:
        """Return the groups of bounds `[N, Q, 4]`."""
        bounds = bounds.clamp(min=0)
        if bounds.shape[0] * bounds.shape[1] <= _FEW:
            found = [
                (row, query, slice(a, b), slice(c, d))
                for row, queries in enumerate(bounds.tolist())
                for query, (a, b, c, d) in enumerate(queries)
            ]
            return cls(found, None)
        key = torch.arange(weights.shape[-1], device=weights.device)
        bounds = bounds.to(weights.device)
        is_bridge = (key >= bounds[..., :1]) & (key < bounds[..., 1:2])  # (batch, query, key)
        is_own = (key >= bounds[..., 2:3]) & (key < bounds[..., 3:])
        return cls([], torch.stack([is_bridge, is_own], dim=-1).to(weights.dtype))

    def masses(self, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mass of each head on B and on S, both `[N, H, Q]`."""
        if self.member is not None:
            masses = torch.einsum("nhqk,nqkg->nhqg", weights, self.member)
            return masses[..., 0], masses[..., 1]
        p_bridge, p_own = torch.zeros_like(weights[..., 0]), torch.zeros_like(weights[..., 0])
        for row, query, bridge, own in self.slices:
            p_bridge[row, :, query] = weights[row, :, query, bridge].sum(-1)
            p_own[row, :, query] = weights[row, :, query, own].sum(-1)
        return p_bridge, p_own

    def scale(self, weights: Tensor, factors: Factors) -> None:
        """Multiply the weights in place."""
        if self.member is not None:
            change = torch.stack([factors.bridge - 1, factors.own - 1], dim=-1)
            weights.mul_(1 + torch.einsum("nhqg,nqkg->nhqk", change, self.member))
            return
        for row, query, bridge, own in self.slices:
            weights[row, :, query, bridge] *= factors.bridge[row, :, query, None]
            weights[row, :, query, own] *= factors.own[row, :, query, None]


def _at_queries(call: AttentionCall, here: slice) -> AttentionCall:
    """Return the call for some of its queries alone."""
    n_queries, n_keys = call.q.shape[2], call.k.shape[2]
    if here.stop - here.start == n_queries:
        return call
    mask = call.mask
    if mask is None:
        mask = torch.ones(n_queries, n_keys, dtype=torch.bool, device=call.q.device).tril()[None, None]
    options = dict(call.options)
    if options.get("position_bias") is not None:
        options["position_bias"] = options["position_bias"][:, :, here]
    return replace(call, q=call.q[:, :, here], mask=mask[:, :, here], options=options)
