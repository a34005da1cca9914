"""The tables of a finished study, as Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from chainwright import tasks
from chainwright._files import read_json
from chainwright.evaluation import Comparison
from chainwright.repair._card import table
from chainwright.studies import Results, Study, clock

if TYPE_CHECKING:
    from chainwright.reproduce.tcr import ReproduceTCR


def study_lines(plan: ReproduceTCR, study: Study, done: Results) -> Iterator[str]:
    """Yield every table of a finished study, line by line."""
    found = Comparison.load(done["comparison"] / "comparison")
    n = found.overall(found.baseline)["n"]
    yield from _titled(f"All {n} problems, beside '{found.baseline}'", _ways(plan, found, done, study))
    yield from _titled("Chains right by task and hops", _by_cell(plan, found))
    yield from _titled("Gain in chains right by task", _by_task(plan, found))
    if "ablations" in done:
        for name, rows in read_json(done["ablations"] / "rows.json").items():
            yield from _titled(f"Ablations: {name}", rows)
    figures = done["repair"] / "figures.json"
    if figures.exists():
        yield from _titled("Tune problems", [{"measure": k, "value": v} for k, v in read_json(figures).items()])
    yield f"Study: {study.folder}"


def _titled(title: str, rows: list[dict[str, Any]]) -> Iterator[str]:
    if rows:
        yield from ("", f"### {title}", "", *table(rows))
    yield ""


def _ways(plan: ReproduceTCR, found: Comparison, done: Results, study: Study) -> list[dict[str, Any]]:
    took = clock.seconds_by_unit(study.folder)
    return [_way(plan, found.overall(way), plan.counts(done, way), took) for way in plan.asked.ways]


def _way(
    plan: ReproduceTCR, row: Mapping[str, Any], counts: Mapping[str, int], took: Mapping[str, float]
) -> dict[str, Any]:
    return {
        "way": row["name"],
        "answers right": row["accuracy"],
        "chains right": row["exact"],
        "gain": f"{row['exact_gain']:+.3f}",
        "95%": f"{row['exact_gain_low']:+.3f} to {row['exact_gain_high']:+.3f}",
        "mended": row["n_mended"],
        "broken": row["n_broken"],
        "p": f"{row['p']:.2g}",
        "flagged": f"{counts['n_flagged'] / max(1, counts['n_tokens']):.2%}" if counts else None,
        "tokens": f"{row['tokens']:.0f}",
        "seconds": plan.seconds_per_answer(took, str(row["name"])),
    }


def _by_cell(plan: ReproduceTCR, found: Comparison) -> list[dict[str, Any]]:
    cells = dict.fromkeys((r["task"], r["hops"]) for r in found.rows if r["hops"] is not None)
    rows = []
    for task, hops in cells:
        here = {r["name"]: r for r in found.rows if (r["task"], r["hops"]) == (task, hops)}
        shares = {way: f"{here[way]['exact']:.2f}" for way in plan.asked.ways}
        rows.append({"task": tasks.title(task), "hops": hops, **shares})
    return rows


def _by_task(plan: ReproduceTCR, found: Comparison) -> list[dict[str, Any]]:
    rows = []
    for row in found.rows:
        if row["hops"] is None and row["task"] != "all" and row["name"] != found.baseline:
            interval = f"{row['exact_gain_low']:+.2f} to {row['exact_gain_high']:+.2f}"
            rows.append({"task": row["task"], "way": row["name"], "gain": f"{row['exact_gain']:+.3f}", "95%": interval})
    return rows
