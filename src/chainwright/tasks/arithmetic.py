"""Arithmetic answered at once, without a chain: sums of two-digit numbers, and one-digit expressions with two steps."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from itertools import product
from random import Random

from chainwright._errors import BadInput
from chainwright.tasks.base import Problem, Slot

_OPERATIONS: dict[str, Callable[[int, int], int]] = {"+": operator.add, "-": operator.sub, "*": operator.mul}


def two_digit_problems() -> list[Problem]:
    """Return all 16,200 sums and differences of operands from 10 to 99, such as "12 - 34 =" with the answer -22."""
    pairs = [(a, b) for a in range(10, 100) for b in range(10, 100)]
    return [_problem(f"{a} {sign} {b} =", _OPERATIONS[sign](a, b), 1) for a, b in pairs for sign in "+-"]


def composite_problems(n: int, *, n_operands: int = 3, seed: int = 0) -> list[Problem]:
    """Return expressions of one-digit operands with brackets around the first step, such as "( 3 + 4 ) * 2 =".

    Args:
        n: Number of problems.
        n_operands: Operands of each, from 2; each operation after the first is a hop of its own. `Problem.facts` has
            the value "before" the last one.
        seed: Seed of the draw.

    Raises:
        BadInput: `n` is negative, or there are fewer than two operands.
    """
    if n < 0 or n_operands < 2:
        raise BadInput(f"composite_problems needs n >= 0 and at least 2 operands; got {n} and {n_operands}.")
    random = Random(f"composite/{n_operands}/{seed}")
    return [_composite(random, n_operands) for _ in range(n)]


def all_composite_problems(n_operands: int = 3) -> list[Problem]:
    """Return every expression of `composite_problems` once: 243 of two operands, 6561 of three.

    Raises:
        BadInput: Fewer than two operands, or more than four (177,147 expressions).
    """
    if not 2 <= n_operands <= 4:
        raise BadInput(f"all_composite_problems needs 2 to 4 operands; got {n_operands}.")
    steps = list(product("+-*", range(1, 10)))
    return [_expression(a, rest) for a in range(1, 10) for rest in product(steps, repeat=n_operands - 1)]


def held_out_composites(
    n_operands: int = 3, *, share: float = 0.2, seed: int = 0
) -> tuple[list[Problem], list[Problem]]:
    """Return every expression in two parts: those that a training may see, and those held out.

    Args:
        n_operands: Operands of each.
        share: Share that is held out.
        seed: Decides which.

    Raises:
        BadInput: A share outside of 0 to 1, or operands as in `all_composite_problems`.
    """
    if not 0 <= share < 1:
        raise BadInput(f"share must be at least 0 and below 1; got {share}.")
    problems = all_composite_problems(n_operands)
    Random(f"composite split/{n_operands}/{seed}").shuffle(problems)
    n_held_out = round(share * len(problems))
    return problems[n_held_out:], problems[:n_held_out]


def _composite(random: Random, n_operands: int) -> Problem:
    first = random.randint(1, 9)
    return _expression(first, [(random.choice("+-*"), random.randint(1, 9)) for _ in range(n_operands - 1)])


def _expression(first: int, steps: Sequence[tuple[str, int]]) -> Problem:
    value, text, before = first, str(first), first
    for k, (sign, operand) in enumerate(steps):
        before, value = value, _OPERATIONS[sign](value, operand)
        text = f"{text} {sign} {operand}" if k == 0 else f"( {text} ) {sign} {operand}"
    return _problem(f"{text} =", value, len(steps), before)


def _written(value: int) -> str:
    # a minus sign is a token of its own beside the digits
    return f"- {-value}" if value < 0 else str(value)


def _problem(prompt: str, value: int, hops: int, before: int | None = None) -> Problem:
    answer = _written(value)
    slot = Slot(0, len(answer), "local calculation", hops - 1, answer)
    facts = {"value": value} | ({} if hops == 1 or before is None else {"before": _written(before)})
    return Problem("arithmetic", hops, prompt, answer, answer, (slot,), facts=facts)
