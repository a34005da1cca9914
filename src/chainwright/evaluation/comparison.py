"""What one way of decoding gains over another on the same problems."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import pyarrow as pa
from scipy.stats import binomtest

from chainwright._errors import BadInput
from chainwright._finding import Finding
from chainwright._registry import register
from chainwright._stats import bootstrap_interval
from chainwright.traces import Trace

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

View = Literal["ways", "chains", "answers"]


@register("finding", "Comparison")
@dataclass(frozen=True, kw_only=True)
class Comparison(Finding):
    """Several ways of decoding on the same problems, each compared with the first.

    Attributes:
        baseline: The way that the others are compared with.
        rows: One per (task, hops, way), and one with `hops` None for each (task, way) and with `task` "all" for each
            way: `n`, `accuracy` and `exact` (chains known to be right), their paired differences from the baseline
            (`gain`, `exact_gain`) with `gain_low`, `gain_high`, `exact_gain_low`, `exact_gain_high` (bootstrap over
            problems, 95%), `n_fixed` and `n_broken` (chains right with it and wrong without, and the reverse) with
            `p` (exact McNemar test on them), and `tokens` (mean response length).
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
                line = f"{row['name']}: answers {row['accuracy']:.3f}, whole chains {row['exact']:.3f}"
                if row["name"] != self.baseline:
                    line += (
                        f" ({row['exact_gain']:+.3f}, 95% {row['exact_gain_low']:+.3f} to "
                        f"{row['exact_gain_high']:+.3f}; {row['n_fixed']} fixed, {row['n_broken']} broken)"
                    )
                lines.append(f"{line}, {row['tokens']:.0f} tokens")
        return "\n".join(lines)

    def to_frame(self) -> pa.Table:
        """Return `rows` as a table."""
        return pa.Table.from_pylist(self.rows)

    def by_way(self) -> list[dict[str, Any]]:
        """Return a table of the ways over all tasks for readers: shares, gains in whole chains, and costs."""
        return [self._way(self.overall(name)) for name in self.names]

    def _way(self, row: Mapping[str, Any]) -> dict[str, Any]:
        is_first = row["name"] == self.baseline
        kinds = dict.fromkeys(name for cost in self.costs.values() for name in cost)
        return {
            "way": row["name"],
            "answers right": row["accuracy"],
            "chains right": row["exact"],
            "gain": None if is_first else f"{row['exact_gain']:+.3f}",
            "95%": None if is_first else f"{row['exact_gain_low']:+.3f} to {row['exact_gain_high']:+.3f}",
            "fixed": None if is_first else row["n_fixed"],
            "broken": None if is_first else row["n_broken"],
            "p": None if is_first else f"{row['p']:.2g}",
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
    outcomes = {name: np.array([[bool(t.is_correct), t.is_exact is True] for t in traces[name]]) for name in names}
    groups = _groups(traces[names[0]])
    rows = []
    for (task, hops), at in groups.items():
        for name in names:
            lengths = [len(traces[name][i].response_ids) for i in at]
            row = _compared(outcomes[names[0]][at], outcomes[name][at], n_resamples, seed)
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
        if a.problem is None or a.problem != b.problem:
            raise BadInput(f"Trace {i} of {name!r} is of another problem than that of the first way, or of none.")
        if b.is_correct is None:
            raise BadInput(f"Trace {i} of {name!r} was not judged; make it with Trace.from_text or from_ids.")


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


def _compared(first: np.ndarray[Any, Any], other: np.ndarray[Any, Any], n_resamples: int, seed: int) -> dict[str, Any]:
    """Return the figures of one group; columns of the outcomes are answer and whole chain."""
    n = len(first)
    change = other.astype(float) - first
    n_fixed = int((other[:, 1] & ~first[:, 1]).sum())
    n_broken = int((first[:, 1] & ~other[:, 1]).sum())
    n_moved = n_fixed + n_broken
    row: dict[str, Any] = {"n": n}
    for i, (share, gain) in enumerate((("accuracy", "gain"), ("exact", "exact_gain"))):
        row |= {share: float(other[:, i].mean()), gain: float(change[:, i].mean())}
        low, high = bootstrap_interval(change[:, i], n_resamples=n_resamples, seed=seed)
        row |= {f"{gain}_low": low, f"{gain}_high": high}
    p = float(binomtest(n_fixed, n_moved).pvalue) if n_moved else 1.0
    return {**row, "n_fixed": n_fixed, "n_broken": n_broken, "p": p}
