"""How a task writes down a chain: kinds of lines, literal text, and the slots between it.

A `Line` is a template filled with `Part`s. The same lines serve twice: joined they are the gold chain, and
`_reader` walks a response beside them. Patterns say what may be in a slot at all (any number, any word),
so that a wrong value is still recognised as the value of that slot.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from random import Random
from string import Formatter
from typing import Any, Literal

from chainwright._errors import BadInput
from chainwright.checkers.patterns import FINALLY, NUMBER, Pattern

Rendering = Literal["short", "natural"]
"""How a problem is worded: in the bundled models' few words, or in English."""
Facts = dict[str, Any]
"""What a problem is about, as plain JSON values."""

FEWER_HOPS = "fewer hops"
"""The error type of a chain that is closed early."""
MORE_HOPS = "more hops"
"""The error type of a chain that continues too long."""

Family = Literal["recall", "computing or copying", "fewer or more hops", "cannot be read", "other"]
"""What figures and summaries count error types by."""
RECALL: Family = "recall"
"""The family of errors in finding something in the question or an earlier line."""
COMPUTING: Family = "computing or copying"
"""The family of errors in working out or copying a value."""
HOPS: Family = "fewer or more hops"
"""The family of chains with too few or too many steps."""


@dataclass(frozen=True)
class Part:
    """A slot on its way into a line: the right value, the error type of a wrong one, and what may be there."""

    value: str
    error_type: str
    pattern: Pattern

    def means(self, text: str) -> bool:
        """Return whether `text` says the same as the right value."""
        return text == self.value or self.pattern.meaning(text) == self.pattern.meaning(self.value)


@dataclass(frozen=True)
class Slot:
    """One decision of a gold chain.

    Attributes:
        start: First character of the slot in `Problem.chain`.
        end: One past its last character.
        error_type: What a wrong value here is called (a type of the task, such as "name recall").
        hop: Index of the hop that the slot belongs to, from 0; `hops` for the closing lines.
        value: The right text, equal to `chain[start:end]`.
    """

    start: int
    end: int
    error_type: str
    hop: int
    value: str


def number(value: int, error_type: str) -> Part:
    """Return the slot of an integer."""
    return Part(str(value), error_type, NUMBER)


@dataclass(frozen=True)
class Kind:
    """A kind of line. Kinds come in the order of `rank`; those that repeat can be too few or too many."""

    name: str
    rank: int
    repeats: bool = False


KINDS = {
    kind.name: kind
    for kind in (
        Kind("start", 0),
        Kind("hop", 1, repeats=True),
        Kind("parts", 2),
        Kind("sum", 3, repeats=True),
        Kind("end", 4),
        Kind("answer", 5),
    )
}


@dataclass(frozen=True)
class Line:
    """One line of a gold chain, or the shape of such a line.

    Attributes:
        kind: What the line does in the chain.
        parts: Literal text and slots, in order; joined they are the line.
        hop: Index of the hop from 0; the hop number of the problem for closing lines.
    """

    kind: Kind
    parts: tuple[str | Part, ...]
    hop: int = 0

    @property
    def slots(self) -> tuple[Part, ...]:
        """The slots of the line, in order."""
        return tuple(part for part in self.parts if isinstance(part, Part))

    @property
    def text(self) -> str:
        """The line as written in the chain."""
        return "".join(part if isinstance(part, str) else part.value for part in self.parts)


@dataclass(frozen=True)
class ReadSlot:
    """A gold slot found in a response.

    Attributes:
        slot: Index into `Problem.slots`.
        start: First character of what the response says there.
        end: One past its last character; equal to `start` when the response says nothing there.
        got: What the response says there.
        is_right: Whether that means the same as the gold value.
        error_type: The type of the error if it is wrong, None if it is right.
    """

    slot: int
    start: int
    end: int
    got: str
    is_right: bool
    error_type: str | None = None


@dataclass(frozen=True)
class Script:
    """A problem written down: the question, the gold lines and the final answer."""

    question: str
    lines: tuple[Line, ...]
    answer: str


