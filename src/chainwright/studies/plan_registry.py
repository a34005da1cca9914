"""Which plan a kind of study belongs to, so that what it found can be read without its model."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from chainwright._errors import BadInput
from chainwright.studies.plan import Plan

# where plans are defined: read only when a study is looked into, since some of them stand above this module
_HOLDERS = (
    "chainwright.studies.diagnosis.plan",
    "chainwright.studies.generation",
    "chainwright.reproduce.back_attention.study",
    "chainwright.reproduce.iteration_heads.study",
    "chainwright.reproduce.stepflow.study",
    "chainwright.reproduce.tcr.study",
)


def plan_of(kind: str) -> type[Plan]:
    """Return the plan of a kind of study.

    Raises:
        BadInput: No plan has that kind.
    """
    known = known_plans()
    if kind not in known:
        raise BadInput(f"Nobody knows how to read a study of kind {kind!r}; known: {', '.join(sorted(known))}.")
    return known[kind]


def known_plans() -> dict[str, type[Plan]]:
    """Return every plan by its kind."""
    for module in _HOLDERS:
        import_module(module)
    return {plan.kind: plan for plan in _below(Plan) if "kind" in vars(plan)}


def _below(plan: type[Any]) -> list[type[Plan]]:
    return [kind for sub in plan.__subclasses__() for kind in (sub, *_below(sub))]
