"""What study this is, and how to make it again."""

from __future__ import annotations

import json

from chainwright.report.section import Material, Section


def section(material: Material) -> Section | None:
    """Return the section; None where the findings are of no study, or of a diagnosis, which says so itself."""
    known = material.study
    if known is None or material.diagnosis is not None:
        return None
    source = known.model
    facts = [source.get(key, "") for key in ("model_type", "shape", "dtype")]
    facts += [f"{name} {source[name]}" for name in ("torch", "transformers") if name in source]
    words = {
        "kind": known.kind,
        "model": source.get("model", ""),
        "facts": [fact for fact in (*facts, f"chainwright {known.chainwright}") if fact],
        "again": known.again.replace("{folder}", "FOLDER"),
        "config": json.dumps(known.config, indent=2, ensure_ascii=False),
    }
    return Section("study", "Study", words)
