"""Accuracy by task and hops."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from chainwright._errors import BadInput
from chainwright._finding import Finding
from chainwright._registry import register
from chainwright._stats import wilson
from chainwright.traces import Trace

if TYPE_CHECKING:
    from plotly.graph_objects import Figure


UNKNOWN_TASK = "unknown"
"""The task of traces that were judged elsewhere and come without a problem; their `hops` is None."""


@register("finding", "Accuracy")
@dataclass(frozen=True, kw_only=True)
class Accuracy(Finding):
    """Accuracy by task and hops.

    Attributes:
        rows: One per (task, hops): `n`, `accuracy` (right final answers) with `low` and `high` (Wilson, 95%),
            `exact` (chains without a wrong slot) with `exact_low` and `exact_high`, `n_read` (traces whose chain is
            known and could be read, over which `exact` is the share; None for all three if there are none), `n_cut`
            (responses cut by the token limit) and `tokens` (mean response length). Traces without a problem are under
            the task "unknown", with `hops` None.
    """

    rows: list[dict[str, Any]]

    def summary(self) -> str:
        """Return one line per task."""
        lines = []
        for task in dict.fromkeys(row["task"] for row in self.rows):
            own = [row for row in self.rows if row["task"] == task]
            cells = [("" if r["hops"] is None else f"{r['hops']} hops ") + f"{r['accuracy']:.2f}" for r in own]
            lines.append(f"{'unknown task' if task == UNKNOWN_TASK else task}: {', '.join(cells)}")
        return "\n".join(lines)

    def to_frame(self) -> pa.Table:
        """Return `rows` as a table."""
        return pa.Table.from_pylist(self.rows)

    def plot(self, *, columns: int = 4) -> Figure:
        """Return right chains and right answers against hops, one panel per task, with 95% intervals."""
        from chainwright.figures import accuracy_by_hops

        return accuracy_by_hops(self.rows, columns=columns)


def n_read(row: Mapping[str, Any]) -> int:
    """Return how many traces of a row of `Accuracy` have a chain that is known and could be read."""
    return int(row.get("n_read", row["n"]))


def n_exact(row: Mapping[str, Any]) -> int:
    """Return how many of them have every slot right."""
    return round((row["exact"] or 0.0) * n_read(row))


def evaluate(traces: Sequence[Trace]) -> Accuracy:
    """Return accuracy by task and hops.

    Right final answers and right chains are both counted: a parity answer is right half of the time by chance, a chain
    without a wrong slot almost never. A chain that is unknown, or that the response does not write down, counts neither
    as right nor as wrong.

    Args:
        traces: Traces of problems, or traces that were judged elsewhere (`is_correct` is set).

    Raises:
        BadInput: A trace was not judged, and has no problem to be judged by.
    """
    cells: dict[tuple[str, int | None], list[Trace]] = defaultdict(list)
    for i, trace in enumerate(traces):
        if trace.is_correct is None:
            raise BadInput(_unjudged(i, trace))
        problem = trace.problem
        cells[(UNKNOWN_TASK, None) if problem is None else (problem.task, problem.hops)].append(trace)
    order = list(dict.fromkeys(task for task, _ in cells))
    ordered = sorted(cells.items(), key=lambda item: (order.index(item[0][0]), item[0][1] or 0))
    return Accuracy(
        rows=[_row(task, hops, group) for (task, hops), group in ordered], config={"interval": "Wilson 95%"}
    )


def _unjudged(i: int, trace: Trace) -> str:
    if trace.problem is not None:
        return f"Trace {i} was not judged by its problem; make it with Trace.from_text or from_ids."
    return (
        f"Trace {i} has no problem and no judgement, so it is unknown whether it is right; give it its problem, or "
        "is_correct if it was judged elsewhere."
    )


def _row(task: str, hops: int | None, group: list[Trace]) -> dict[str, Any]:
    n = len(group)
    n_right = sum(bool(t.is_correct) for t in group)
    chains = [t.is_exact for t in group if t.is_exact is not None]
    low, high = wilson(n_right, n)
    exact_low, exact_high = wilson(sum(chains), len(chains)) if chains else (None, None)
    return {
        "task": task,
        "hops": hops,
        "n": n,
        "accuracy": n_right / n,
        "low": low,
        "high": high,
        "exact": sum(chains) / len(chains) if chains else None,
        "exact_low": exact_low,
        "exact_high": exact_high,
        "n_read": len(chains),
        "n_cut": sum(not t.stopped for t in group),
        "tokens": sum(len(t.response_ids) for t in group) / n,
    }
