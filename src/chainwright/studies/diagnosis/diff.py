"""Two diagnoses side by side.

Where both asked the same problems (same task, hops, seed and text), the difference is taken problem by problem and its
interval from the discordant pairs; elsewhere from the two shares.

Source: paired interval: Agresti and Min, Statistics in Medicine 24 (2005), half a pair added to each of the four kinds;
unpaired: Newcombe, Statistics in Medicine 17 (1998), method 10 (from Wilson intervals).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from pathlib import Path
from typing import Any, NamedTuple

from chainwright._stats import Interval, wilson
from chainwright.diagnose.errors import ErrorTable
from chainwright.diagnose.heads.roles import RoleFinding
from chainwright.evaluation.accuracy import UNKNOWN_TASK
from chainwright.studies import manifest
from chainwright.studies.diagnosis.plan import Diagnosis, open_diagnosis
from chainwright.traces import Trace

_Z = 1.959964
MEASURES: Mapping[str, Callable[[Trace], bool]] = {
    "answers": lambda trace: bool(trace.is_correct),
    "chains": lambda trace: trace.is_exact is True,
}
_Cell = tuple[str, int]


@dataclass(frozen=True)
class CellDifference:
    """One measure ("answers" or "chains") at one task and hop count; None where a study does not have it.

    Attributes:
        difference, low, high: B - A with its 95% interval.
        problems: How many, and whether they are shared.
    """

    measure: str
    task: str
    hops: int
    a: float | None
    a_low: float | None
    a_high: float | None
    b: float | None
    b_low: float | None
    b_high: float | None
    difference: float | None
    low: float | None
    high: float | None
    problems: str


class ErrorDifference(NamedTuple):
    """A first-error type's share of a task's errors in each study, such as "12 of 30 (40%)"."""

    task: str
    error_type: str
    a: str
    b: str


@dataclass(frozen=True)
class StudyDifference:
    """What differs between two diagnoses.

    Attributes:
        settings: A phrase for each setting or property of the model that differs.
        heads: A sentence for each key error type that was searched in either.
    """

    settings: list[str]
    cells: list[CellDifference]
    errors: list[ErrorDifference]
    heads: list[str]


def difference(a: str | Path, b: str | Path) -> StudyDifference:
    """Return what differs between the diagnoses in two folders.

    Raises:
        BadInput: One of them is no finished diagnosis, or is damaged.
    """
    first, second = open_diagnosis(a), open_diagnosis(b)
    mine, theirs = _by_cell(first.traces), _by_cell(second.traces)
    every = list(dict.fromkeys([*mine, *theirs]))
    order = list(dict.fromkeys(task for task, _ in every))
    every.sort(key=lambda cell: (order.index(cell[0]), cell[1]))
    return StudyDifference(
        _settings(first, second),
        [_cell(measure, cell, mine.get(cell, []), theirs.get(cell, [])) for measure in MEASURES for cell in every],
        _errors(first, second),
        _heads(first, second),
    )


def _settings(first: Diagnosis, second: Diagnosis) -> list[str]:
    before, after = (manifest.flat({"config": d.config.record(), "model": dict(d.provenance)}) for d in (first, second))
    return [
        f"{name}: {_shown(before, name)} in A, {_shown(after, name)} in B"
        for name in dict.fromkeys([*before, *after])
        if before.get(name) != after.get(name)
    ]


def _shown(values: Mapping[str, Any], name: str) -> str:
    return json.dumps(values[name], ensure_ascii=False) if name in values else "not set"


def _by_cell(traces: Sequence[Trace]) -> dict[_Cell, list[Trace]]:
    cells: dict[_Cell, list[Trace]] = {}
    for trace in traces:
        problem = trace.problem
        cells.setdefault((UNKNOWN_TASK, 0) if problem is None else (problem.task, problem.hops), []).append(trace)
    return cells


def _cell(measure: str, cell: _Cell, first: Sequence[Trace], second: Sequence[Trace]) -> CellDifference:
    is_right = MEASURES[measure]
    shares = [_share([is_right(trace) for trace in traces]) for traces in (first, second)]
    found: tuple[float | None, float | None, float | None] = (None, None, None)
    problems = f"{len(first)} and {len(second)}"
    if first and second:
        pairs = [(is_right(x), is_right(y)) for x, y in _shared(first, second)]
        if len(pairs) == min(len(first), len(second)):
            found, problems = paired(pairs), f"{len(pairs)} shared"
        else:
            found = unpaired([is_right(t) for t in first], [is_right(t) for t in second])
    return CellDifference(measure, *cell, *shares[0], *shares[1], *found, problems)


def _share(right: Sequence[bool]) -> tuple[float | None, float | None, float | None]:
    return (sum(right) / len(right), *wilson(sum(right), len(right))) if right else (None, None, None)


def _shared(first: Sequence[Trace], second: Sequence[Trace]) -> list[tuple[Trace, Trace]]:
    """Return pairs of traces of the same problem; one that was drawn twice is paired twice at most."""
    waiting: dict[str, list[Trace]] = {}
    for trace in reversed(second):
        waiting.setdefault(_question(trace), []).append(trace)
    return [(trace, waiting[_question(trace)].pop()) for trace in first if waiting.get(_question(trace))]


def _question(trace: Trace) -> str:
    return (trace.prompt or "") if trace.problem is None else trace.problem.prompt


def paired(pairs: Sequence[tuple[bool, bool]]) -> tuple[float, float, float]:
    """Return the share of the second minus that of the first over the same problems, with a 95% interval."""
    n = len(pairs)
    lost, won = sum(a and not b for a, b in pairs), sum(b and not a for a, b in pairs)
    middle = (won - lost) / (n + 2)
    spread = _Z * sqrt(max(0.0, lost + won + 1 - (won - lost) ** 2 / (n + 2))) / (n + 2)
    return (won - lost) / n, max(-1.0, middle - spread), min(1.0, middle + spread)


def unpaired(first: Sequence[bool], second: Sequence[bool]) -> tuple[float, float, float]:
    """Return the share of the second minus that of the first over different problems, with a 95% interval."""
    p, q = sum(first) / len(first), sum(second) / len(second)
    a, b = wilson(sum(first), len(first)), wilson(sum(second), len(second))
    below, above = _distance(q - b.low, a.high - p), _distance(b.high - q, p - a.low)
    return q - p, *Interval(q - p - below, q - p + above)


def _distance(x: float, y: float) -> float:
    return sqrt(x * x + y * y)


def _errors(first: Diagnosis, second: Diagnosis) -> list[ErrorDifference]:
    mine, theirs = (
        {(row["task"], row["error_type"]): row for table in found.of(ErrorTable) for row in table.by_task}
        for found in (first, second)
    )
    rows = []
    for task, kind in dict.fromkeys([*mine, *theirs]):
        counts = [_count(found, task, kind) for found in (mine, theirs)]
        rows.append(ErrorDifference(task, kind, *counts))
    return sorted(rows, key=lambda row: [row.task])


def _count(rows: Mapping[tuple[str, str], Mapping[str, Any]], task: str, kind: str) -> str:
    total = next((row["n_errors"] for (name, _), row in rows.items() if name == task), 0)
    n = rows[task, kind]["n"] if (task, kind) in rows else 0
    return f"{n} of {total} ({n / total:.0%})" if total else "no errors"


def _heads(first: Diagnosis, second: Diagnosis) -> list[str]:
    mine, theirs = ({(role.task, role.error_type): role for role in found.roles} for found in (first, second))
    lines = []
    for key in dict.fromkeys([*mine, *theirs]):
        said = [_best(found[key]) if key in found else "not searched" for found in (mine, theirs)]
        shared = ""
        if key in mine and key in theirs:
            heads = [{tuple(head) for head in found[key].erroneous_processing} for found in (mine, theirs)]
            both = sorted(heads[0] & heads[1])
            shared = f"; erroneous-processing in both: {', '.join(f'L{x}H{y}' for x, y in both) or 'none'}"
        lines.append(f"Heads at {key[0]}, {key[1]}: A {said[0]}; B {said[1]}{shared}.")
    return lines


def _best(role: RoleFinding) -> str:
    layer, head = role.best_head
    if role.check is None:
        return f"best L{layer}H{head}, not checked"
    return f"best L{layer}H{head}, held out: fixes {role.check.corrected:.0%}, keeps {role.check.kept:.0%}"
