"""Accuracy against hops."""

from __future__ import annotations

from chainwright import figures
from chainwright._registry import register
from chainwright.evaluation.accuracy import Accuracy, n_read
from chainwright.figures.words import counted, span_of
from chainwright.report.section import Material, Section, drawn
from chainwright.report.words import breaking_points, chance_levels, chance_note


@register("section", "accuracy")
def section(material: Material) -> Section | None:
    """Return the section; None without an accuracy."""
    accuracy = next((each for each in material.of(Accuracy) if each.rows), None)
    if accuracy is None:
        return None
    rows = accuracy.rows
    chance = chance_levels(material.traces)
    n_tasks = len({row["task"] for row in rows})
    wide, narrow = (figures.accuracy_by_hops(rows, chance=chance, columns=c) for c in (4, 2))
    words = {
        "breaking": breaking_points(accuracy),
        "chance": chance_note(chance),
        "n_unread": sum(int(row["n"]) - n_read(row) for row in rows),
        "each": counted(1, "problem")
        if {int(r["n"]) for r in rows} == {1}
        else f"{span_of(int(r['n']) for r in rows)} problems",
    }
    max_width = 340 * max(n_tasks, 2) if n_tasks < 4 else None
    charts = {"accuracy": drawn(wide, rows, narrow=narrow, max_width=max_width)}
    return Section("accuracy", "Accuracy", words, charts, order=100, shows=[accuracy])
