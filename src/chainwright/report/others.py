"""Findings that no section shows: each with its summary, its figure and its table, so that none is omitted."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

from chainwright._finding import Finding
from chainwright._tables import cell, numeric_columns
from chainwright.figures.words import counted, listed
from chainwright.report.section import Material, Section, drawn

_MOST_ROWS = 100
_MOST_SAVED = 10_000


def section(material: Material) -> Section | None:
    """Return the section; None when there is no finding."""
    if not material.findings:
        return None
    charts: dict[str, Any] = {}
    findings = [_shown(i, finding, charts) for i, finding in enumerate(material.findings)]
    return Section("others", "Findings", {"findings": findings}, charts, order=850, shows=material.findings)


def _shown(i: int, finding: Finding, charts: dict[str, Any]) -> dict[str, Any]:
    """Return the words on one finding, and add its figure to `charts`."""
    rows = finding.to_frame().to_pylist()
    chart = None
    if type(finding).plot is not Finding.plot:  # the figure of the base class is the table, which follows anyway
        chart = f"finding-{i}"
        charts[chart] = drawn(finding.plot(), rows[:_MOST_SAVED])
    return {
        "title": title_of(finding),
        "summary": finding.summary().splitlines(),
        "chart": chart,
        "columns": list(rows[0]) if rows else [],
        "numeric": numeric_columns(rows[:_MOST_ROWS]),
        "rows": [{name: _text(value) for name, value in row.items()} for row in rows[:_MOST_ROWS]],
        "n_rows": len(rows),
        "kind": type(finding).__name__,
    }


def _text(value: Any) -> str:
    """Return a value for the table; four digits, since the size of the numbers is unknown here."""
    return f"{value:.4g}" if isinstance(value, float) else cell(value)


def title_of(finding: Finding) -> str:
    """Return what a finding is called in a heading: the words of its class, such as "Knockout effects"."""
    words = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", type(finding).__name__)
    return words.capitalize()


def contents(material: Material) -> str:
    """Return in one sentence what the report shows."""
    kinds = Counter(title_of(finding).lower() for finding in material.findings)
    named = [name if n == 1 else f"{n} of {name}" for name, n in kinds.items()]
    traces = f" and {counted(len(material.traces), 'trace')}" if material.traces else ""
    return f"This report shows {counted(len(material.findings), 'finding')}{traces}: {listed(named)}."
