"""Accuracy over several responses to each problem."""

from __future__ import annotations

from chainwright._registry import register
from chainwright.evaluation.samples import SampleAccuracy
from chainwright.report.section import Material, Section


@register("section", "samples")
def section(material: Material) -> Section | None:
    """Return the section; None where there was one response to each problem."""
    findings = material.of(SampleAccuracy)
    if not findings:
        return None
    groups = [{"rows": each.table(), "note": each.note, "n": each.n_samples} for each in findings]
    return Section("samples", "Samples", {"groups": groups}, order=150, shows=findings)
