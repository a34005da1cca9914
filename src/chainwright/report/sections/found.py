"""What was found, and how sure it is."""

from __future__ import annotations

from chainwright.figures.words import counted
from chainwright.report.opening import opening
from chainwright.report.section import Material, Section
from chainwright.report.words import certainty
from chainwright.studies.diagnosis.run import Diagnosis


def section(material: Material) -> Section | None:
    """Return the section; None without a diagnosis."""
    diagnosis = material.diagnosis
    if diagnosis is None:
        return None
    words = {
        "model": diagnosis.config.model,
        "n_errors": sum(row["n"] for row in diagnosis.errors.by_task),
        "opening": opening(diagnosis),
        "facts": _facts(diagnosis),
        "summary": [line.split(": ", 1) for line in diagnosis.summary()],
        "certainty": certainty(diagnosis),
    }
    return Section("found", "Found", words)


def _facts(diagnosis: Diagnosis) -> list[str]:
    source, config = diagnosis.provenance, diagnosis.config
    shown = [source.get(key, "") for key in ("model_type", "shape", "dtype")]
    versions = [f"{name} {source[name]}" for name in ("chainwright", "torch", "transformers") if name in source]
    revision = f"revision {source['revision']}" if source.get("revision") else ""
    drawn = "greedy" if config.temperature == 0 else f"temperature {config.temperature:g}"
    seeds = f"seed{'s' if len(config.seeds) > 1 else ''} {', '.join(map(str, config.seeds))}"
    asked = f"{counted(config.n, 'problem')} a cell, {config.rendering} rendering, {drawn}, {seeds}"
    return [part for part in (revision, *shown, asked, *versions) if part]
