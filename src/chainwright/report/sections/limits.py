"""What was skipped, what the methods cannot say, and how to make the report again."""

from __future__ import annotations

import json

from chainwright._registry import register
from chainwright.diagnose.errors import ErrorTable
from chainwright.diagnose.heads.roles import HeadRoles
from chainwright.report.gather import STUDY_FILE
from chainwright.report.section import Material, Section


@register("section", "limits")
def section(material: Material) -> Section | None:
    """Return the section; None without first errors, head roles or a diagnosis."""
    errors, has_roles = material.of(ErrorTable), bool(material.of(HeadRoles))
    origin = material.origin if material.origin is not None and material.origin.is_diagnosis else None
    if not (errors or has_roles or origin):
        return None
    searched_heads = has_roles or (origin is not None and origin.searched_heads)
    words = {
        "n_errors": sum(row["n"] for table in errors for row in table.by_task),
        "skipped": [] if origin is None else origin.skipped,
        "searched_all": origin is not None and origin.searched_heads and not origin.skipped,
        "has_errors": bool(errors),
        "searched_heads": searched_heads,
        "again": "" if origin is None else origin.again,
        "file": "" if origin is None else origin.file,
        "file_name": STUDY_FILE,
        "config": "" if origin is None else json.dumps(origin.config, indent=2, ensure_ascii=False),
    }
    return Section("limits", "Limits", words, order=900)
