"""Back attention: what each way of mending reaches, where the module reads, and the conflict before and after."""

from __future__ import annotations

from typing import Any

from chainwright import figures
from chainwright.diagnose import BackAttentionFinding
from chainwright.report.section import Material, Section, drawn


def section(material: Material) -> Section | None:
    """Return the section; None without a study of back attention."""
    findings = material.of(BackAttentionFinding)
    if not findings:
        return None
    found = findings[0]
    charts = {"back-attention-fits": drawn(found.plot(), found.to_frame().to_pylist())}
    words: dict[str, Any] = {"rows": found.rows, "scratch": found.scratch, "maps": []}
    for group in ("right", "wrong"):
        weights = found.readings.get(group)
        if weights:
            name = f"back-attention-read-{group}"
            fig = figures.readings(weights, found.readings["positions"], found.readings["targets"])
            charts[name] = drawn(fig, _cells(found.readings, group))
            words["maps"].append({"name": name, "group": group, "n": found.readings[f"n_{group}"]})
    words["conflict"] = _conflict(found)
    return Section("back_attention", "Back attention", words, charts)


def _cells(readings: Any, group: str) -> list[dict[str, Any]]:
    return [
        {"depth": depth, "position": position, "weight": weight}
        for depth, row in zip(readings["targets"], readings[group], strict=True)
        for position, weight in zip(readings["positions"], row, strict=True)
    ]


def _conflict(found: BackAttentionFinding) -> dict[str, Any] | None:
    """Return the last position's contrast at the end of the stack, before and after."""
    if not found.conflict:
        return None
    return {
        "against": found.conflict["before"]["against"],
        "n": found.conflict["before"]["n"],
        "before": found.conflict["before"]["contrast"][-1][-1],
        "after": found.conflict["after"]["contrast"][-1][-1],
    }
