"""Accuracy by task and hops."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
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


@register("finding", "Accuracy")
@dataclass(frozen=True, kw_only=True)
class Accuracy(Finding):
    """Accuracy by task and hops.

    Attributes:
        rows: One a (task, hops): `n`, `accuracy` (right final answers) with `low` and `high` (Wilson, 95%),
            `exact` (whole chains without a wrong slot) with `exact_low` and `exact_high`, `n_cut` (responses
            that the token limit cut) and `tokens` (mean response length).
    """

    rows: list[dict[str, Any]]

    def summary(self) -> str:
        """Return one line a task."""
        lines = []
        for task in dict.fromkeys(row["task"] for row in self.rows):
            cells = [f"{r['hops']} hops {r['accuracy']:.2f}" for r in self.rows if r["task"] == task]
            lines.append(f"{task}: {', '.join(cells)}")
        return "\n".join(lines)

    def to_frame(self) -> pa.Table:
        """Return `rows` as a table."""
        return pa.Table.from_pylist(self.rows)

    def plot(self, *, columns: int = 4) -> Figure:
        """Return right chains and right answers against hops, a panel a task, with 95% intervals."""
        from chainwright.figures import accuracy_by_hops

        return accuracy_by_hops(self.rows, columns=columns)


def evaluate(traces: Sequence[Trace]) -> Accuracy:
    """Return accuracy by task and hops.

    Right final answers and right chains are both counted: a parity answer is right half of the time by
    chance, a chain without a wrong slot hardly ever.

    Args:
        traces: Traces of problems.

    Raises:
        BadInput: A trace has no problem to be judged by, or nobody has judged it.
    """
    cells: dict[tuple[str, int], list[Trace]] = defaultdict(list)
    for i, trace in enumerate(traces):
        if trace.problem is None:
            raise BadInput(
                f"Trace {i} has no problem, so nothing says whether it is right; evaluate traces of problems."
            )
        if trace.is_correct is None:
            raise BadInput(f"Trace {i} was not judged by its problem; make it with Trace.from_text or from_ids.")
        cells[trace.problem.task, trace.problem.hops].append(trace)
    order = list(dict.fromkeys(task for task, _ in cells))
    ordered = sorted(cells.items(), key=lambda item: (order.index(item[0][0]), item[0][1]))
    return Accuracy(
        rows=[_row(task, hops, group) for (task, hops), group in ordered], config={"interval": "Wilson 95%"}
    )


def _row(task: str, hops: int, group: list[Trace]) -> dict[str, Any]:
    n = len(group)
    n_right = sum(bool(t.is_correct) for t in group)
    n_exact = sum(t.first_error is None for t in group)
    low, high = wilson(n_right, n)
    exact_low, exact_high = wilson(n_exact, n)
    return {
        "task": task,
        "hops": hops,
        "n": n,
        "accuracy": n_right / n,
        "low": low,
        "high": high,
        "exact": n_exact / n,
        "exact_low": exact_low,
        "exact_high": exact_high,
        "n_cut": sum(not t.stopped for t in group),
        "tokens": sum(len(t.response_ids) for t in group) / n,
    }
