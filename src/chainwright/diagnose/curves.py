"""How sure a model is along responses: entropy and log-probability by relative position, right against wrong.

1. Each token of a response has a relative position, (i + 1/2) / n; the positions are cut into bins of equal width.
2. Within a trace a bin is the mean over its tokens; within a group (right, wrong) it is the mean over traces that have
   tokens there, so that long responses do not count more than short ones.
3. Intervals come from resampling problems, not traces: several responses to one problem stay together.
4. The tokens of the final answer, where the checker extracted one, are a place of their own.

A difference says that the model is less sure in wrong responses. It does not say why: harder problems have longer and
less certain responses, whether they end right or wrong.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from chainwright._errors import BadInput
from chainwright._finding import Finding
from chainwright._registry import register
from chainwright._stats import percentile_interval, resamples
from chainwright.scoring import TokenScores
from chainwright.traces import Trace
from chainwright.traces.offsets import Tokenizer, token_offsets

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

MEASURES = ("entropy", "logprob")
GROUPS = ("right", "wrong")
_MOST_BINS = 20
ANSWER, WHOLE = "answer", "whole response"
Array = NDArray[np.float64]


@register("finding", "Curves")
@dataclass(frozen=True, kw_only=True)
class Curves(Finding):
    """Entropy and log-probability (nats) along responses, by whether the answer is right.

    Attributes:
        rows: One per measure ("entropy", "logprob"), group ("right", "wrong", or "all" if nothing was judged) and
            place: `start` and `end` (relative positions, 0 to 1; None for the places "answer" and "whole response"),
            `mean` with `low` and `high` (95%, None for a single problem) and `n` (traces).
        differences: One per measure and place where both groups are: wrong minus right, `mean`, `low`, `high`.
        separation: One per measure: `auc`, the probability that a wrong trace has the higher entropy (the lower
            log-probability) on average than a right one, with `low` and `high`.
        counts: Traces by outcome: "right", "wrong", "unread", "cut" and "unjudged". Only the first two are compared.
        n_problems: Number of different problems.
    """

    rows: list[dict[str, Any]]
    differences: list[dict[str, Any]]
    separation: list[dict[str, Any]]
    counts: dict[str, int]
    n_problems: int

    def summary(self) -> str:
        """Return the whole responses' means, what separates wrong from right, and what cannot be compared."""
        lines = [self._line(measure) for measure in MEASURES]
        if not self.separation:
            lines.append(self.missing())
        sides = {"entropy": "higher entropy", "logprob": "lower log-probability"}
        lines += [
            f"A wrong response has the {sides[row['measure']]} than a right one in {row['auc']:.0%} of "
            f"pairs{_between(row, '.0%')}."
            for row in self.separation
        ]
        return "\n".join(lines)

    def missing(self) -> str:
        """Return why right and wrong responses cannot be compared; "" if they are."""
        n_right, n_wrong = self.counts["right"], self.counts["wrong"]
        if n_right and n_wrong:
            return ""
        if not sum(self.counts[name] for name in ("right", "wrong", "unread", "cut")):
            return "No response was judged, so right and wrong ones cannot be compared."
        which = "right" if n_right else "wrong" if n_wrong else "unread or cut"
        lacking = "wrong" if n_right else "right"
        if not n_right and not n_wrong:
            return "No answer could be read, so there is nothing to compare."
        n = n_right or n_wrong
        return f"All {n} answers that could be read are {which}; without {lacking} ones nothing can be compared."

    def _line(self, measure: str) -> str:
        own = [row for row in self.rows if row["measure"] == measure and row["place"] == WHOLE]
        said = ", ".join(f"{row['group']} {row['mean']:.3f}{_between(row)} (n {row['n']})" for row in own)
        return f"{'Entropy' if measure == 'entropy' else 'Log-probability'} per token, nats: {said}."

    def to_frame(self) -> pa.Table:
        """Return `rows` as a table."""
        return pa.Table.from_pylist(self.rows)

    def plot(self, *, columns: int = 2) -> Figure:
        """Return both measures against the relative position, right and wrong with their intervals."""
        from chainwright import figures

        return figures.outcome_curves(self.rows, columns=columns)


class _Sample(NamedTuple):
    """Values of traces at places, `[N, P]` with NaN where a trace has none, with group and problem of each trace."""

    values: Array
    groups: list[str]
    problems: NDArray[np.int64]


