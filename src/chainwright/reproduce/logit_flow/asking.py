"""Questions of the study, what a model says to them, and which answers are followed.

A pretrained model is asked real facts (`tasks.facts`), a model of a made-up world those of its world. Rows are plain
values, so that they are stored once and every unit picks the same questions from them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, NamedTuple

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from chainwright._errors import BadInput
from chainwright.diagnose.flow.facts import said_to
from chainwright.diagnose.flow.prompts import FlowPrompt, flow_prompt, marks_of
from chainwright.lab.knowledge import KnowledgeConfig, answers
from chainwright.models.placement import input_device
from chainwright.tasks import Problem, facts
from chainwright.tasks.knowledge import category, questions

KNOWN, RIGHT = "known facts", "two hops, right"
SAID, MISSED = "two hops, wrong: what it says", "two hops, wrong: the right answer"
ROLES = {1: ("entity", "relation", "end", "elsewhere"),
         2: ("entity", "first relation", "second relation", "end", "elsewhere")}  # fmt: skip
_MOST_COMPOSITIONS = 2000
_ARTICLES = ("the", "a", "an")


class Query(NamedTuple):
    """One answer to follow: the context, its first token, a rival's first token or None, and each role's positions."""

    group: str
    input_ids: Tensor
    token_id: int
    conflict_id: int | None
    roles: Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Questions:
    """The questions of a model, how it is asked, and how its answers are named.

    Attributes:
        problems: Every question, of one hop and of two.
        said: Asks the model.
        outcome: Names an answer: "e3" is right with two hops, "e2" with one.
    """

    problems: Sequence[Problem]
    said: Callable[[PreTrainedModel, PreTrainedTokenizerBase, Sequence[Problem]], list[str]]
    outcome: Callable[[Problem, str], str]

    @classmethod
    def real(cls) -> Questions:
        """Return the questions about the real world."""
        one = [problem for relation in facts.relations() for problem in facts.one_hop(relation)]
        two = [problem for relation in facts.second_relations() for problem in facts.two_hop(relation)]
        return cls([*one, *two], said_to, facts.outcome)

    @classmethod
    def made_up(cls, recipe: KnowledgeConfig, seed: int) -> Questions:
        """Return the questions of a made-up world, at most 2000 of two hops, worded as the model was trained."""
        world, order = recipe.world, recipe.order
        compositions = Random(f"flow/{seed}").sample(
            world.compositions, min(_MOST_COMPOSITIONS, len(world.compositions))
        )
        problems = [*questions(world, world.facts, order), *questions(world, compositions, order)]
        return cls(problems, answers, _outcome)


def _outcome(problem: Problem, said: str) -> str:
    if problem.hops == 2:
        return category(problem, said)
    return "e2" if said == problem.answer else "other"


def asked(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, given: Questions) -> list[dict[str, Any]]:
    """Return a row for each question: hops, relation, said, outcome, and whether the facts of two hops are known."""
    said = given.said(model, tokenizer, given.problems)
    outcomes = [given.outcome(problem, text) for problem, text in zip(given.problems, said, strict=True)]
    known = {
        _fact(problem, 1)
        for problem, out in zip(given.problems, outcomes, strict=True)
        if (problem.hops, out) == (1, "e2")
    }
    return [
        {
            "hops": problem.hops,
            "relation": str(problem.facts.get("relation", "")),
            "said": text.strip(),
            "outcome": outcome,
            "are_known": problem.hops == 1 or {_fact(problem, 1), _fact(problem, 2)} <= known,
        }
        for problem, text, outcome in zip(given.problems, said, outcomes, strict=True)
    ]


def _fact(problem: Problem, hop: int) -> tuple[str, str]:
    """Return the relation and the entity of a question's first or second hop."""
    given = problem.facts
    is_real = "relation" in given
    if problem.hops == 1:
        return (given["relation"] if is_real else given["r1"]), given["e1"].casefold()
    if hop == 1:
        return given["r1"], given["e1"].casefold()
    return (given["relation"] if is_real else given["r2"]), given["e2"].casefold()


def chosen(rows: Sequence[Mapping[str, Any]], n: int, seed: int) -> list[tuple[str, int]]:
    """Return which answers are followed, as (group, number of the question): at most `n` of each kind of answer.

    One kind is each relation of facts that are known; the others are compositions of known facts, by their outcome. An
    answer that is wrong is followed twice: what is said, and what is right.
    """
    kinds: dict[tuple[str, ...], list[int]] = {}
    for i, row in enumerate(rows):
        if row["hops"] == 1 and row["outcome"] == "e2":
            kinds.setdefault((f"{KNOWN}, {row['relation']}".removesuffix(", "),), []).append(i)
        if row["hops"] == 2 and row["are_known"]:
            kinds.setdefault((RIGHT,) if row["outcome"] == "e3" else (SAID, MISSED), []).append(i)
    out = []
    for groups, members in kinds.items():
        some = sorted(Random(f"flow/{seed}").sample(members, min(n, len(members))))
        out += [(group, i) for group in groups for i in some]
    return out


def query(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, group: str, problem: Problem, said: str
) -> Query | None:
    """Return an answer as a query; None if its first token is an article or its words cannot be told apart.

    Of a right answer e2 is the rival, of a wrong one the right answer, and of a missed one what is said.
    """
    words = (said if group == SAID else problem.answer).split()
    if not words or words[0].casefold() in _ARTICLES:
        return None
    rival = {RIGHT: problem.facts["e2"], SAID: problem.answer, MISSED: said}.get(group)
    names = ("e1", "r1", "r2")[: problem.hops + 1]
    if problem.facts.get("r1") == problem.facts.get("r2"):
        return None
    try:
        prompt = _prompt(tokenizer, problem, " ".join(words), rival)
        places = [marks_of(tokenizer, prompt, name, problem.facts[name]) for name in names]
    except BadInput:
        return None
    ids = prompt.input_ids.to(input_device(model))
    return Query(group, ids, prompt.target_ids[0], prompt.conflict_id, _roles(len(ids), problem.hops, places))


def _prompt(tokenizer: PreTrainedTokenizerBase, problem: Problem, target: str, rival: str | None) -> FlowPrompt:
    if rival and rival.split() and rival.split()[0].casefold() not in _ARTICLES:
        try:
            return flow_prompt(tokenizer, problem.prompt, target, against=rival, span="first")
        except BadInput:  # the two begin alike, as Mexico and Mexico City
            pass
    return flow_prompt(tokenizer, problem.prompt, target, span="first")


def _roles(n_tokens: int, hops: int, places: Sequence[tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """Return the positions of each role; a position has the first role that names it."""
    taken: set[int] = set()
    roles = {}
    for name, positions in zip(ROLES[hops], [*places, (n_tokens - 1,), range(n_tokens)], strict=True):
        roles[name] = tuple(sorted({*positions} - taken))
        taken |= {*positions}
    return roles


__all__ = ["KNOWN", "MISSED", "RIGHT", "ROLES", "SAID", "Query", "Questions", "asked", "chosen", "query"]
