"""The floor under the attention on a bridge, put into weights that are computed already.

Each query has a bridge B and an own segment S (`Bounds`). `bridge_factors` is the projection; `Slices` and `Members`
are two ways to reach the weights on B and on S, for few queries and for many. `put_under_one` does all of it for the
one query that a decoded token is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

EPSILON = 1e-6
_NEXT_TO_NOTHING = torch.finfo(torch.float32).tiny / EPSILON


class Bounds(NamedTuple):
    """Where the segments of a query lie, in slots: B is `[start, border)`, S is `[border, end)`."""

    start: int
    border: int
    end: int

    @property
    def share(self) -> float:
        """Return the floor before it is limited: large where the bridge is long beside what follows it."""
        return math.sqrt((self.border - self.start) / max(1, self.end - self.start))

    def among(self, offset: int) -> Bounds:
        """Return them as places among keys of which slot `offset` is the first."""
        return Bounds(*(max(0, slot - offset) for slot in self)) if offset else self


NO_BOUNDS = Bounds(0, 0, 0)


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


def factors_of_one(p_bridge: float, p_own: float, tau: float) -> tuple[float, float] | None:
    """Return what `bridge_factors` gives for one head, in Python's numbers; None where nothing is needed.

    Args:
        p_bridge: Mass on B.
        p_own: Mass on S.
        tau: The floor, above 0.
    """
    room = p_bridge + p_own
    floor = min(room - EPSILON, tau)
    if not _NEXT_TO_NOTHING < p_bridge < floor:
        return None
    return floor / p_bridge, (room - floor) / p_own


def put_under_one(weights: Tensor, bounds: Bounds, taus: Sequence[float]) -> int:
    """Put the floor under the heads of one query in place, and return how many needed it.

    Decoding streams the model's weights through the processor's caches, so the time depends on the number of calls
    rather than on the arithmetic. That is why the factors are worked out in Python's own numbers. (NumPy on the same
    memory is faster in a loop of its own and slower here, where its code has left the caches.)

    Args:
        weights: Those of the query, `[H, K]`, on the CPU and without a gradient; each head's sum to one.
        bounds: Its segments, among the keys.
        taus: The floor of each head; 0 leaves it alone.
    """
    start, border, end = bounds
    bridge = weights.narrow(1, start, border - start)
    p_bridge = bridge.sum(1).tolist()
    if not [1 for p, tau in zip(p_bridge, taus, strict=True) if p < tau]:
        return 0
    own = weights.narrow(1, border, end - border)
    # where the two are all keys, the weights outside B are those of S
    p_own = own.sum(1).tolist() if start or end < weights.shape[1] else [1.0 - p for p in p_bridge]
    found = [factors_of_one(*one) for one in zip(p_bridge, p_own, taus, strict=True)]
    factors = weights.new_tensor([one or (1.0, 1.0) for one in found])  # (head, segment)
    bridge.mul_(factors.narrow(1, 0, 1))
    own.mul_(factors.narrow(1, 1, 1))
    return sum(one is not None for one in found)


def each_query(bounds: list[list[Bounds]]) -> list[tuple[Any, Bounds]]:
    """Return the queries of each row as `Slices` takes them."""
    return [((i, slice(None), query), one) for i, row in enumerate(bounds) for query, one in enumerate(row)]


class Groups(Protocol):
    """The weights `[N, H, Q, K]` on B and on S."""

    def masses(self) -> tuple[Tensor, Tensor]:
        """Return their sums, both `[N, H, Q]`."""

    def scale(self, factors: Factors) -> None:
        """Multiply them in place."""


class Slices:
    """The groups as slices, for few queries: `where` is an index into `[N, H, Q]` and what it has in common."""

    def __init__(self, weights: Tensor, where: list[tuple[Any, Bounds]], offset: int):
        self.shape = weights.shape[:-1]
        self.parts: list[tuple[Any, Tensor, Tensor]] = []
        for at, bounds in where:
            start, border, end = bounds.among(offset)
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


class Members:
    """The groups as a mask `[N, Q, K, 2]`, for many queries."""

    def __init__(self, weights: Tensor, bounds: list[list[Bounds]], offset: int):
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