@cache
def _fields(template: str) -> tuple[tuple[str, str | None], ...]:
    return tuple((literal, name) for literal, name, _, _ in Formatter().parse(template))


def fill(kind: str, template: str, hop: int, fields: Mapping[str, Part | str]) -> Line:
    """Return the line that a template makes of named parts; parts that it does not name are ignored."""
    parts: list[str | Part] = []
    for literal, name in _fields(template):
        for part in (literal, fields[name] if name is not None else ""):
            if isinstance(part, str) and parts and isinstance(parts[-1], str):
                parts[-1] += part
            elif part != "":
                parts.append(part)
    return Line(KINDS[kind], tuple(parts), hop)


class Writer:
    """Collects the lines of one chain from the templates of a rendering."""

    def __init__(self, templates: Mapping[str, str]) -> None:
        self._templates = templates
        self.lines: list[Line] = []

    def add(self, kind: str, hop: int, template: str = "", /, **fields: Part | str) -> None:
        """Append a line; `template` is named where a kind of line has several."""
        self.lines.append(fill(kind, self._templates[template or kind], hop, fields))

    def close(self, hop: int, answer: Part, rendering: Rendering, /, **fields: Part | str) -> None:
        """Append the closing line, whose first words are a slot, and the answer line."""
        end = Part("end" if rendering == "short" else "In the end", MORE_HOPS, FINALLY)
        self.add("end", hop, end=end, answer=answer, **fields)
        self.add("answer", hop, answer=answer)


@dataclass(frozen=True, eq=False)
class Task:
    """Everything that the rest of the package knows about a task.

    Attributes:
        name: Lower-case name, also the first word of a short prompt and the name it is registered under.
        title: Name as the source paper writes it.
        error_types: Every type that a wrong slot can have, with the family it is counted in.
        goal: What a natural prompt asks for, in a sentence or two.
        unit: What one hop is, in the singular.
        draw: Returns the facts of one problem, from a random generator, a hop number and a rendering.
        write: Returns question, gold lines and answer, from the facts and a rendering.
        exemplars: Facts whose chains together show every shape of a line.
        max_hops: Largest hop number, None without a limit.
        more_shapes: Shapes that no chain of fixed length shows (a list of any length).
        renderings: The renderings that `draw` and `write` know; an open problem is written in the first of them.
        usual_hops: Hop counts asked by default, by rendering: short ones below, at and beyond the training range of a
            small model trained here, natural ones as published for models of 7B and more.
        fit_hops: Hop counts that repairs are fitted on, by rendering, where the last three usual ones do not do.
        paper_order: Place among the seven tasks of the source paper, from 0; None for every other task.
        keywords: Fixed words of the short layout, besides `start`, `end` and `answer`.
        words: Words that problems in the short rendering are drawn from.
    """

    name: str
    title: str
    error_types: Mapping[str, Family]
    goal: str
    unit: str
    draw: Callable[[Random, int, Rendering], Facts]
    write: Callable[[Facts, Rendering], Script]
    exemplars: tuple[Facts, ...]
    max_hops: int | None = None
    more_shapes: Callable[[Rendering], tuple[Line, ...]] = lambda _rendering: ()
    renderings: tuple[Rendering, ...] = ("short", "natural")
    usual_hops: Mapping[Rendering, tuple[int, ...]] = field(default_factory=dict)
    fit_hops: Mapping[Rendering, tuple[int, ...]] = field(default_factory=dict)
    paper_order: int | None = None
    keywords: tuple[str, ...] = ()
    words: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse names that could not be parts of a file name, as they are in a study."""
        for what, names in (("name", [self.name]), ("error type", self.error_types)):
            if wrong := [name for name in names if not re.fullmatch(r"[a-z0-9][a-z0-9 ._-]*", name)]:
                raise BadInput(
                    f"The {what} of a task is written in lower-case letters, digits and spaces; got {wrong[0]!r}."
                )
        if " " in self.name:
            raise BadInput(f"The name of a task is one word; got {self.name!r}.")
