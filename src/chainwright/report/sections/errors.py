"""First errors: types, types by hops, and doubt at the wrong token."""

from __future__ import annotations

from typing import Any

from chainwright import figures
from chainwright.figures.words import counted
from chainwright.report.section import Material, Section, drawn
from chainwright.studies.diagnosis.run import Diagnosis


def section(material: Material) -> Section | None:
    """Return the section; None without a diagnosis."""
    diagnosis = material.diagnosis
    if diagnosis is None:
        return None
    n_errors = sum(row["n"] for row in diagnosis.errors.by_task)
    words = {
        "n_errors": n_errors,
        "errors": counted(n_errors, "wrong chain"),
        "key_share": diagnosis.errors.config.get("key_share", 0.3),
        "n_entropies": len(diagnosis.errors.entropy),
    }
    return Section("errors", "Errors", words, _figures(diagnosis) if n_errors else {})


def _figures(diagnosis: Diagnosis) -> dict[str, Any]:
    errors = diagnosis.errors
    hops: dict[str, list[int]] = {}
    for row in diagnosis.accuracy.rows:
        hops.setdefault(row["task"], []).append(row["hops"])
    types = [
        figures.error_types(errors.by_task, key_share=errors.config.get("key_share"), is_narrow=n)
        for n in (False, True)
    ]
    by_hops = [figures.errors_by_hops(errors.rows, errors.by_task, hops=hops, columns=c) for c in (4, 2)]
    max_width = 340 * max(len(hops), 2) if len(hops) < 4 else None
    found = {
        "error-types": drawn(types[0], errors.by_task, narrow=types[1]),
        "errors-by-hops": drawn(by_hops[0], errors.rows, narrow=by_hops[1], max_width=max_width),
    }
    if errors.entropy:
        doubt = [figures.entropy_by_slot(errors.by_task, errors.entropy, is_narrow=n) for n in (False, True)]
        found["entropy"] = drawn(doubt[0], errors.entropy, narrow=doubt[1])
    return found
