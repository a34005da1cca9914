"""Two-hop questions of a made-up world: what a repair is trained on, and which kinds of answers a model gives.

Every draw is seeded by a name, so that all variants of a study are judged on the same questions.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from random import Random
from typing import Any

from torch import nn
from transformers import PreTrainedTokenizerBase

from chainwright.lab.knowledge import answers
from chainwright.tasks.base import Problem
from chainwright.tasks.knowledge import Order, Split, World, category, questions

PARTS = ("held_out", "new_first", "new_second", "new_both")
CATEGORIES = ("e3", "e2", "r2(e1)", "e1", "unknown")
N_PREFIXES = 3


def with_prefixes(world: World, problems: Sequence[Problem], n: int = N_PREFIXES) -> list[Problem]:
    """Return the problems and `n` copies of each behind a random word, which is neither its answer nor its r1."""
    random, words = Random("prefixes"), world.vocabulary()

    def copy(problem: Problem) -> Problem:
        free = [word for word in words if word not in (problem.answer, problem.facts["r1"])]
        return replace(problem, prompt=f"{random.choice(free)} {problem.prompt}")

    copies = [copy(problem) for _ in range(n) for problem in problems]
    return [*problems, *copies]


def judged(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, world: World, parts: Split, n: int, order: Order = "bare"
) -> dict[str, dict[str, float]]:
    """Return the share of each kind of answer, for single hops and for each part of the compositions.

    Args:
        model: The model, alone or with a repair attached.
        tokenizer: Its tokenizer.
        world: The world that it was trained on.
        parts: Compositions by part; parts without any are skipped.
        n: Maximum number of questions per part.
        order: Wording of the questions.
    """
    single = questions(world, world.facts, order)
    right = [answer == p.answer for answer, p in zip(answers(model, tokenizer, single), single, strict=True)]
    out = {"one hop": {"right": sum(right) / len(right)}}
    for name in PARTS:
        asked = drawn(getattr(parts, name), n)
        if asked:
            out[name] = shares(model, tokenizer, questions(world, asked, order))
    return out


def drawn(compositions: Sequence[Any], n: int) -> list[Any]:
    """Return at most `n` of the compositions, the same ones every time."""
    return Random("judged").sample(list(compositions), min(n, len(compositions)))


def shares(model: nn.Module, tokenizer: PreTrainedTokenizerBase, problems: Sequence[Problem]) -> dict[str, float]:
    """Return the share of each kind of answer (`CATEGORIES`) to two-hop questions."""
    answered = zip(problems, answers(model, tokenizer, problems), strict=True)
    counts = Counter(category(problem, answer) for problem, answer in answered)
    return {name: counts[name] / len(problems) for name in CATEGORIES}
