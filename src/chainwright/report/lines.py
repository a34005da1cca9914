"""The tables of findings as Markdown: those of a comparison, and `Tables` as they are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from chainwright._finding import Finding
from chainwright._tables import Tables, titled
from chainwright.evaluation.comparison import Comparison
from chainwright.figures.words import title_of


def lines_of(findings: Sequence[Finding]) -> Iterator[str]:
    """Yield every comparison and table of some findings, line by line."""
    for found in findings:
        if isinstance(found, Comparison):
            yield from comparison_lines(found)
        elif isinstance(found, Tables):
            yield from (*found.lines(), "")


def comparison_lines(found: Comparison) -> Iterator[str]:
    """Yield the tables of a comparison: the ways, chains right by cell, and gains by task."""
    n = found.overall(found.baseline)["n"]
    if found.title:
        yield from (f"## {found.title}", "")
    yield from titled(f"All {n} problems, beside '{found.baseline}'", found.by_way())
    if all(row["exact"] is None for row in found.rows):
        return
    if len({(row["task"], row["hops"]) for row in found.cells}) > 1:
        yield from titled("Chains right by task and hops", by_cell(found))
    if len({row["task"] for row in found.cells}) > 1:
        yield from titled("Gain in chains right by task", by_task(found))


def by_cell(found: Comparison) -> list[dict[str, Any]]:
    """Return one row per (task, hops): the share of whole chains that each way gets right."""
    cells = dict.fromkeys((row["task"], row["hops"]) for row in found.cells)
    rows = []
    for task, hops in cells:
        here = {row["name"]: row for row in found.cells if (row["task"], row["hops"]) == (task, hops)}
        shares = {name: _share(here[name]["exact"]) for name in found.names}
        rows.append({"task": title_of(task), "hops": hops, "n": here[found.baseline]["n"], **shares})
    return rows


def by_task(found: Comparison) -> list[dict[str, Any]]:
    """Return one row per (task, way): what the way gains over the baseline in whole chains."""
    return [
        {
            "task": title_of(row["task"]),
            "way": row["name"],
            "gain": f"{row['exact_gain']:+.3f}",
            "95%": f"{row['exact_gain_low']:+.2f} to {row['exact_gain_high']:+.2f}",
        }
        for row in found.rows
        if row["hops"] is None
        and row["task"] != "all"
        and row["name"] != found.baseline
        and row["exact_gain"] is not None
    ]


def _share(value: float | None) -> str | None:
    return None if value is None else f"{value:.2f}"
