"""What was skipped, what the method cannot say, and how to make the report again."""

from __future__ import annotations

import json

from chainwright.report.section import Material, Section
from chainwright.report.words import command


def section(material: Material) -> Section | None:
    """Return the section; None without a diagnosis."""
    diagnosis = material.diagnosis
    if diagnosis is None:
        return None
    words = {
        "n_errors": sum(row["n"] for row in diagnosis.errors.by_task),
        "skipped": diagnosis.skipped,
        "command": command(diagnosis.config),
        "config": json.dumps(diagnosis.config.record(), indent=2, ensure_ascii=False),
    }
    return Section("limits", "Limits", words)
