"""What study this is, and how to make it again."""

from __future__ import annotations

import json

from chainwright._registry import register
from chainwright.report.brief import brief
from chainwright.report.section import Material, Section


@register("section", "study")
def section(material: Material) -> Section | None:
    """Return the section; None where the findings are of no study, or of a diagnosis, which has its own head."""
    origin = material.origin
    if origin is None or origin.is_diagnosis:
        return None
    words = {
        "brief_lines": brief(material),
        "title": material.title,
        "kind": origin.kind,
        "model": origin.model,
        "facts": origin.facts,
        "again": origin.again,
        "config": json.dumps(origin.config, indent=2, ensure_ascii=False),
    }
    return Section("study", "Study", words, order=10)
