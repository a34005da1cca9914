"""Attention heads: their roles at each key error type."""

from __future__ import annotations

from typing import Any, NamedTuple

from chainwright import figures
from chainwright.diagnose import RoleFinding
from chainwright.figures.words import counted, title_of
from chainwright.report.section import Material, Section, plain_figure
from chainwright.report.words import check_sentence

ROLES = {
    "erroneous_processing": "Erroneous-processing: the wrong token lives on them",
    "correct_processing": "Correct-processing: the right token lives on them",
    "answer_writing": "Answer-writing: they write the token that is said",
    "basic": "Basic: without them hardly anything is left, right or wrong",
}


class MapGroup(NamedTuple):
    """Head maps that answer one question."""

    title: str
    reading: str
    maps: tuple[str, ...]


MAP_GROUPS = (
    MapGroup(
        "Which heads write the answer?",
        "Directly, by what they add to the residual stream. Dots: the answer-writing heads. Both maps share a scale; "
        "what pushes against the token by more than \u22121 has the colour of \u22121.",
        ("writing_correct", "writing_erroneous"),
    ),
    MapGroup(
        "Which heads do the predictions lean on?",
        "Probability lost or won when the head is silenced, by whatever way. Dots: the correct-processing heads, the "
        "erroneous-processing heads, the best head. The two effects share a scale.",
        ("effect_correct", "effect_erroneous", "rectification"),
    ),
    MapGroup(
        "Which head, silenced, would mend more than it breaks?",
        "High in both maps is what to look for. Dot: the best head, the one with the highest sum.",
        ("corrected", "kept"),
    ),
)


def section(material: Material) -> Section | None:
    """Return the section; None without a diagnosis."""
    diagnosis = material.diagnosis
    if diagnosis is None:
        return None
    words = {
        "roles": [_role_words(found) for found in diagnosis.roles],
        "maps": figures.MAPS,
        "map_groups": MAP_GROUPS,
        "skipped": diagnosis.skipped,
    }
    return Section("heads", "Heads", words, data=[_head_data(found) for found in diagnosis.roles])


def _role_words(found: RoleFinding) -> dict[str, Any]:
    best = found.roles.best_head
    return {
        "label": _label(found),
        "sets": f"{counted(found.roles.n_erroneous, 'failing context')} and "
        f"{counted(found.roles.n_correct, 'right one')} matched in kind of slot and hop",
        "heads": [(label, getattr(found.roles, name)) for name, label in ROLES.items()],
        "best": best,
        "corrected": float(found.roles.corrected[best]),
        "kept": float(found.roles.kept[best]),
        "check": check_sentence(found.check),
    }


def _label(found: RoleFinding) -> str:
    return f"{title_of(found.task)}: {found.error_type}"


def _head_data(found: RoleFinding) -> dict[str, Any]:
    values, members = found.roles.maps, found.roles.members
    return {
        "label": _label(found),
        "best": list(found.roles.best_head),
        "maps": {name: plain_figure(figures.head_map(values, members, name)) for name in figures.MAPS},
    }
