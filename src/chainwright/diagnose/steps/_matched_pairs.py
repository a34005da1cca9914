"""Partners of wrong traces: traces of the same task and hop count that fill the same slot right at a nearby position.

Early steps attend to the question more than late ones, and so do some slots. Comparing all steps of right traces with
all steps of wrong ones would measure that. So each wrong trace is taken at the slot of its first error, and its partner
is the trace that fills this slot right at the nearest position; no trace is a partner twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from chainwright._errors import BadInput
from chainwright.traces import Trace


class Pair(NamedTuple):
    """Indices of a trace that is right at a slot and of one that is wrong there, with the slot's start in each."""

    right: int
    wrong: int
    right_start: int
    wrong_start: int


def partners(traces: Sequence[Trace], max_distance: int, *, whole: bool = True) -> tuple[list[Pair], int]:
    """Return the pairs, and how many wrong traces have no partner.

    With `whole`, partners are right to their end. Without it they may fail after the slot, which gives more pairs where
    few long chains are right.

    Raises:
        BadInput: A trace has no problem, or no pair matches.
    """
    if any(trace.problem is None for trace in traces):
        raise BadInput("Traces are matched by the slots of their problems; pass traces that have one.")
    free = {i for i, trace in enumerate(traces) if trace.first_error is None or not whole}
    pairs, n_unmatched = [], 0
    for i, trace in enumerate(traces):
        if trace.first_error is None:
            continue
        near = _near(trace, traces, free - {i}, max_distance)
        if not near:
            n_unmatched += 1
            continue
        _, j, start, own = min(near)
        free.remove(j)
        pairs.append(Pair(j, i, start, own))
    if not pairs:
        raise BadInput(
            "No wrong trace has a right partner with the same task, hops, slot and position; pass more traces of one "
            "task and hop count, or a larger max_distance."
        )
    return pairs, n_unmatched


def _near(wrong: Trace, traces: Sequence[Trace], free: set[int], max_distance: int) -> list[tuple[int, int, int, int]]:
    """Return (distance, right trace, its slot's first token, the wrong trace's) of each possible partner."""
    failed = next((slot for slot in wrong.slots if not slot.is_right), None)
    if failed is None or failed.start >= len(wrong):
        return []
    starts = [(j, _slot_start(wrong, traces[j], failed.slot)) for j in sorted(free)]
    return [
        (abs(start - failed.start), j, start, failed.start)
        for j, start in starts
        if start is not None and abs(start - failed.start) <= max_distance
    ]


def _slot_start(wrong: Trace, right: Trace, slot: int) -> int | None:
    """Return the first token of a slot that `right` fills right; None if it does not, or has another task or hops."""
    assert wrong.problem is not None and right.problem is not None
    if (wrong.problem.task, wrong.problem.hops) != (right.problem.task, right.problem.hops):
        return None
    return next((filled.start for filled in right.slots if filled.slot == slot and filled.is_right), None)
