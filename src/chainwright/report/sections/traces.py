"""The trace reader."""

from __future__ import annotations

from chainwright.report.readings import pick_traces, reader_data
from chainwright.report.section import Material, Section


def section(material: Material) -> Section | None:
    """Return the section; None without a diagnosis."""
    diagnosis = material.diagnosis
    if diagnosis is None:
        return None
    picks = pick_traces(diagnosis)
    words = {"n_groups": len(picks), "n_errors": sum(row["n"] for row in diagnosis.errors.by_task)}
    return Section("traces", "Traces", words, data=reader_data(diagnosis, picks))
