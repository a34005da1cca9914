"""Arithmetic answered at once, without a chain: sums of two-digit numbers, and one-digit expressions with two steps."""

from __future__ import annotations

import operator
from collections.abc import Callable
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
        n_operands: Operands of each, from 2; each operation after the first is a hop of its own.
        seed: Decides them.

    Raises:
        BadInput: `n` is negative, or there are fewer than two operands.
    """
    if n < 0 or n_operands < 2:
        raise BadInput(f"composite_problems needs n >= 0 and at least 2 operands; got {n} and {n_operands}.")
    random = Random(f"composite/{n_operands}/{seed}")
    return [_composite(random, n_operands) for _ in range(n)]


def _composite(random: Random, n_operands: int) -> Problem:
    value = random.randint(1, 9)
    text = str(value)
    for k in range(n_operands - 1):
        sign, operand = random.choice("+-*"), random.randint(1, 9)
        value = _OPERATIONS[sign](value, operand)
        text = f"{text} {sign} {operand}" if k == 0 else f"( {text} ) {sign} {operand}"
    return _problem(f"{text} =", value, n_operands - 1)


def _problem(prompt: str, value: int, hops: int) -> Problem:
    # a minus sign is a token of its own beside the digits
    answer = f"- {-value}" if value < 0 else str(value)
    slot = Slot(0, len(answer), "local calculation", hops - 1, answer)
    return Problem("arithmetic", hops, prompt, answer, answer, (slot,), facts={"value": value})