def curves(
    traces: Sequence[Trace],
    scores: Sequence[TokenScores],
    tokenizer: Tokenizer | None = None,
    *,
    n_bins: int | None = None,
    n_resamples: int = 1000,
    seed: int = 0,
) -> Curves:
    """Return how entropy and log-probability run along responses, right ones against wrong ones.

    Answers that could not be read and responses that were cut are counted and not compared.

    Args:
        traces: The traces, judged or not.
        scores: `score` of each, in the same order.
        tokenizer: The tokenizer of the traces, to find the tokens of the final answer; without it, that place is
            missing.
        n_bins: Bins of relative position; None takes 20, or fewer where most responses have fewer tokens than that.
        n_resamples: Bootstrap samples of problems.
        seed: Seed of the bootstrap.

    Raises:
        BadInput: No traces, other numbers of scores than of traces, or fewer than one bin.
    """
    if not traces or len(traces) != len(scores) or (n_bins is not None and n_bins < 1):
        raise BadInput(
            f"curves needs traces, one score per trace and at least one bin; got {len(traces)} traces, {len(scores)} "
            f"scores and {_MOST_BINS if n_bins is None else n_bins} bins."
        )
    if n_bins is None:
        n_bins = max(1, min(_MOST_BINS, int(np.median([len(trace.response_ids) for trace in traces]))))
    is_judged = any(trace.outcome is not None for trace in traces)
    groups: list[str] = [trace.outcome or "unjudged" for trace in traces] if is_judged else ["all"] * len(traces)
    numbers: dict[Any, int] = {}
    problems = np.array([numbers.setdefault(_problem(trace, i), len(numbers)) for i, trace in enumerate(traces)])
    places = [*((k / n_bins, (k + 1) / n_bins) for k in range(n_bins)), ANSWER, WHOLE]
    spans = [None if tokenizer is None else answer_span(trace, tokenizer) for trace in traces]
    tables: dict[str, list[dict[str, Any]]] = {"rows": [], "differences": [], "separation": []}
    for measure in MEASURES:
        values = np.stack(
            [_along(trace, _values(score, measure), span, n_bins)
             for trace, score, span in zip(traces, scores, spans, strict=True)]
        )  # fmt: skip
        sample = _Sample(values, groups, problems)
        for name, found in _measured(measure, sample, places, n_resamples, seed).items():
            tables[name] += found
    outcomes = ["unjudged" if group == "all" else group for group in groups]
    return Curves(
        rows=tables["rows"],
        differences=tables["differences"],
        separation=tables["separation"],
        counts={name: outcomes.count(name) for name in ("right", "wrong", "unread", "cut", "unjudged")},
        n_problems=len(numbers),
        config={"n_bins": n_bins, "n_resamples": n_resamples, "seed": seed, "interval": "bootstrap over problems, 95%"},
    )


def answer_span(trace: Trace, tokenizer: Tokenizer) -> tuple[int, int] | None:
    """Return the tokens of the answer that the checker extracted, where the response writes it last; None without."""
    extracted = None if trace.verdict is None else trace.verdict.extracted
    at = (trace.response or "").rfind(extracted) if extracted else -1
    if extracted is None or at < 0:
        return None
    offsets = token_offsets(tokenizer, trace.response_ids.tolist(), keep_markers=True)
    if offsets.text != trace.response:
        return None
    inside = [i for i, (start, end) in enumerate(offsets.offsets) if start < at + len(extracted) and end > at]
    return (trace.response_start + inside[0], trace.response_start + inside[-1] + 1) if inside else None


def _problem(trace: Trace, i: int) -> Any:
    if (number := trace.info.get("problem")) is not None:
        return number
    return i if trace.problem is None else (trace.problem.task, trace.problem.prompt)


def _values(score: TokenScores, measure: str) -> Array:
    return np.asarray((score.entropy if measure == "entropy" else score.logprob).double())


def _along(trace: Trace, values: Array, span: tuple[int, int] | None, n_bins: int) -> Array:
    """Return the means of a trace's response in each bin, at the answer, and over all of it: `[n_bins + 2]`."""
    start = max(1, trace.response_start)
    own = values[start:]
    bins = np.minimum(((np.arange(len(own)) + 0.5) / max(1, len(own)) * n_bins).astype(int), n_bins - 1)
    known = ~np.isnan(own)
    n = np.bincount(bins[known], minlength=n_bins)
    total = np.bincount(bins[known], weights=own[known], minlength=n_bins)
    means = np.divide(total, n, out=np.full(n_bins, np.nan), where=n > 0)
    answer = np.nan if span is None else float(values[span[0] : span[1]].mean())
    return np.array([*means, answer, own[known].mean() if known.any() else np.nan])


