"""Curves: how sure the model was along responses, right answers against wrong ones."""

from __future__ import annotations

from typing import Any

from chainwright._registry import register
from chainwright.diagnose.curves import ANSWER, WHOLE, Curves
from chainwright.report.section import Material, Section, drawn

_NAMES = {"entropy": "entropy", "logprob": "log-probability"}


@register("section", "curves")
def section(material: Material) -> Section | None:
    """Return the section; None without curves."""
    found = next(iter(material.of(Curves)), None)
    if found is None:
        return None
    words = {
        "counts": found.counts,
        "n_problems": found.n_problems,
        "missing": found.missing(),
        "n_bins": found.config.get("n_bins"),
        "rows": _rows(found),
        "separation": [{**row, "name": _NAMES[row["measure"]]} for row in found.separation],
        "has_curves": bool(found.rows),
        "has_answers": any(row["place"] == ANSWER for row in found.rows),
    }
    charts = {"curves": drawn(found.plot(), found.rows, narrow=found.plot(columns=1))} if found.rows else {}
    return Section("curves", "Curves", words, charts, order=220, shows=[found])


def _rows(found: Curves) -> list[dict[str, Any]]:
    """Return a row per measure and whole place: both groups and their difference, each with its interval."""
    rows = []
    for measure in _NAMES:
        for place in (WHOLE, ANSWER):
            means = {row["group"]: row for row in found.rows if row["measure"] == measure and row["place"] == place}
            change = [row for row in found.differences if row["measure"] == measure and row["place"] == place]
            if means:
                said = {f"{group} ({_n(row)})": _said(row) for group, row in means.items()}
                rows.append({"measure": f"{_NAMES[measure]}, {place}", "groups": said,
                             "change": _said(change[0], "+.3f") if change else ""})  # fmt: skip
    return rows


def _n(row: dict[str, Any]) -> str:
    return f"n {row['n']:,}"


def _said(row: dict[str, Any], form: str = ".3f") -> str:
    between = "" if row["low"] is None else f" ({row['low']:{form}} to {row['high']:{form}})"
    return f"{row['mean']:{form}}{between}"
