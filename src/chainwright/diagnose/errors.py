"""First errors: of which type they are, at which hops, and how unsure the model was there.

Chains and answers are counted apart. A chain is wrong at its first wrong slot, whatever its answer: a parity answer is
right half of the time by chance. A wrong answer may have no known first error (a trace judged elsewhere, a problem
without slots); such traces have no type and are counted beside the types.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, get_args

import pyarrow as pa

from chainwright._errors import BadInput
from chainwright._finding import Finding
from chainwright._registry import register
from chainwright._stats import median_interval, wilson
from chainwright.evaluation.accuracy import UNKNOWN_TASK
from chainwright.scoring import TokenScores
from chainwright.traces import Trace

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

KEY_SHARE = 0.30
View = Literal["types", "hops", "entropy"]


@register("finding", "ErrorTable")
@dataclass(frozen=True, kw_only=True)
class ErrorTable(Finding):
    """First errors by task, hops and type.

    Attributes:
        rows: One per (task, hops, type): `task`, `hops`, `error_type`, `n` (errors of this type), `n_errors`
            (chains with a first error in the cell), `n_traces`, `share` (n / n_errors) with `low` and `high` (Wilson,
            95%).
        by_task: One per (task, type), over all hops, with `is_key`: at least 30% of the task's first errors.
        answers: One per task, "unknown" for traces without a problem: `n_traces`, `n_wrong` (wrong answers),
            `n_unlocated` (wrong answers whose first error is unknown), `n_unjudged` (traces that nothing judged) and
            `n_unread` (answers that could not be read or were cut, which are not wrong).
        entropy: One per (task, type): median entropy in nats at the first wrong token, `entropy_wrong`, and at
            the least sure token of the same kind of slot where the model was right, `entropy_right` (None if it
            never was), with their numbers `n_wrong` and `n_right`, and the 95% intervals of the medians, `wrong_low`,
            `wrong_high`, `right_low` and `right_high` (None for fewer than six tokens). Empty without token scores.
    """

    rows: list[dict[str, Any]]
    by_task: list[dict[str, Any]]
    entropy: list[dict[str, Any]]
    answers: list[dict[str, Any]] = field(default_factory=list)

    @property
    def key_types(self) -> dict[str, list[str]]:
        """Return each task's key error types, the most frequent first; "unparsed" is never one."""
        keys: dict[str, list[str]] = defaultdict(list)
        for row in self.by_task:
            if row["is_key"]:
                keys[row["task"]].append(row["error_type"])
        return dict(keys)

    def summary(self) -> str:
        """Return one line per task with errors, and one on traces that were not judged."""
        unlocated = {row["task"]: row["n_unlocated"] for row in self.answers if row["n_unlocated"]}
        named = dict.fromkeys([*(row["task"] for row in self.by_task), *unlocated])
        lines = [self._line(task, unlocated.get(task, 0)) for task in named]
        n_unread = 0 if self.by_task else sum(row.get("n_unread", 0) for row in self.answers)
        if n_unread:
            lines.append(f"{_counted(n_unread, 'answer')} could not be read or {_was(n_unread)} cut.")
        lines = lines or ["No errors."]
        if n_unjudged := sum(row["n_unjudged"] for row in self.answers):
            lines.append(f"{_counted(n_unjudged, 'trace')} {_was(n_unjudged)} not judged.")
        return "\n".join(lines)

    def _line(self, task: str, n_unlocated: int) -> str:
        own = [row for row in self.by_task if row["task"] == task]
        name = "unknown task" if task == UNKNOWN_TASK else task
        if not own:
            return f"{name}: {_counted(n_unlocated, 'wrong trace')}, none with a located first error"
        shares = ", ".join(f"{row['error_type']} {row['share']:.0%}" for row in own)
        line = f"{name}: {_counted(own[0]['n_errors'], 'wrong chain')}; first errors: {shares}"
        if not n_unlocated:
            return line
        return f"{line}; besides, {_counted(n_unlocated, 'wrong answer')} without a located first error"

    def to_frame(self) -> pa.Table:
        """Return `rows` as a table."""
        return pa.Table.from_pylist(self.rows)

    def plot(self, view: View = "types") -> Figure:
        """Return shares of the types, the types against hops, or entropies at wrong and right tokens.

        Args:
            view: "types", "hops" or "entropy".

        Raises:
            BadInput: An unknown view.
        """
        from chainwright import figures

        if view not in get_args(View):
            raise BadInput(f"view must be one of {', '.join(get_args(View))}; got {view!r}.")
        if view == "hops":
            return figures.errors_by_hops(self.rows, self.by_task)
        if view == "entropy":
            return figures.entropy_by_slot(self.by_task, self.entropy)
        return figures.error_types(self.by_task, key_share=self.config.get("key_share"))


