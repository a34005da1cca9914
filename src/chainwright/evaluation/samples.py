"""Accuracy with several responses to each problem: their mean, pass@k, and the accuracy of the majority's answer.

1. Traces of one problem belong together; n of them, of which c are right.
2. mean@S is the mean of c / n over problems: what one response is worth.
3. pass@k is the probability that of k responses, drawn without replacement from the n, at least one is right:
   1 - C(n - c, k) / C(n, k), which has no bias.
4. maj@k is the probability that the answer that most of k such responses give is right. Two answers are the same if the
   problem's checker takes one for the other. A tie is split evenly, and a response whose answer could not be read does
   not vote. It is computed exactly over all choices of k.
5. Intervals resample problems, never responses: those of one problem are alike.

Source of 3: Chen et al., Evaluating large language models trained on code (arXiv 2107.03374), section 2.1; of 4: Wang
et al., Self-consistency (arXiv 2203.11171).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import comb
from typing import Any, NamedTuple

import pyarrow as pa

from chainwright import checkers
from chainwright._errors import BadInput
from chainwright._finding import Finding
from chainwright._registry import register
from chainwright._stats import bootstrap_interval, wilson
from chainwright.evaluation.clusters import N_RESAMPLES, problem_key
from chainwright.tasks.base import Problem
from chainwright.traces import Trace

__all__ = ["SampleAccuracy", "evaluate_samples", "majority_accuracy", "pass_at"]


@register("finding", "SampleAccuracy")
@dataclass(frozen=True, kw_only=True)
class SampleAccuracy(Finding):
    """Accuracy over several responses to each problem.

    Attributes:
        rows: One per (task, hops, measure, k), and with `task` "all" over several of them: `measure` is "mean", "pass"
            or "maj", `k` the number of responses (for the mean, the fewest of a problem), `n` the number of problems,
            `value` with `low` and `high` (95%, bootstrap over problems). `value` of "maj" is None where the answers
            are not known.
        n_samples: The fewest responses of a problem.
        n_unread: Responses whose answer could not be read.
        n_cut: Responses that a limit ended.
        n_traces: All responses.
    """

    rows: list[dict[str, Any]]
    n_samples: int
    n_unread: int
    n_cut: int
    n_traces: int

    def summary(self) -> str:
        """Return one line per task and hop count."""
        lines = []
        for (task, hops), group in self._groups().items():
            where = f"{task}{'' if not hops else f', {hops} hops'}"
            cells = [f"{_label(row)} {row['value']:.3f}" for row in group if row["value"] is not None]
            lines.append(f"{where}: {', '.join(cells)} ({group[0]['n']} problems)")
        return "\n".join(lines)

    def to_frame(self) -> pa.Table:
        """Return `rows` as a table."""
        return pa.Table.from_pylist(self.rows)

    def table(self) -> list[dict[str, str]]:
        """Return a table for readers, with intervals."""
        return [
            {
                "task": row["task"],
                "hops": str(row["hops"] or "-"),
                "problems": str(row["n"]),
                "measure": _label(row),
                "value": "-" if row["value"] is None else f"{row['value']:.2f}",
                "95% interval": "-" if row["value"] is None else f"{row['low']:.2f}-{row['high']:.2f}",
            }
            for row in self.rows
        ]

    @property
    def note(self) -> str:
        """Return how the table is to be read."""
        words = (
            "95% intervals resample problems. pass@k: at least one of k responses is right. maj@k: the answer of most "
            "of k; ties are split, and unread answers do not vote."
        )
        return f"{words} {self.n_unread} of {self.n_traces} answers could not be read; {self.n_cut} responses were cut."

    def _groups(self) -> dict[tuple[str, int | None], list[dict[str, Any]]]:
        groups: dict[tuple[str, int | None], list[dict[str, Any]]] = defaultdict(list)
        for row in self.rows:
            groups[row["task"], row["hops"]].append(row)
        return groups


class _Votes(NamedTuple):
    """The responses to a problem: how many are right, and how many give each other answer.

    Attributes:
        n: All of them.
        n_right: Those that are right.
        others: Those of each wrong answer; None where the answers are not known.
        n_silent: Those whose answer could not be read.
    """

    n: int
    n_right: int
    others: list[int] | None
    n_silent: int


def evaluate_samples(
    traces: Sequence[Trace], *, ks: Sequence[int] | None = None, n_resamples: int = N_RESAMPLES, seed: int = 0
) -> SampleAccuracy:
    """Return mean@S, pass@k and maj@k of traces with several responses to each problem.

    Args:
        traces: Judged traces of problems, in any order.
        ks: Numbers of responses for pass@k and maj@k; None takes 2, 4, 8 ... and S, the fewest responses of a problem.
        n_resamples: Bootstrap samples of the intervals.
        seed: Decides them.

    Raises:
        BadInput: No traces, one that was not judged, or a k that is not in 1..S.
    """
    if not traces:
        raise BadInput("There are no traces to evaluate; generate some with n_samples (--samples).")
    if unjudged := [i for i, trace in enumerate(traces) if trace.is_correct is None]:
        raise BadInput(f"Trace {unjudged[0]} was not judged; give it its problem, or is_correct if judged elsewhere.")
    by_problem: dict[Any, list[Trace]] = defaultdict(list)
    for trace in traces:
        by_problem[problem_key(trace)].append(trace)
    n_samples = min(map(len, by_problem.values()))
    chosen = _checked(ks, n_samples)
    cells: dict[tuple[str, int | None], list[_Votes]] = defaultdict(list)
    for group in by_problem.values():
        problem = group[0].problem
        cell = ("unknown", None) if problem is None else (problem.task, problem.hops or None)
        cells[cell].append(_votes(problem, group))
    if len(cells) > 1:
        cells = {**cells, ("all", None): [votes for own in cells.values() for votes in own]}
    rows = [
        {"task": task, "hops": hops, **row}
        for (task, hops), own in cells.items()
        for row in _measured(own, n_samples, chosen, n_resamples, seed)
    ]
    return SampleAccuracy(
        rows=rows,
        n_samples=n_samples,
        n_unread=sum(trace.outcome == "unread" for trace in traces),
        n_cut=sum(not trace.stopped for trace in traces),
        n_traces=len(traces),
        config={"ks": list(chosen), "n_resamples": n_resamples, "seed": seed},
    )


def pass_at(n: int, n_right: int, k: int) -> float:
    """Return the probability that k of n responses, drawn without replacement, have a right one among them."""
    return 1 - comb(n - n_right, k) / comb(n, k)


def majority_accuracy(n_right: int, others: Sequence[int], n_silent: int, k: int) -> float:
    """Return the probability that the most frequent answer of k responses is right, drawn without replacement.

    Args:
        n_right: Responses that are right.
        others: Responses of each wrong answer.
        n_silent: Responses without an answer, which do not vote.
        k: How many are drawn. A tie of t answers with the right one counts 1 / t.
    """
    total = 0.0
    for x in range(1, min(n_right, k) + 1):
        # ways to draw d responses of wrong answers, none more than x times and t of them x times, by (d, t)
        ways: dict[tuple[int, int], int] = {(0, 0): 1}
        for count in others:
            more: dict[tuple[int, int], int] = defaultdict(int)
            for (drawn, tied), n in ways.items():
                for y in range(min(count, x, k - x - drawn) + 1):
                    more[drawn + y, tied + (y == x)] += n * comb(count, y)
            ways = more
        for (drawn, tied), n in ways.items():
            total += comb(n_right, x) * n * comb(n_silent, k - x - drawn) / (tied + 1)
    return total / comb(n_right + sum(others) + n_silent, k)


def _checked(ks: Sequence[int] | None, n_samples: int) -> list[int]:
    if ks is None:
        return sorted({2**i for i in range(1, n_samples.bit_length()) if 2**i <= n_samples} | {n_samples})
    if wrong := [k for k in ks if not 1 <= k <= n_samples]:
        raise BadInput(
            f"k must be from 1 to the number of responses to each problem, {n_samples}; got {wrong[0]}. Generate more "
            "with n_samples (--samples)."
        )
    return sorted(set(ks))


def _votes(problem: Problem | None, traces: Sequence[Trace]) -> _Votes:
    n_right = sum(bool(trace.is_correct) for trace in traces)
    silent = [trace for trace in traces if trace.verdict is not None and trace.verdict.is_right is None]
    wrong = [trace for trace in traces if not trace.is_correct and trace not in silent]
    texts = [trace.verdict.extracted if trace.verdict else None for trace in wrong]
    known = [text for text in texts if text is not None]
    others = _classes(problem, known) if problem is not None and len(known) == len(texts) else None
    return _Votes(len(traces), n_right, others, len(silent))


def _classes(problem: Problem, answers: Sequence[str]) -> list[int]:
    """Return how many answers there are of each meaning."""
    classes: dict[str, int] = {}
    for answer in answers:
        same = next((other for other in classes if answer == other or _same(problem, answer, other)), answer)
        classes[same] = classes.get(same, 0) + 1
    return list(classes.values())


def _same(problem: Problem, first: str, second: str) -> bool:
    """Return whether the checker of a problem takes one answer for the other."""
    if " ".join(first.casefold().split()) == " ".join(second.casefold().split()):
        return True
    if not problem.checker:
        from chainwright.checkers.answers import means_the_same

        return means_the_same(first, second)
    checker = checkers.load(problem.checker)
    if checker.check_gold(second, problem.choices) is not None:
        return False
    return checker.judge(f"The answer is {first}", second, choices=problem.choices).is_right is True


def _measured(
    votes: Sequence[_Votes], n_samples: int, ks: Sequence[int], n_resamples: int, seed: int
) -> list[dict[str, Any]]:
    measures: list[tuple[str, int, list[float] | None]] = [("mean", n_samples, [v.n_right / v.n for v in votes])]
    measures += [("pass", k, [pass_at(v.n, v.n_right, k) for v in votes]) for k in ks]
    for k in (k for k in ks if k > 2 or k == n_samples):
        known = [v.others for v in votes]
        shares = None
        if None not in known:
            shares = [majority_accuracy(v.n_right, v.others or (), v.n_silent, k) for v in votes]
        measures.append(("maj", k, shares))
    return [_row(name, k, values, len(votes), n_resamples, seed) for name, k, values in measures]


def _row(name: str, k: int, values: list[float] | None, n: int, n_resamples: int, seed: int) -> dict[str, Any]:
    row: dict[str, Any] = {"measure": name, "k": k, "n": n}
    if values is None:
        return row | dict.fromkeys(("value", "low", "high"))
    if all(value == values[0] for value in values) and values[0] in (0.0, 1.0):
        low, high = wilson(round(sum(values)), n)  # resampling cannot judge values that are all alike
    else:
        low, high = bootstrap_interval(values, n_resamples=n_resamples, seed=seed)
    return row | {"value": sum(values) / n, "low": low, "high": high}


def _label(row: Mapping[str, Any]) -> str:
    return f"{row['measure']}@{row['k']}"
