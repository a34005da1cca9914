"""The findings on errors that a diagnosis of tasks shows: how accuracy falls, which errors come first, how unsure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from chainwright import tasks
from chainwright._stats import wilson
from chainwright.diagnose.errors import KEY_SHARE
from chainwright.reproduce.findings.results import Result
from chainwright.studies.diagnosis.plan import Diagnosis

_TAU = 0.3  # nats, the paper's threshold
_LEAST_ERRORS = 5  # a task with fewer first errors has no usual one


def diagnosed_results(diagnosis: Diagnosis, command: str) -> Iterator[Result]:
    """Yield a result for each finding that the diagnosis can speak about.

    Args:
        diagnosis: A finished diagnosis of tasks.
        command: The command that made it.
    """
    for found in (_hops(diagnosis), _key_types(diagnosis), _recall(diagnosis), _entropy(diagnosis)):
        if found is not None:
            low, high = wilson(found.n_which, found.n)
            yield Result(
                finding=found.finding,
                model=diagnosis.config.model,
                value=found.n_which / found.n,
                shown=found.shown,
                low=low,
                high=high,
                n=found.n,
                n_what=found.n_what,
                seeds=diagnosis.config.seeds,
                command=command,
                note=found.note,
            )


class _Counted(NamedTuple):
    """A share of a finding: its id, how many of how many, both in words, what they are, and a note."""

    finding: str
    n_which: int
    n: int
    shown: str
    n_what: str
    note: str = ""


def _hops(diagnosis: Diagnosis) -> _Counted | None:
    ends: dict[str, list[dict[str, Any]]] = {}
    for row in sorted(diagnosis.accuracy.rows, key=lambda row: row["hops"]):
        if row["exact"] is not None:
            ends.setdefault(row["task"], []).append(row)
    curves = {task: rows for task, rows in ends.items() if len(rows) > 1 and rows[0]["exact"] > 0}
    if not curves:
        return None
    n_falls = sum(rows[-1]["exact"] <= rows[0]["exact"] / 2 for rows in curves.values())
    note = "Chains right by hops: " + "; ".join(
        f"{tasks.title(task)} " + ", ".join(f"{row['hops']}: {row['exact']:.2f}" for row in rows)
        for task, rows in curves.items()
    )
    return _Counted("tcr-hops", n_falls, len(curves), f"{n_falls} of {len(curves)} tasks", "tasks", f"{note}.")


def _key_types(diagnosis: Diagnosis) -> _Counted | None:
    first: dict[str, dict[str, Any]] = {}
    for row in diagnosis.errors.by_task:
        if row["error_type"] != "unparsed" and row["n_errors"] >= _LEAST_ERRORS:
            known = first.get(row["task"])
            first[row["task"]] = row if known is None or row["share"] > known["share"] else known
    if not first:
        return None
    n_key = sum(row["share"] >= KEY_SHARE for row in first.values())
    note = "; ".join(f"{tasks.title(t)} {row['error_type']} {row['share']:.0%}" for t, row in first.items())
    return _Counted("tcr-key-types", n_key, len(first), f"{n_key} of {len(first)} tasks", "tasks", f"{note}.")


def _recall(diagnosis: Diagnosis) -> _Counted | None:
    rows = [row for row in diagnosis.errors.by_task if row["task"] == "parity"]
    if not rows or rows[0]["n_errors"] < _LEAST_ERRORS:
        return None
    n = sum(row["n"] for row in rows if row["error_type"] == "name recall")
    total = rows[0]["n_errors"]
    return _Counted("tcr-recall", n, total, f"{n} of {total} ({n / total:.0%})", "first errors")


def _entropy(diagnosis: Diagnosis) -> _Counted | None:
    scores = diagnosis.scores or []
    entropies = [
        float(score.entropy[trace.first_error_position])
        for trace, score in zip(diagnosis.traces, scores, strict=False)
        if trace.first_error_position is not None and trace.first_error_position < len(score.entropy)
    ]
    if not entropies:
        return None
    n, total = sum(one > _TAU for one in entropies), len(entropies)
    return _Counted("tcr-entropy", n, total, f"{n} of {total} ({n / total:.0%})", "first errors", _flagged(diagnosis))


def _flagged(diagnosis: Diagnosis) -> str:
    """Return how many tokens up to the first errors are flagged, and how many of these are errors."""
    n_flagged = n_tokens = n_errors = 0
    for trace, score in zip(diagnosis.traces, diagnosis.scores or [], strict=False):
        error = trace.first_error_position
        end = len(trace) if error is None else error + 1
        flagged = score.entropy[trace.response_start : end] > _TAU
        n_flagged, n_tokens = n_flagged + int(flagged.sum()), n_tokens + len(flagged)
        n_errors += error is not None and error < len(score.entropy) and bool(score.entropy[error] > _TAU)
    if not n_flagged:
        return ""
    right = f"{n_errors / n_flagged:.0%} of these are errors"
    return f"Up to the first errors {n_flagged / n_tokens:.1%} of the tokens are flagged, and {right}."
