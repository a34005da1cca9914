"""Traces of right and wrong chains, written by hand, and ways of decoding made of them."""

from __future__ import annotations

from chainwright import tasks
from chainwright.models.load import load_model
from chainwright.tasks import Problem
from chainwright.traces import Trace


def outcome(problem: Problem, is_right: bool) -> Trace:
    """Return a trace of the gold chain, or of one whose first slot, a folder operation, is another."""
    first = problem.slots[0].value
    text = problem.chain if is_right else problem.chain.replace(first, wrong_for(first), 1)
    return Trace.from_text(load_model("reasoner").tokenizer, problem.prompt, text, problem=problem)


def wrong_for(operation: str) -> str:
    """Return another operation."""
    return "web/" if operation != "web/" else "lib/"


def ten_problems() -> list[Problem]:
    return tasks.sample("clf", 3, 6) + tasks.sample("clf", 4, 4)


def two_ways() -> dict[str, list[Trace]]:
    """Return ten problems answered in two ways: three chains are fixed, one is broken."""
    problems = ten_problems()
    before = [outcome(p, i in (0, 1, 6)) for i, p in enumerate(problems)]
    after = [outcome(p, i in (1, 2, 3, 6, 7)) for i, p in enumerate(problems)]
    return {"none": before, "repair": after}
