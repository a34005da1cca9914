"""Tables of a study that have no section of their own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from chainwright import figures
from chainwright._registry import register
from chainwright._tables import Tables
from chainwright.report.section import Material, Section, drawn

_OF_THRESHOLDS = {"tau", "precision", "recall", "flagged", "gain", "low", "high"}


@register("section", "tables")
def section(material: Material) -> Section | None:
    """Return the section; None without tables."""
    findings = material.of(Tables)
    if not findings:
        return None
    charts: dict[str, Any] = {}
    groups = []
    for finding in findings:
        shown = []
        for name, rows in finding.tables.items():
            chart = f"thresholds{len(charts) or ''}" if rows and set(rows[0]) >= _OF_THRESHOLDS else None
            if chart is not None:
                charts[chart] = _thresholds(rows)
            shown.append(
                {"name": finding.short(name), "rows": rows, "columns": list(rows[0]) if rows else [], "chart": chart}
            )
        groups.append({"title": finding.title, "tables": shown, "notes": list(finding.notes)})
    return Section("tables", "Tables", {"groups": groups}, charts, order=800, shows=findings)


def _thresholds(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    wide, narrow = (figures.threshold_curves(rows, columns=columns) for columns in (2, 1))
    return drawn(wide, rows, narrow=narrow)
