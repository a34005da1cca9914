"""What is trained on and what is held out, by kind of problem: every split follows from a seed.

facts           two-hop questions about landmarks. Three landmarks in ten are held out with all their questions (new
                facts); of each other one, one of two questions is held out with half a chance (new compositions of
                facts that the training uses)
arithmetic      (a + b) * c and its like over digits, with results of at least 0; expressions are held out
word-problems   problems of files, without repeated questions; a third of each file is held out
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from random import Random
from typing import NamedTuple

from chainwright._errors import BadInput
from chainwright.reproduce.back_real.config import ReproduceBackRealConfig
from chainwright.tasks import Problem, facts
from chainwright.tasks.problem_sets import load_problems

_NEW_LANDMARKS, _HELD_OUT = 0.3, 1 / 3
_OPERATIONS = ("+", "-", "*")
_LEADING_NUMBER = re.compile(r"\s*\$?(-?[\d,]*\d)(\.\d+)?")


class Parts(NamedTuple):
    """Problems to train on, and held-out ones by the name of their part."""

    train: list[Problem]
    held_out: dict[str, list[Problem]]


def parts_of(config: ReproduceBackRealConfig, seed: int) -> Parts:
    """Return the problems of a study; at most `config.n` of each held-out part."""
    kinds = {"facts": lambda: _facts(seed), "arithmetic": lambda: _arithmetic(seed)}
    parts = kinds[config.kind]() if config.kind in kinds else _word_problems(config.files, seed)
    return Parts(parts.train, {name: problems[: config.n] for name, problems in parts.held_out.items()})


def _facts(seed: int) -> Parts:
    random = Random(f"back/facts/{seed}")
    every = [problem for relation in facts.second_relations() for problem in facts.two_hop(relation)]
    landmarks = sorted({problem.facts["e1"] for problem in every})
    new = {*random.sample(landmarks, round(_NEW_LANDMARKS * len(landmarks)))}
    train, held_out = [], []
    for landmark in (name for name in landmarks if name not in new):
        mine = [problem for problem in every if problem.facts["e1"] == landmark]
        random.shuffle(mine)
        n_held_out = int(len(mine) > 1 and random.random() < 0.5)
        held_out += mine[:n_held_out]
        train += mine[n_held_out:]
    return Parts(train, {"new compositions": held_out, "new facts": [p for p in every if p.facts["e1"] in new]})


def _arithmetic(seed: int) -> Parts:
    random, every = Random(f"back/arithmetic/{seed}"), []
    for a, b, c, first, second in product(range(1, 10), range(1, 10), range(1, 10), _OPERATIONS, _OPERATIONS):
        inner = _computed(a, first, b)
        result = _computed(inner, second, c)
        if inner >= 0 and result >= 0:
            prompt = f"({a} {first} {b}) {second} {c} ="
            every.append(Problem("composite-arithmetic", 2, prompt, str(result), str(result), ()))
    random.shuffle(every)
    cut = int(_HELD_OUT * len(every))
    return Parts(every[cut:], {"new expressions": every[:cut]})


def _computed(a: int, operation: str, b: int) -> int:
    return {"+": a + b, "-": a - b, "*": a * b}[operation]


def _word_problems(files: Sequence[str], seed: int) -> Parts:
    train, held_out = [], {}
    for file in files:
        problems = list({problem.prompt: problem for problem in load_problems(file)}.values())
        asked = [_at_once(problem) for problem in problems if _whole(problem.answer) is not None]
        if len(asked) < 3:
            raise BadInput(f"{file} has {len(asked)} problems with a whole number as answer; give at least 3.")
        Random(f"back/{seed}").shuffle(asked)
        cut = int(_HELD_OUT * len(asked))
        held_out[Path(file).stem] = asked[:cut]
        train += asked[cut:]
    return Parts(train, held_out)


def _at_once(problem: Problem) -> Problem:
    return replace(problem, prompt=f"{problem.prompt}\nAnswer:", answer=str(_whole(problem.answer)), chain="")


def _whole(text: str) -> int | None:
    """Return the number that a text begins with, or None if it is not a whole one."""
    named = _LEADING_NUMBER.match(text)
    if named is None or (named[2] or "0").strip(".0"):
        return None
    return int(named[1].replace(",", ""))


def outcome(problem: Problem, said: str) -> str:
    """Return "right", what else a response to a fact question begins with ("e2", "e1", "other"), or "wrong"."""
    if problem.task == "two-hop-facts":
        name = facts.outcome(problem, said)
        return "right" if name == "e3" else name
    return "right" if _whole(said) == int(problem.answer) else "wrong"


def for_training(problems: Sequence[Problem]) -> list[Problem]:
    """Return problems as they are trained on: a number ends its line, so that its end is learned too."""
    return [p if p.task == "two-hop-facts" else replace(p, answer=f"{p.answer}\n") for p in problems]
