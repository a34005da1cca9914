"""First errors: types, types by hops, and the model's uncertainty at the wrong token."""

from __future__ import annotations

from typing import Any

from chainwright import figures
from chainwright._registry import register
from chainwright.diagnose.errors import ErrorTable
from chainwright.evaluation.accuracy import Accuracy
from chainwright.figures.words import counted
from chainwright.report.section import Material, Section, drawn


@register("section", "errors")
def section(material: Material) -> Section | None:
    """Return the section; None without a table of first errors."""
    errors = next(iter(material.of(ErrorTable)), None)
    if errors is None:
        return None
    n_errors = sum(row["n"] for row in errors.by_task)
    words = {
        "n_errors": n_errors,
        "errors": counted(n_errors, "wrong chain"),
        "key_share": errors.config.get("key_share", 0.3),
        "n_entropies": len(errors.entropy),
        "n_unlocated": sum(row["n_unlocated"] for row in errors.answers),
        "n_unjudged": sum(row["n_unjudged"] for row in errors.answers),
    }
    charts = _figures(errors, material.of(Accuracy)[:1]) if n_errors else {}
    return Section("errors", "Errors", words, charts, order=200, shows=[errors])


def _figures(errors: ErrorTable, accuracy: list[Accuracy]) -> dict[str, Any]:
    # the table of errors has no row for a cell without errors, so the hops that were asked come from the accuracy
    cells = [row for each in accuracy for row in each.rows] or errors.rows
    hops: dict[str, list[int]] = {}
    for row in cells:
        if row["hops"] is not None and row["hops"] not in hops.setdefault(row["task"], []):
            hops[row["task"]].append(row["hops"])
    types = [
        figures.error_types(errors.by_task, key_share=errors.config.get("key_share"), is_narrow=n)
        for n in (False, True)
    ]
    by_hops = [figures.errors_by_hops(errors.rows, errors.by_task, hops=hops, columns=c) for c in (4, 2)]
    max_width = 340 * max(len(hops), 2) if len(hops) < 4 else None
    charts = {
        "error-types": drawn(types[0], errors.by_task, narrow=types[1]),
        "errors-by-hops": drawn(by_hops[0], errors.rows, narrow=by_hops[1], max_width=max_width),
    }
    if errors.entropy:
        entropy = [figures.entropy_by_slot(errors.by_task, errors.entropy, is_narrow=n) for n in (False, True)]
        charts["entropy"] = drawn(entropy[0], errors.entropy, narrow=entropy[1])
    return charts