def first_errors(
    traces: Sequence[Trace], scores: Sequence[TokenScores] | None = None, *, key_share: float = KEY_SHARE
) -> ErrorTable:
    """Return how the first errors of traces are spread over types.

    Traces without a problem have no slots: they count as wrong answers without a located error if they were judged
    elsewhere as wrong, and as unjudged if they were not judged.

    Args:
        traces: Traces of problems, or traces that were judged elsewhere.
        scores: `score` of each trace in the same order, for the entropies.
        key_share: Share of a task's first errors from which a type counts as a key type.

    Source: TCR (arXiv 2601.21214), section 2: the type of a response is that of its first wrong slot; key
    error types hold at least 30%. Departure: entropies are compared slot kind by slot kind, not over all tokens.
    """
    cells: dict[tuple[str, int], list[Trace]] = defaultdict(list)
    for trace in traces:
        if trace.problem is not None:
            cells[trace.problem.task, trace.problem.hops].append(trace)
    rows = [row for (task, hops), group in sorted(cells.items()) for row in _rows(group, task=task, hops=hops)]
    by_task: list[dict[str, Any]] = []
    for task in dict.fromkeys(task for task, _ in cells):
        group = [t for (name, _), cell in cells.items() if name == task for t in cell]
        by_task.extend(_rows(group, task=task))
    for row in by_task:
        row["is_key"] = row["share"] >= key_share and row["error_type"] != "unparsed"
    entropy = [] if scores is None else _entropies(traces, scores)
    config = {"key_share": key_share}
    return ErrorTable(rows=rows, by_task=by_task, answers=_answers(traces), entropy=entropy, config=config)


def _counted(n: int, noun: str) -> str:
    return f"{n} {noun}{'' if n == 1 else 's'}"


def _was(n: int) -> str:
    return "was" if n == 1 else "were"


def _answers(traces: Sequence[Trace]) -> list[dict[str, Any]]:
    """Return the counts of wrong, unlocated, unjudged and unread answers by task."""
    groups: dict[str, list[Trace]] = defaultdict(list)
    for trace in traces:
        groups[UNKNOWN_TASK if trace.problem is None else trace.problem.task].append(trace)
    return [
        {
            "task": task,
            "n_traces": len(group),
            "n_wrong": sum(t.outcome == "wrong" for t in group),
            "n_unlocated": sum(t.is_unlocated for t in group),
            "n_unjudged": sum(t.is_correct is None for t in group),
            "n_unread": sum(t.outcome in ("unread", "cut") for t in group),
        }
        for task, group in groups.items()
    ]


def _rows(group: list[Trace], **labels: Any) -> list[dict[str, Any]]:
    counts = Counter(t.first_error.error_type for t in group if t.first_error is not None)
    n_errors = sum(counts.values())
    return [
        {
            **labels,
            "error_type": kind,
            "n": n,
            "n_errors": n_errors,
            "n_traces": len(group),
            "share": n / n_errors,
            **wilson(n, n_errors)._asdict(),
        }
        for kind, n in counts.most_common()
    ]


def _entropies(traces: Sequence[Trace], scores: Sequence[TokenScores]) -> list[dict[str, Any]]:
    wrong: dict[tuple[str, str], list[float]] = defaultdict(list)
    right: dict[tuple[str, str], list[float]] = defaultdict(list)
    gold_type: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    for trace, token_scores in zip(traces, scores, strict=True):
        if trace.problem is None:
            continue
        task = trace.problem.task
        for slot in trace.slots:
            if slot.is_right and slot.end > slot.start:
                kind = trace.problem.slots[slot.slot].error_type
                right[task, kind].append(float(token_scores.entropy[slot.start : slot.end].max()))
        error = trace.first_error
        if error is not None and error.slot is not None and trace.first_error_position is not None:
            wrong[task, error.error_type].append(float(token_scores.entropy[trace.first_error_position]))
            gold_type[task, error.error_type][trace.problem.slots[error.slot].error_type] += 1
    rows = []
    for (task, kind), values in wrong.items():
        same_slots = right[task, gold_type[task, kind].most_common(1)[0][0]]
        rows.append(
            {
                "task": task,
                "error_type": kind,
                "entropy_wrong": _median(values),
                "n_wrong": len(values),
                "entropy_right": _median(same_slots),
                "n_right": len(same_slots),
                **_median_ends("wrong", values),
                **_median_ends("right", same_slots),
            }
        )
    return rows


def _median(values: list[float]) -> float | None:
    ordered = sorted(values)
    if not ordered:
        return None
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2


def _median_ends(side: str, values: list[float]) -> dict[str, float | None]:
    low, high = median_interval(values) or (None, None)
    return {f"{side}_low": low, f"{side}_high": high}
