"""Chains that one way of decoding fixes or breaks, side by side with what another wrote."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import zip_longest
from typing import Any

from chainwright._registry import register
from chainwright.evaluation.flips import Flips
from chainwright.figures.words import title_of
from chainwright.report.section import Material, Section

MAX_BYTES = 3_000_000


@register("section", "flips")
def section(material: Material) -> Section | None:
    """Return the section; None without chains on which ways of decoding disagree."""
    findings = [one for one in material.of(Flips) if one.problems]
    if not findings:
        return None
    sets = [shown(one, MAX_BYTES // len(findings)) for one in findings]
    words = {
        "titles": [one.title or "Ways of decoding" for one in findings],
        "n_problems": [one.n_problems for one in findings],
        "n_all": sum(len(one.problems) for one in findings),
        "n_shown": sum(len(one["problems"]) for one in sets),
        "has_flags": any(answer["flagged"] is not None for one in findings for row in one.answers for answer in row),
    }
    return Section("flips", "Flips", words, data=sets, order=360, shows=findings)


def shown(found: Flips, max_bytes: int) -> dict[str, Any]:
    """Return plain values for the page: as many problems as fit, of each task in turn."""
    chains: dict[int, int] = {}
    kept, left = [], max_bytes
    for i in _in_turn(found):
        new = dict.fromkeys(a["chain"] for a in found.answers[i] if a["chain"] not in chains)
        left -= len(found.problems[i]["prompt"]) + 80 * len(found.names) + sum(5 * len(found.chains[c]) for c in new)
        if left < 0:
            break
        chains.update({c: len(chains) + k for k, c in enumerate(new)})
        kept.append(i)
    return {
        "names": list(found.names),
        "texts": list(found.texts),
        "chains": [list(found.chains[c]) for c in chains],
        "problems": [_problem(found, i, chains) for i in sorted(kept)],
    }


def _in_turn(found: Flips) -> list[int]:
    """Return the problems: the first of each task, then the second of each ..."""
    by_task: dict[str, list[int]] = {}
    for i, problem in enumerate(found.problems):
        by_task.setdefault(problem["task"], []).append(i)
    return [i for turn in zip_longest(*by_task.values()) for i in turn if i is not None]


def _problem(found: Flips, i: int, chains: Mapping[int, int]) -> dict[str, Any]:
    problem = found.problems[i]
    return {
        "number": problem["index"],
        "task": title_of(problem["task"]),
        "hops": problem["hops"],
        "prompt": problem["prompt"],
        "answer": problem["answer"],
        "answers": [
            {
                "chain": chains[a["chain"]],
                "isRight": a["is_right"],
                "isCorrect": a["is_correct"],
                "isWhole": a["stopped"],
                "error": a["error"],
                "flagged": a["flagged"],
            }
            for a in found.answers[i]
        ],
    }
