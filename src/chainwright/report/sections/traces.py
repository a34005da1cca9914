"""The trace reader."""

from __future__ import annotations

from chainwright.diagnose.heads.evidence import HeadEvidence
from chainwright.diagnose.other_tokens import Alternatives
from chainwright.report.readings import extras, reader_data
from chainwright.report.section import Material, Section


def section(material: Material) -> Section | None:
    """Return the section; None without a diagnosis."""
    diagnosis = material.diagnosis
    if diagnosis is None:
        return None
    others = next(iter(material.of(Alternatives)), None)
    data = reader_data(diagnosis, extras(diagnosis, others, material.of(HeadEvidence)))
    words = {
        "n_shown": len(data["traces"]),
        "n_all": data["n_all"],
        "has_others": others is not None,
        "has_evidence": bool(material.of(HeadEvidence)),
    }
    return Section("traces", "Traces", words, data=data)
