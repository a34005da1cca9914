"""Attention heads: their roles at each key error type, and the evidence, context by context."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from chainwright import figures
from chainwright._registry import register
from chainwright.diagnose.heads.evidence import HeadEvidence
from chainwright.diagnose.heads.roles import HeadRoles, RoleFinding
from chainwright.figures.words import counted, title_of
from chainwright.report.readings import Extras, extras
from chainwright.report.section import Material, Section, drawn, plain_figure
from chainwright.report.words import check_sentence

ROLES = {
    "erroneous_processing": "Erroneous-processing: the wrong token depends on them",
    "correct_processing": "Correct-processing: the right token depends on them",
    "answer_writing": "Answer-writing: they write the predicted token",
    "basic": "Basic: without them neither token is left, right or wrong",
}


@register("section", "heads")
def section(material: Material) -> Section | None:
    """Return the section; None without head roles, unless a diagnosis looked for some in vain."""
    roles, origin = material.of(HeadRoles), material.origin
    if not roles and not (origin is not None and origin.searched_heads):
        return None
    evidence = {(e.task, e.error_type): e for e in material.of(HeadEvidence)}
    known = extras(material)
    pairs = [(found, evidence.get(_key(found))) for found in roles]
    labels = [_label(found, i, len(roles)) for i, found in enumerate(roles)]
    shown = [e for _, e in pairs if e is not None]
    words = {
        "roles": [_role_words(label, *pair) for label, pair in zip(labels, pairs, strict=True)],
        "maps": figures.MAPS,
        "skipped": [] if origin is None else origin.skipped,
    }
    data = [_head_data(material, label, *pair, known) for label, pair in zip(labels, pairs, strict=True)]
    drawings = {_figure_name(e): _drawn(e) for e in shown}
    return Section("heads", "Heads", words, drawings, data, order=300, shows=[*roles, *shown])


def _key(found: HeadRoles) -> tuple[str, str]:
    return (found.task, found.error_type) if isinstance(found, RoleFinding) else ("", "")


def _figure_name(evidence: HeadEvidence) -> str:
    return f"heads-{evidence.task}-{evidence.error_type.replace(' ', '-')}"


def _drawn(evidence: HeadEvidence) -> dict[str, Any]:
    rows = evidence.counts(seen=not evidence.has_held_out)
    both = [figures.fixed_and_broken(rows, is_narrow=n) for n in (False, True)]
    return drawn(both[0], rows, narrow=both[1], max_width=760)


def _role_words(label: str, found: HeadRoles, evidence: HeadEvidence | None) -> dict[str, Any]:
    best = found.best_head
    return {
        "label": label,
        "sets": f"{counted(found.n_erroneous, 'failing context')} and "
        f"{counted(found.n_correct, 'right one')} matched in kind of slot and hop",
        "heads": [(label, getattr(found, name)) for name, label in ROLES.items()],
        "n_heads": found.kept.numel(),
        "best": best,
        "corrected": float(found.corrected[best]),
        "kept": float(found.kept[best]),
        "check": check_sentence(found.check if isinstance(found, RoleFinding) else None),
        "figure": None if evidence is None else _figure_name(evidence),
        "is_held_out": evidence is not None and evidence.has_held_out,
    }


def _label(found: HeadRoles, i: int, n: int) -> str:
    if isinstance(found, RoleFinding):
        return f"{title_of(found.task)}: {found.error_type}"
    return "Failing and right contexts" if n == 1 else f"Failing and right contexts, set {i + 1}"


def _head_data(
    material: Material, label: str, found: HeadRoles, evidence: HeadEvidence | None, known: Extras
) -> dict[str, Any]:
    values, members = found.maps, found.members
    return {
        "label": label,
        "best": list(found.best_head),
        "maps": {name: plain_figure(figures.head_map(values, members, name)) for name in figures.MAPS},
        "seen": _seen(material, found, known),
        "held_out": {} if evidence is None else _held_out(material, evidence, known),
    }


def _seen(material: Material, found: HeadRoles, known: Extras) -> dict[str, Any] | None:
    """Return what each head fixes and breaks in the contexts that the roles were computed on; None if unknown.

    Contexts are `[trace, position, hop, token]`, failing ones with the right token and its thousandths. A head has two
    lists: those that it fixes, with the thousandths of the right token then; those that it breaks, with the token that
    then comes first.
    """
    roles = found
    if roles.first_erroneous is None or roles.first_correct is None or not _has_traces(material, roles.sites_erroneous):
        return None
    assert roles.right_erroneous is not None and roles.right_correct is not None
    assert roles.p_right is not None and roles.p_right_whole is not None
    fixed = roles.first_erroneous == roles.right_erroneous[:, None, None]
    broken = roles.first_correct != roles.right_correct[:, None, None]
    n_layers, n_heads = roles.kept.shape
    by_head = (fixed, roles.p_right, broken, roles.first_correct)
    wrong = [
        [*_site(material, site, known), known.name(right), _thousandth(p)]
        for site, right, p in zip(roles.sites_erroneous, roles.right_erroneous, roles.p_right_whole, strict=True)
    ]
    return {
        "wrong": wrong,
        "right": [_site(material, site, known) for site in roles.sites_correct],
        "heads": {
            f"{layer},{head}": _lists([values[:, layer, head] for values in by_head], known)
            for layer in range(n_layers)
            for head in range(n_heads)
        },
    }


def _lists(of_head: Sequence[Tensor], known: Extras) -> list[list[list[Any]]]:
    fixed, p_right, broken, said = of_head
    return [
        [[i, _thousandth(p_right[i])] for i in fixed.nonzero()[:, 0].tolist()],
        [[i, known.name(said[i])] for i in broken.nonzero()[:, 0].tolist()],
    ]


def _held_out(material: Material, evidence: HeadEvidence, known: Extras) -> dict[str, Any]:
    """Return the same for the held-out contexts and the few heads that were silenced there."""
    places = [i for i in range(len(evidence.sites)) if not evidence.is_seen[i]]
    wrong = [i for i in places if evidence.is_erroneous[i]]
    right = [i for i in places if not evidence.is_erroneous[i]]
    if not wrong or not _has_traces(material, evidence.sites):
        return {}
    by_head = {}
    for k, (layer, head) in enumerate(evidence.heads, start=1):
        is_right = evidence.is_right[:, k]
        of_head = (is_right[wrong], evidence.p_right[wrong, k], ~is_right[right], evidence.top_ids[right, k, 0])
        by_head[f"{layer},{head}"] = _lists(of_head, known)
    return {
        "wrong": [
            [
                *_site(material, evidence.sites[i], known),
                known.name(evidence.right_ids[i]),
                _thousandth(evidence.p_right[i, 0]),
            ]
            for i in wrong
        ],
        "right": [_site(material, evidence.sites[i], known) for i in right],
        "heads": by_head,
    }


def _has_traces(material: Material, sites: Sequence[Sequence[int]]) -> bool:
    """Say whether contexts are known, and the report has the traces that they are in."""
    return bool(sites) and max(trace for trace, _ in sites) < len(material.traces)


def _site(material: Material, site: list[int], known: Extras) -> list[Any]:
    """Return the trace, the position, the hop (from 1) and the token there."""
    trace, at = material.traces[site[0]], site[1]
    hops = [slot.hop for slot in trace.slots if slot.start <= at < max(slot.end, slot.start + 1)]
    error = trace.first_error
    hop = error.hop if at == trace.first_error_position and error is not None else next(iter(hops), None)
    return [site[0], at, None if hop is None else hop + 1, known.name(trace.input_ids[at]).strip()]


def _thousandth(value: Tensor) -> int:
    return round(1000 * float(value))
