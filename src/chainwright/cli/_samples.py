"""The table of several responses to each problem, as `generate` and `evaluate` print it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from chainwright.cli._shared import print_table, say

if TYPE_CHECKING:
    from chainwright.traces import Trace


def print_samples(traces: Sequence[Trace]) -> None:
    """Print mean, pass@k and majority accuracy where there are several responses to each problem."""
    from chainwright.evaluation.clusters import has_samples
    from chainwright.evaluation.samples import evaluate_samples

    if has_samples(traces):
        found = evaluate_samples(traces)
        print_table("Several responses to each problem", found.table())
        say(found.note)