def _measured(
    measure: str, sample: _Sample, places: Sequence[Any], n_resamples: int, seed: int
) -> Mapping[str, list[dict[str, Any]]]:
    names = [name for name in (*GROUPS, "all") if name in sample.groups]
    members = {name: np.array([group == name for group in sample.groups]) for name in names}
    drawn = _drawn(sample, members, n_resamples, seed)
    means = {name: _mean_of(sample.values[own], np.ones(int(own.sum()))) for name, own in members.items()}
    rows = [
        {"measure": measure, "group": name, **_place(place), "mean": float(means[name][p]),
         **_ends(drawn[name][:, p]), "n": int((~np.isnan(sample.values[members[name], p])).sum())}
        for name in names
        for p, place in enumerate(places)
        if not np.isnan(means[name][p])
    ]  # fmt: skip
    if not set(GROUPS) <= set(names):
        return {"rows": rows}
    change, drawn_change = means["wrong"] - means["right"], drawn["wrong"] - drawn["right"]
    differences = [
        {"measure": measure, **_place(place), "mean": float(change[p]), **_ends(drawn_change[:, p])}
        for p, place in enumerate(places)
        if not np.isnan(change[p])
    ]
    sign = 1.0 if measure == "entropy" else -1.0
    return {
        "rows": rows,
        "differences": differences,
        "separation": [{"measure": measure, **_auc(sample, members, sign, n_resamples, seed)}],
    }


def _place(place: Any) -> dict[str, Any]:
    if isinstance(place, str):
        return {"place": place, "start": None, "end": None}
    return {"place": f"{place[0]:.0%} to {place[1]:.0%}", "start": place[0], "end": place[1]}


def _weights(sample: _Sample, n_resamples: int, seed: int) -> Iterator[Array]:
    """Yield how often each trace is drawn when problems are, `[N]` per resample."""
    n = int(sample.problems.max()) + 1
    for block in resamples(n, n_resamples, seed):
        for row in block:
            yield np.bincount(row, minlength=n)[sample.problems].astype(float)


def _drawn(sample: _Sample, members: Mapping[str, Any], n_resamples: int, seed: int) -> dict[str, Array]:
    """Return the mean of each group at each place in every resample, `[R, P]`."""
    drawn: dict[str, list[Array]] = {name: [] for name in members}
    for weights in _weights(sample, n_resamples, seed):
        for name, own in members.items():
            drawn[name].append(_mean_of(sample.values[own], weights[own]))
    return {name: np.stack(means) for name, means in drawn.items()}


def _mean_of(values: Array, weights: Array) -> Array:
    """Return weighted means over traces, `[P]`; NaN where no weight falls on a known value."""
    known = ~np.isnan(values)
    total = weights @ np.where(known, values, 0.0)
    means: Array = np.divide(total, weights @ known, out=np.full(values.shape[1], np.nan), where=weights @ known > 0)
    return means


def _ends(drawn: Array) -> dict[str, float | None]:
    """Return the ends of an interval; None where resampling does not move the value, as with a single problem."""
    low, high = percentile_interval(drawn)
    return {"low": None, "high": None} if not low < high else {"low": low, "high": high}


def _auc(
    sample: _Sample, members: Mapping[str, Any], sign: float, n_resamples: int, seed: int
) -> dict[str, float | None]:
    """Return how often a wrong trace has the larger value of a pair, ties counting half, with its interval."""
    right, wrong = (sign * sample.values[members[name], -1] for name in GROUPS)
    above = (wrong[:, None] > right).astype(float) + 0.5 * (wrong[:, None] == right)
    drawn = []
    for weights in _weights(sample, n_resamples, seed):
        a, b = weights[members["wrong"]], weights[members["right"]]
        drawn.append(float(a @ above @ b / (a.sum() * b.sum())) if a.sum() and b.sum() else float("nan"))
    return {"auc": float(above.mean()), **_ends(np.array(drawn))}


def _between(row: Mapping[str, Any], form: str = ".3f") -> str:
    return "" if row["low"] is None else f" ({row['low']:{form}} to {row['high']:{form}})"
