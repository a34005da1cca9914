"""The head of the report: what was measured, in words, and how sure it is."""

from __future__ import annotations

from chainwright._registry import register
from chainwright.diagnose.errors import ErrorTable
from chainwright.diagnose.facts import facts_of
from chainwright.diagnose.summary import paragraphs, summary_lines
from chainwright.report.brief import brief
from chainwright.report.section import Material, Section
from chainwright.report.words import certainty


@register("section", "found")
def section(material: Material) -> Section | None:
    """Return the section; None for a study of another kind than a diagnosis, which has a head of its own."""
    origin = material.origin
    if origin is not None and not origin.is_diagnosis:
        return None
    facts = facts_of(material.findings)
    parts = (facts.reach, facts.kinds, facts.heads, facts.answers, facts.sureness)
    has_facts = any(part is not None for part in parts)
    lines = summary_lines(facts, searched_heads=origin is not None and origin.searched_heads) if has_facts else []
    words = {
        "brief_lines": brief(material),
        "kind": "report" if origin is None else origin.kind,
        "title": material.title,
        "model": material.model,
        "is_about_errors": bool(material.of(ErrorTable)),
        "has_unlocated": not (facts.kinds and facts.kinds.n)
        and any(row["n_unlocated"] or row["n_unjudged"] for table in material.of(ErrorTable) for row in table.answers),
        "n_errors": 0 if facts.kinds is None else facts.kinds.n,
        "facts": [] if origin is None else origin.facts,
        "is_open": facts.answers is not None or (facts.sureness is not None and facts.reach is None),
        "written_by": None if origin is None else origin.written_by,
        "notes": [] if origin is None else origin.notes,
        "opening": paragraphs(facts, material.model) if has_facts else [],
        "summary": [line.split(": ", 1) for line in lines],
        "certainty": certainty(facts, material),
    }
    return Section("found", "Summary", words, order=0)
