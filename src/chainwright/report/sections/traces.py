"""The trace reader."""

from __future__ import annotations

from chainwright._finding import Finding
from chainwright._registry import register
from chainwright.diagnose.heads.evidence import HeadEvidence
from chainwright.diagnose.other_tokens import Alternatives
from chainwright.report.readings import extras, has_slots, reader_data
from chainwright.report.section import Material, Section


@register("section", "traces")
def section(material: Material) -> Section | None:
    """Return the section; None without traces."""
    if not material.traces:
        return None
    alternatives: list[Finding] = [*material.of(Alternatives)[:1]]
    data = reader_data(material, extras(material))
    words = {
        "n_shown": len(data["traces"]),
        "n_all": data["n_all"],
        "has_alternatives": bool(alternatives),
        "has_evidence": bool(material.of(HeadEvidence)),
        "has_scores": material.scores is not None,
        "has_tokens": material.has_tokens,
        "has_filters": bool(data["filters"]),
        "by": "First error" if any(map(has_slots, material.traces)) else "Outcome",
    }
    return Section("traces", "Traces", words, data=data, order=700, parts=["search"], shows=alternatives)
