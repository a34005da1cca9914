"""Ways of decoding compared: the table, the gains, and curves over hops."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from chainwright import figures
from chainwright._registry import register
from chainwright.evaluation.comparison import Comparison, n_read_of
from chainwright.figures.words import counted, listed, percent
from chainwright.report.section import Material, Section, drawn


@register("section", "comparison")
def section(material: Material) -> Section | None:
    """Return the section; None without a comparison."""
    comparisons = material.of(Comparison)
    if not comparisons:
        return None
    charts: dict[str, Any] = {}
    shown = [_shown(comparison, f"-{k}" if k else "", charts) for k, comparison in enumerate(comparisons)]
    return Section("comparison", "Comparison", {"comparisons": shown}, charts, order=350, shows=comparisons)


def _shown(found: Comparison, suffix: str, charts: dict[str, Any]) -> dict[str, Any]:
    """Return the words on one comparison, and add its figures to `charts`."""
    rows = [found.overall(name) for name in found.names]
    wide, narrow = (figures.ways_compared(rows, found.baseline, is_narrow=n) for n in (False, True))
    names = {"ways": f"ways{suffix}"}
    charts[names["ways"]] = drawn(wide, rows, narrow=narrow)
    by_task: dict[str, set[int]] = {}
    for row in found.cells:
        by_task.setdefault(row["task"], set()).add(row["hops"])
    if max(map(len, by_task.values())) > 1:
        for of in ("chains", "answers"):
            names[of] = f"{of}-by-hops{suffix}"
            wide, narrow = (figures.hop_curves(found.cells, found.baseline, of=of, columns=c) for c in (4, 2))
            charts[names[of]] = drawn(wide, found.cells, narrow=narrow)
    table = found.by_way()
    return {
        "title": found.title or "Ways of decoding",
        "baseline": found.baseline,
        "n": rows[0]["n"],
        "said": verdict(found),
        "columns": list(table[0]),
        "rows": table,
        "charts": names,
        "n_waiting": max(0, len(found.names) - figures.SHOWN),
    }


def verdict(found: Comparison) -> list[str]:
    """Return in sentences which ways gain, lose, or do not differ clearly from the baseline, in whole chains.

    In final answers where no chain was read.
    """
    base = found.overall(found.baseline)
    rows = [found.overall(name) for name in found.names if name != found.baseline]
    if all(row["exact"] is None for row in (base, *rows)):
        key, said = (
            "gain",
            [f"{found.baseline} gets {percent(base['accuracy'])} of {counted(base['n'], 'answer')} right."],
        )
        said.append("Whole chains are unknown: the problems have no slots, or no chain was read.")
    else:
        key, said = "exact_gain", [_chains(base, found.baseline)]
    others = [row for row in rows if row[key] is not None]
    better = [_gain(row, key) for row in others if row[f"{key}_low"] > 0]
    worse = [_gain(row, key) for row in others if row[f"{key}_high"] < 0]
    unclear = [_gain(row, key) for row in others if row[f"{key}_low"] <= 0 <= row[f"{key}_high"]]
    groups = (
        ("Points more", better),
        ("Points fewer", worse),
        ("Not distinguishable from it at this sample size", unclear),
    )
    return [*said, *(f"{words}: {listed(ways)}." for words, ways in groups if ways)]


def _chains(row: Mapping[str, Any], name: str) -> str:
    n_read = n_read_of(row)
    if not n_read:
        return f"No whole chain of {name} was read."
    among = "" if n_read == row["n"] else f" that were read (of {row['n']})"
    return f"{name} gets {percent(row['exact'])} of {counted(n_read, 'whole chain')}{among} right."


def _gain(row: Mapping[str, Any], key: str) -> str:
    return f"{row['name']} ({100 * row[key]:+.1f})"
