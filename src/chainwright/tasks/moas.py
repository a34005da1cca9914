"""MOAS: a chain of additions and subtractions, worked out with a running result.

One hop = one operand. The short rendering starts from a total that is no hop and keeps every result in 0..99,
so that a word-level model needs no sign; the natural one is an expression of `hops` operands in 1..99, whose
first operand is the first hop and whose running result may be negative.
"""

from __future__ import annotations

from random import Random

from chainwright._registry import register
from chainwright.checkers.patterns import SIGN, choice
from chainwright.tasks._script import (
    COMPUTING,
    FEWER_HOPS,
    HOPS,
    MORE_HOPS,
    RECALL,
    Facts,
    Part,
    Rendering,
    Script,
    Task,
    Writer,
    number,
)

_LARGEST_TOTAL, _LARGEST_STEP = 99, 19
_OPERATIONS = choice({"add": ("adding", "plus"), "subtract": ("subtracting", "minus", "take away")})
_EQUATION = "{left} {sign} {operand} = {result}"
_LAYOUT = {
    "short": {
        "start": "start {start}",
        "hop": "{operation} {k} : " + _EQUATION,
        "end": "{end}",
        "answer": "answer {answer}",
    },
    "natural": {
        "start": "Start with {start}.",
        "hop": "{operation} {k}: " + _EQUATION + ".",
        "end": "{end}, every operand is used.",
        "answer": "Answer: {answer}",
    },
}


def _draw(random: Random, hops: int, rendering: Rendering) -> Facts:
    if rendering == "natural":
        steps = [[random.choice(["add", "subtract"]), random.randint(1, 99)] for _ in range(hops - 1)]
        return {"start": random.randint(1, 99), "steps": steps}
    total = start = random.randint(0, _LARGEST_TOTAL)
    steps = []
    for _ in range(hops):
        k = random.randint(1, _LARGEST_STEP)
        signs = [sign for sign in (1, -1) if 0 <= total + sign * k <= _LARGEST_TOTAL]
        sign = random.choice(signs)
        steps.append(["add" if sign > 0 else "subtract", k])
        total += sign * k
    return {"start": start, "steps": steps}


def _question(facts: Facts, rendering: Rendering) -> str:
    if rendering == "short":
        steps = "".join(f" . {operation} {k}" for operation, k in facts["steps"])
        return f"moas start {facts['start']}{steps} ?"
    steps = "".join(f" {'+' if operation == 'add' else '-'} {k}" for operation, k in facts["steps"])
    return f"What is {facts['start']}{steps}?"


def _write(facts: Facts, rendering: Rendering) -> Script:
    total, first_hop = facts["start"], 0 if rendering == "short" else 1
    writer = Writer(_LAYOUT[rendering])
    writer.add("start", 0, start=number(total, "operand recall"))
    for hop, (operation, k) in enumerate(facts["steps"], start=first_hop):
        new = total + k if operation == "add" else total - k
        writer.add(
            "hop",
            hop,
            operation=Part(operation if rendering == "short" else operation.title(), "operation recall", _OPERATIONS),
            k=number(k, "operand recall"),
            left=number(total, "local result copy"),
            sign=Part("+" if operation == "add" else "-", "operand interpretation", SIGN),
            operand=number(k, "operand interpretation"),
            result=number(new, "local calculation"),
        )
        total = new
    hops = first_hop + len(facts["steps"])
    writer.close(hops, number(total, "local result copy"), rendering)
    return Script(_question(facts, rendering), tuple(writer.lines), str(total))


TASK = register("task", "moas")(
    Task(
        name="moas",
        title="MOAS",
        error_types={
            "operand recall": RECALL,
            "operation recall": RECALL,
            "local result copy": COMPUTING,
            "operand interpretation": COMPUTING,
            "local calculation": COMPUTING,
            FEWER_HOPS: HOPS,
            MORE_HOPS: HOPS,
        },
        goal="Work the expression out from left to right.",
        draw=_draw,
        write=_write,
        exemplars=({"start": 12, "steps": [["add", 7], ["subtract", 15]]},),
        unit="operand",
        usual_hops={"short": (6, 10, 11, 12, 13), "natural": (10, 20, 30, 40, 50)},
        paper_order=4,
        keywords=("add", "subtract"),
    )
)
