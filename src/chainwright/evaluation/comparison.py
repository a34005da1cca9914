"""What one way of decoding gains over another on the same problems."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import pyarrow as pa
import scipy

from chainwright._errors import BadInput
from chainwright._finding import Finding
from chainwright._registry import register
from chainwright._stats import cluster_interval
from chainwright.evaluation.clusters import numbered
from chainwright.traces import Trace

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

    from chainwright.tasks.base import Problem

View = Literal["ways", "chains", "answers"]


@register("finding", "Comparison")
@dataclass(frozen=True, kw_only=True)
class Comparison(Finding):
    """Several ways of decoding on the same problems, each compared with the first.

    Attributes:
        baseline: The way that the others are compared with.
        rows: One per (task, hops, way), and one with `hops` None for each (task, way) and with `task` "all" for each
            way: `n`, `n_read` (problems whose chain is known to be right or wrong, both with the way and with the
            baseline), `accuracy` and `exact` (right chains among those read), their paired differences from the
            baseline (`gain`, `exact_gain`) with `gain_low`, `gain_high`, `exact_gain_low`, `exact_gain_high` (bootstrap
            over problems, 95%), `n_fixed` and `n_broken` (chains right with it and wrong without, and the reverse) with
            `p` (exact McNemar test on them; with several responses to each problem, a sign test on the problems of
            which more or fewer are right), and `tokens` (mean response length). Everything about whole chains is None
            where no chain was read, as for problems without slots.
        costs: What each way cost besides, by name of the way and of the measure, where it was measured.
        title: What was compared.
    """

    baseline: str
    rows: list[dict[str, Any]]
    costs: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    title: str = ""

    @property
    def names(self) -> list[str]:
        """Return the ways, the baseline first."""
        return list(dict.fromkeys(row["name"] for row in self.rows))

    @property
    def cells(self) -> list[dict[str, Any]]:
        """Return the rows of single (task, hops) cells."""
        return [row for row in self.rows if row["hops"] is not None]

    def overall(self, name: str) -> dict[str, Any]:
        """Return the row of a way of decoding over all tasks."""
        return next(row for row in self.rows if row["name"] == name and row["task"] == "all")

    def summary(self) -> str:
        """Return one line for each way of decoding, over all tasks."""
        lines = []
        for row in self.rows:
            if row["task"] == "all":
                lines.append(f"{row['name']}: {self._line(row)}, {row['tokens']:.0f} tokens")
        return "\n".join(lines)

    def _line(self, row: Mapping[str, Any]) -> str:
        is_first = row["name"] == self.baseline
        answers = f"answers {row['accuracy']:.3f}"
        if row["exact"] is None:
            gain = "" if is_first else f" ({_signed(row, 'gain')})"
            return f"{answers}{gain}, whole chains unknown"
        n_read = n_read_of(row)
        among = "" if n_read == row["n"] else f" of the {n_read} that were read"
        moved = f"; {row['n_fixed']} fixed, {row['n_broken']} broken"
        gain = "" if is_first else f" ({_signed(row, 'exact_gain')}{moved})"
        return f"{answers}, whole chains {row['exact']:.3f}{among}{gain}"

    def to_frame(self) -> pa.Table:
        """Return `rows` as a table."""
        return pa.Table.from_pylist(self.rows)

    def by_way(self) -> list[dict[str, Any]]:
        """Return a table of the ways over all tasks for readers: shares, gains in whole chains, and costs.

        Gains are in answers where no chain was read, and the table says so; where some were not, it has their number.
        """
        return [self._way(self.overall(name)) for name in self.names]

    def _way(self, row: Mapping[str, Any]) -> dict[str, Any]:
        is_first = row["name"] == self.baseline
        kinds = dict.fromkeys(name for cost in self.costs.values() for name in cost)
        overall = [self.overall(name) for name in self.names]
        is_unread = all(other["exact"] is None for other in overall)
        key = "gain" if is_unread else "exact_gain"
        has_gain = not is_first and row[key] is not None
        has_chains = not is_first and row["exact"] is not None
        read = {} if all(n_read_of(other) in (0, other["n"]) for other in overall) else {"chains read": n_read_of(row)}
        return {
            "way": row["name"],
            "answers right": row["accuracy"],
            "chains right": row["exact"],
            **read,
            "gain in answers" if is_unread else "gain": f"{row[key]:+.3f}" if has_gain else None,
            "95%": f"{row[f'{key}_low']:+.3f} to {row[f'{key}_high']:+.3f}" if has_gain else None,
            "fixed": row["n_fixed"] if has_chains else None,
            "broken": row["n_broken"] if has_chains else None,
            "p": f"{row['p']:.2g}" if has_chains else None,
            "tokens": f"{row['tokens']:.0f}",
            **{kind: self.costs.get(row["name"], {}).get(kind) for kind in kinds},
        }

    def plot(self, view: View = "ways") -> Figure:
        """Return a figure: the ways with their gains, or right chains or answers against hops.

        Raises:
            BadInput: An unknown view.
        """
        from chainwright import figures

        if view not in get_args(View):
            raise BadInput(f"view must be one of {', '.join(get_args(View))}; got {view!r}.")
        if view == "ways":
            return figures.ways_compared([self.overall(name) for name in self.names], self.baseline)
        return figures.hop_curves(self.cells, self.baseline, of=view)


def compare(traces: Mapping[str, Sequence[Trace]], *, n_resamples: int = 2000, seed: int = 0) -> Comparison:
    """Return what each way of decoding gains over the first, paired by problem.

    Args:
        traces: Traces of each way, of the same problems in the same order. The first way is the baseline.
        n_resamples: Bootstrap samples of the intervals.
        seed: Decides them.

    Raises:
        BadInput: Fewer than one way, other problems in one of them, or traces without a judged problem.
    """
    if not traces or not all(traces.values()):
        raise BadInput("compare needs at least one way of decoding with at least one trace; got none.")
    names = list(traces)
    check_paired(traces)
    outcomes = {name: np.array([_outcome(trace) for trace in traces[name]]) for name in names}
    groups = _groups(traces[names[0]])
    rows = []
    for (task, hops), at in groups.items():
        for name in names:
            lengths = [len(traces[name][i].response_ids) for i in at]
            problems = numbered([traces[name][i] for i in at])
            row = _compared(outcomes[names[0]][at], outcomes[name][at], problems, n_resamples, seed)
            rows.append({"task": task, "hops": hops, "name": name, **row, "tokens": sum(lengths) / len(at)})
    return Comparison(baseline=names[0], rows=rows, config={"n_resamples": n_resamples, "seed": seed})


def check_paired(traces: Mapping[str, Sequence[Trace]]) -> None:
    """Raise BadInput unless all ways have judged traces of the same problems in the same order."""
    names = list(traces)
    for name in names:
        _check_pair(traces[names[0]], traces[name], name)


def _check_pair(first: Sequence[Trace], other: Sequence[Trace], name: str) -> None:
    if len(first) != len(other):
        raise BadInput(f"{name!r} has {len(other)} traces, the first way has {len(first)}; compare the same problems.")
    for i, (a, b) in enumerate(zip(first, other, strict=True)):
        if a.problem is None or not same_question(a.problem, b.problem):
            raise BadInput(f"Trace {i} of {name!r} is of another problem than that of the first way, or of none.")
        if a.info.get("sample") != b.info.get("sample"):
            raise BadInput(f"Trace {i} of {name!r} is of another sample of its problem than that of the first way.")
        if b.is_correct is None:
            raise BadInput(f"Trace {i} of {name!r} was not judged; make it with Trace.from_text or from_ids.")


def same_question(first: Problem, second: Problem | None) -> bool:
    """Return whether two problems ask the same, with whatever demonstrations before the question."""
    if first == second or second is None or not first.lines:
        return first == second
    return replace(first, prompt="") == replace(second, prompt="")


def _groups(traces: Sequence[Trace]) -> dict[tuple[str, int | None], list[int]]:
    """Return which traces belong to each (task, hops), to each task, and to all."""
    cells: dict[tuple[str, int | None], list[int]] = defaultdict(list)
    whole: dict[tuple[str, int | None], list[int]] = defaultdict(list)
    for i, trace in enumerate(traces):
        assert trace.problem is not None
        cells[trace.problem.task, trace.problem.hops].append(i)
        whole[trace.problem.task, None].append(i)
    order = list(whole)
    ordered = sorted(cells.items(), key=lambda item: (order.index((item[0][0], None)), item[0][1] or 0))
    return {**dict(ordered), **whole, ("all", None): list(range(len(traces)))}


def n_read_of(row: Mapping[str, Any]) -> int:
    """Return how many chains of a row were read; results of earlier versions took them all as read."""
    return int(row.get("n_read", row["n"]))


def _signed(row: Mapping[str, Any], key: str) -> str:
    return f"{row[key]:+.3f}, 95% {row[f'{key}_low']:+.3f} to {row[f'{key}_high']:+.3f}"


def _outcome(trace: Trace) -> tuple[float, float]:
    """Return whether the answer and the whole chain of a trace are right, NaN for a chain that was not read."""
    return float(bool(trace.is_correct)), float("nan") if trace.is_exact is None else float(trace.is_exact)


def _compared(
    first: np.ndarray[Any, Any], other: np.ndarray[Any, Any], problems: Sequence[int], n_resamples: int, seed: int
) -> dict[str, Any]:
    """Return the figures of one group; columns of the outcomes are answer and whole chain."""
    clusters = np.array(problems)
    is_read = ~np.isnan(first[:, 1]) & ~np.isnan(other[:, 1])
    row: dict[str, Any] = {"n": len(first), "n_read": int(is_read.sum())}
    for i, (share, gain) in enumerate((("accuracy", "gain"), ("exact", "exact_gain"))):
        rows = is_read if i else np.full(len(first), True)
        if not rows.any():
            row |= dict.fromkeys((share, gain, f"{gain}_low", f"{gain}_high"))
            continue
        change = other[rows, i] - first[rows, i]
        low, high = cluster_interval(change, clusters[rows].tolist(), n_resamples=n_resamples, seed=seed)
        row |= {share: float(other[rows, i].mean()), gain: float(change.mean())}
        row |= {f"{gain}_low": low, f"{gain}_high": high}
    if not is_read.any():
        return {**row, "n_fixed": None, "n_broken": None, "p": None}
    change = other[is_read, 1] - first[is_read, 1]
    n_fixed, n_broken = int((change > 0).sum()), int((change < 0).sum())
    by_problem = np.bincount(clusters[is_read], weights=change)
    n_up, n_moved = int((by_problem > 0).sum()), int((by_problem != 0).sum())
    p = float(scipy.stats.binomtest(n_up, n_moved).pvalue) if n_moved else 1.0
    return {**row, "n_fixed": n_fixed, "n_broken": n_broken, "p": p}
