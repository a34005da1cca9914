"""MDM: a three-digit number times a longer one, digit by digit, then the shifted products added up.

One hop = one digit of the multiplier, from the ones on; at most 12. No digit is 0, so that every block has
something to shift and to add.
"""

from __future__ import annotations

from random import Random

from chainwright._registry import register
from chainwright.checkers.patterns import NUMBER, Pattern, choice
from chainwright.tasks._script import (
    COMPUTING,
    FEWER_HOPS,
    HOPS,
    MORE_HOPS,
    RECALL,
    Facts,
    Line,
    Part,
    Rendering,
    Script,
    Task,
    Writer,
    fill,
    number,
)

_PLACES = ["ones", "tens", "hundreds"] + [
    f"{size}{unit}" for unit in ("thousands", "millions", "billions") for size in ("", "ten ", "hundred ")
]
_PLACE = choice({name: (name.rstrip("s"), name.replace(" ", "-")) for name in _PLACES})
_PARTS = choice({"parts": ("the parts are", "the parts", "partial products", "the partial products are")})
_LIST = Pattern(rf"{NUMBER.regex}(?:(?:\s*,\s*|\s+)(?:and\s+)?{NUMBER.regex})*")
_LAYOUT = {
    "short": {
        "hop": "{a} digit {digit} place {place} : {again} * {copy} = {product} shift {shift}",
        "parts": "{parts} {values}",
        "sum": "{left} + {right} = {total}",
        "end": "{end}",
        "answer": "answer {answer}",
    },
    "natural": {
        "hop": ("Take {a} and digit {digit} in the {place} place: {again} * {copy} = {product}, shifted {shift}."),
        "parts": "{parts} {values}.",
        "sum": "Add up {left} + {right} = {total}.",
        "end": "{end}, {a} * {b} = {answer}.",
        "answer": "Answer: {answer}",
    },
}


def _draw(random: Random, hops: int, rendering: Rendering) -> Facts:
    a, b = (int("".join(str(random.randint(1, 9)) for _ in range(size))) for size in (3, hops))
    return {"a": a, "b": b}


def _digits(facts: Facts) -> list[int]:
    return [int(digit) for digit in reversed(str(facts["b"]))]


def _add_parts(writer: Writer, values: list[int], rendering: Rendering) -> None:
    """Write the list of shifted products, and one addition for each after the first."""
    hops = len(values)
    fields = {f"v{i}": number(value, "local result copy") for i, value in enumerate(values)}
    words = Part("parts" if rendering == "short" else "The parts are", MORE_HOPS, _PARTS)
    template = _LAYOUT[rendering]["parts"].replace("{values}", " and ".join(f"{{{name}}}" for name in fields))
    writer.lines.append(fill("parts", template, hops, {"parts": words, **fields}))
    total = values[0]
    for value in values[1:]:
        writer.add(
            "sum",
            hops,
            left=number(total, "local result copy"),
            right=number(value, "local result copy"),
            total=number(total + value, "addition"),
        )
        total += value


def _place(i: int, rendering: Rendering) -> Part:
    return number(i, "digit") if rendering == "short" else Part(_PLACES[i], "digit", _PLACE)


def _write(facts: Facts, rendering: Rendering) -> Script:
    a, b, digits = facts["a"], facts["b"], _digits(facts)
    writer = Writer(_LAYOUT[rendering])
    for i, digit in enumerate(digits):
        writer.add(
            "hop",
            i,
            a=number(a, "operand recall"),
            digit=number(digit, "digit"),
            place=_place(i, rendering),
            again=number(a, "operand recall"),
            copy=number(digit, "digit copy"),
            product=number(a * digit, "local product"),
            shift=number(a * digit * 10**i, "shift"),
        )
    _add_parts(writer, [a * digit * 10**i for i, digit in enumerate(digits)], rendering)
    operands = {"a": number(a, "operand recall"), "b": number(b, "operand recall")}
    writer.close(len(digits), number(a * b, "local result copy"), rendering, **operands)
    question = f"mdm {a} * {b} ?" if rendering == "short" else f"What is {a} * {b}?"
    return Script(question, tuple(writer.lines), str(a * b))


def _list_of_any_length(rendering: Rendering) -> tuple[Line, ...]:
    """Return the shape of a list of parts with any number of values."""
    values = Part("", "local result copy", _LIST)
    words = Part("parts", MORE_HOPS, _PARTS)
    return (fill("parts", _LAYOUT[rendering]["parts"], 0, {"parts": words, "values": values}),)


TASK = register("task", "mdm")(
    Task(
        name="mdm",
        title="MDM",
        error_types={
            "operand recall": RECALL,
            "digit": COMPUTING,
            "digit copy": COMPUTING,
            "local product": COMPUTING,
            "shift": COMPUTING,
            FEWER_HOPS: HOPS,
            MORE_HOPS: HOPS,
            "local result copy": COMPUTING,
            "addition": COMPUTING,
        },
        goal="Multiply digit by digit, from the ones of the second number on, then add the shifted products.",
        draw=_draw,
        write=_write,
        exemplars=({"a": 347, "b": 26},),
        unit="digit of the multiplier",
        max_hops=len(_PLACES),
        more_shapes=_list_of_any_length,
        usual_hops={"short": (1, 2, 3, 4), "natural": (2, 3, 4, 5, 6)},
        fit_hops={"short": (2, 3)},  # at 4 hops the bundled reasoner is never right
        paper_order=1,
        keywords=("digit", "place", "shift", "parts", "and"),
    )
)
