"""Accuracy by task and hops, and by the labels of problems; answers that could not be read are counted apart."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from chainwright._errors import BadInput
from chainwright._finding import Finding
from chainwright._registry import register
from chainwright.evaluation.clusters import has_samples, numbered, share_interval
from chainwright.traces import Trace

if TYPE_CHECKING:
    from plotly.graph_objects import Figure


MOST_UNREAD, MOST_VALUES = 20, 20
"""How many unread answers are listed, and how many values a label may have to be broken down by."""

_END_CHARACTERS = 160
UNKNOWN_TASK = "unknown"
"""The task of traces that were judged elsewhere and come without a problem; their `hops` is None."""


@register("finding", "Accuracy")
@dataclass(frozen=True, kw_only=True)
class Accuracy(Finding):
    """Accuracy by task and hops.

    An answer that could not be read is not a wrong one, and neither is one that the token limit cut off: both count in
    `n`, and apart. So `n` is the right, the wrong, the unread and the cut answers.

    Attributes:
        rows: One per (task, hops): `n`, `accuracy` (right final answers) with `low` and `high` (95%: Wilson,
            or bootstrap over problems where there are several responses to each),
            `exact` (chains without a wrong slot) with `exact_low` and `exact_high`, `n_read` (traces whose chain is
            known and could be read, over which `exact` is the share; None for all three if there are none), `n_cut`
            (responses cut by the token limit), `n_unread` (answers that could not be read in whole responses),
            `n_cut_answers` (those that the limit cut off), `n_looping` (responses that end in endless repetition,
            whatever their answer) and `tokens` (mean response length). Traces without a
            problem are under the task "unknown", with `hops` None; problems without a hop count have `hops` 0.
        by_label: One per (task, label, value) for each label of the problems, such as their level, with few values:
            `n`, `accuracy`, `low`, `high`, `n_unread` and `n_cut_answers` as in `rows`.
        unread: The first answers that could not be read: `trace` (its number), `task`, `id` of the problem or None,
            `answer` (the right one), `rule` (what was tried), `extracted` and `end` (the last characters of the
            response).
    """

    rows: list[dict[str, Any]]
    by_label: list[dict[str, Any]] = field(default_factory=list)
    unread: list[dict[str, Any]] = field(default_factory=list)

    def summary(self) -> str:
        """Return one line per task."""
        lines = []
        for task in dict.fromkeys(row["task"] for row in self.rows):
            own = [row for row in self.rows if row["task"] == task]
            cells = [(f"{r['hops']} hops " if r["hops"] else "") + f"{r['accuracy']:.2f}{_apart(r)}" for r in own]
            lines.append(f"{'unknown task' if task == UNKNOWN_TASK else task}: {', '.join(cells)}")
        return "\n".join(lines)

    def to_frame(self) -> pa.Table:
        """Return `rows` as a table."""
        return pa.Table.from_pylist(self.rows)

    def plot(self, *, columns: int = 4) -> Figure:
        """Return right chains and right answers against hops, one panel per task, with 95% intervals.

        Problems without a hop count are a list instead: each set, and each value of its labels.
        """
        from chainwright.figures import accuracy_by_hops, accuracy_by_label

        if self.rows and not any(row["hops"] or row["task"] == UNKNOWN_TASK for row in self.rows):
            return accuracy_by_label(self.rows, self.by_label)
        return accuracy_by_hops(self.rows, columns=columns)


def n_unread(row: Mapping[str, Any]) -> int:
    """Return how many answers of a row of `Accuracy` could not be read or were cut off."""
    return int(row.get("n_unread", 0)) + int(row.get("n_cut_answers", 0))


def n_read(row: Mapping[str, Any]) -> int:
    """Return how many traces of a row of `Accuracy` have a chain that is known and could be read."""
    return int(row.get("n_read", row["n"]))


def n_exact(row: Mapping[str, Any]) -> int:
    """Return how many of them have every slot right."""
    return round((row["exact"] or 0.0) * n_read(row))


def _apart(row: Mapping[str, Any]) -> str:
    """Return how many answers of a row are neither right nor wrong, such as " (2 of 40 not read, 1 cut)"."""
    unread, cut = int(row.get("n_unread", 0)), int(row.get("n_cut_answers", 0))
    parts = [f"{unread} of {row['n']} not read"] * bool(unread) + [f"{cut} of {row['n']} cut"] * bool(cut)
    looping = int(row.get("n_looping", 0))
    parts += [f"{looping} in endless repetition"] * bool(looping)
    return f" ({', '.join(parts)})" if parts else ""


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
    interval = "bootstrap over problems, 95%" if has_samples(traces) else "Wilson 95%"
    return Accuracy(
        rows=[_row(task, hops, group) for (task, hops), group in ordered],
        by_label=_by_label(traces),
        unread=_unread(traces),
        config={"interval": interval},
    )


def _unjudged(i: int, trace: Trace) -> str:
    if trace.problem is not None:
        return f"Trace {i} was not judged by its problem; make it with Trace.from_text or from_ids."
    return (
        f"Trace {i} has no problem and no judgement, so it is unknown whether it is right; give it its problem, or "
        "is_correct if it was judged elsewhere."
    )


def _row(task: str, hops: int | None, group: list[Trace]) -> dict[str, Any]:
    answers = _answers(group)
    chains = [t.is_exact for t in group if t.is_exact is not None]
    read = [number for number, t in zip(numbered(group), group, strict=True) if t.is_exact is not None]
    exact_low, exact_high = share_interval(chains, read) if chains else (None, None)
    return {
        "task": task,
        "hops": hops,
        **{key: answers[key] for key in ("n", "accuracy", "low", "high")},
        "exact": sum(chains) / len(chains) if chains else None,
        "exact_low": exact_low,
        "exact_high": exact_high,
        "n_read": len(chains),
        "n_cut": sum(not t.stopped for t in group),
        "n_unread": answers["n_unread"],
        "n_cut_answers": answers["n_cut_answers"],
        "n_looping": sum(t.is_looping for t in group),
        "tokens": sum(len(t.response_ids) for t in group) / len(group),
    }


def _answers(group: Sequence[Trace]) -> dict[str, Any]:
    """Return what became of the final answers of some traces."""
    n, outcomes = len(group), Counter(trace.outcome for trace in group)
    low, high = share_interval([bool(trace.is_correct) for trace in group], numbered(group))
    shares = {"n": n, "accuracy": outcomes["right"] / n, "low": low, "high": high}
    return shares | {"n_unread": outcomes["unread"], "n_cut_answers": outcomes["cut"]}


def _by_label(traces: Sequence[Trace]) -> list[dict[str, Any]]:
    """Return a row for each value of each label that splits the problems of a task into a few groups."""
    groups: dict[tuple[str, str], dict[Any, list[Trace]]] = {}
    for trace in traces:
        problem = trace.problem
        for label, value in (problem.labels if problem is not None else {}).items():
            assert problem is not None
            groups.setdefault((problem.task, label), {}).setdefault(value, []).append(trace)
    return [
        {"task": task, "label": label, "value": value, **_answers(group)}
        for (task, label), by_value in groups.items()
        if 1 < len(by_value) <= min(MOST_VALUES, _n_problems(by_value.values()) / 2)
        for value, group in sorted(by_value.items(), key=lambda item: _natural(item[0]))
    ]


def _n_problems(groups: Iterable[list[Trace]]) -> int:
    """Return how many different problems some traces answer; several responses to one are no reason for a group."""
    return len({trace.problem.prompt for group in groups for trace in group if trace.problem is not None})


def _natural(value: str | int | float) -> tuple[Any, ...]:
    """Return a key that sorts "Level 10" after "Level 9", and numbers before texts."""
    if not isinstance(value, str):
        return (0, value)
    return (1, *((0, int(part), "") if part.isdecimal() else (1, 0, part) for part in re.split(r"(\d+)", value)))


def _unread(traces: Sequence[Trace]) -> list[dict[str, Any]]:
    """Return the first answers that could not be read."""
    rows: list[dict[str, Any]] = []
    for i, trace in enumerate(traces):
        if trace.outcome != "unread" or trace.verdict is None or len(rows) == MOST_UNREAD:
            continue
        problem, verdict = trace.problem, trace.verdict
        rows.append(
            {
                "trace": i,
                "task": UNKNOWN_TASK if problem is None else problem.task,
                "id": None if problem is None else problem.labels.get("id"),
                "answer": None if problem is None else problem.answer,
                "rule": verdict.rule,
                "extracted": verdict.extracted,
                "end": (trace.response or "")[-_END_CHARACTERS:],
            }
        )
    return rows
