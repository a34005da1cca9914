"""Problems and slots: what tasks with a hop dial provide to the rest of the package.

A task draws the facts of a problem from a seed and writes them down as a `Script`: the prompt, and the gold
chain as lines of literal text and slots. A slot is one decision of the chain (a name recalled, a sum
computed) and carries the error type that a wrong value means. The same script that writes the gold chain
reads a response back: `Problem.read` walks the response line by line beside the gold lines and stops at the
first slot that differs.

What this module does not know: tokens (see `traces`), models, and the tasks themselves.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, NamedTuple

from chainwright import _notebook, checkers
from chainwright.checkers.answers import final_answer, means_the_same
from chainwright.checkers.base import UNREAD, Verdict
from chainwright.markers.borders import said_aloud
from chainwright.tasks._by_hand import lines_of
from chainwright.tasks._reader import Reader, Reading
from chainwright.tasks._script import Facts, Line, Part, ReadSlot, Rendering, Slot

__all__ = [
    "SCHEMA_VERSION",
    "SET_SCHEMA_VERSION",
    "UNPARSED",
    "Draw",
    "FirstError",
    "Label",
    "Problem",
    "ReadSlot",
    "Rendering",
    "Slot",
    "write_chain",
]

UNPARSED = "unparsed"
"""The error type of a response that could not be read from some place on."""
SCHEMA_VERSION = 1
SET_SCHEMA_VERSION = 2  # of records with a checker, labels or choices, which version 1 does not know

Label = str | int | float


@dataclass(frozen=True)
class FirstError:
    """The first wrong slot of a response, which gives the response its error type.

    Attributes:
        error_type: A type of the task, or "unparsed" when the response cannot be read from here on.
        slot: Index into `Problem.slots` of the gold slot that was due.
        hop: The hop of that slot, from 0.
        start: First character of the wrong text in the response.
        end: One past its last character.
        expected: The gold value.
        got: What the response says.
    """

    error_type: str
    slot: int | None
    hop: int | None
    start: int
    end: int
    expected: str
    got: str


class Draw(NamedTuple):
    """What draws a problem again, in whichever rendering suits the model that it is asked of.

    Attributes:
        key: Seeds the problem's own generator.
        n_demonstrations: Worked examples that go before the question in the natural rendering.
    """

    key: str
    n_demonstrations: int


@dataclass(frozen=True)
class Problem:
    """A question with its answer and, where they are known, its gold chain and slots.

    A problem of your own needs only a prompt and an answer: `Problem("mine", 1, prompt, chain="", answer="42",
    slots=())`. Its answers are judged; its chains are not, since nothing says what should be in them.

    Attributes:
        task: Name of the task, such as "parity".
        hops: How many steps the chain takes; what one step is depends on the task.
        prompt: The question, with worked examples in the natural rendering.
        chain: The right response, one line per step, without a newline at its end; empty if unknown.
        answer: The right final answer.
        slots: Every decision of the chain, in order; empty if unknown.
        rendering: "short" (word-level text for small models) or "natural" (English for chat models).
        facts: What was drawn, as plain JSON values; enough to write the problem again.
        lines: The gold script, which reads responses back.
        shapes: One line of every shape that the task and rendering know.
        draw: Set while the rendering is open (`sample` without `rendering`): the problem is written short, and
            `generate` draws it again in the rendering that its model reads. None once the rendering is fixed. It is
            no part of the problem's identity.
        checker: Name of the checker that judges final answers (`checkers.load`); "" is the judging of the tasks.
        labels: What accuracy is broken down by, such as subject and level, and the id.
        choices: The options of a multiple-choice question in the order of their letters; `answer` is then a letter.
    """

    task: str
    hops: int
    prompt: str
    chain: str
    answer: str
    slots: tuple[Slot, ...]
    rendering: Rendering = "short"
    facts: Facts = field(default_factory=dict, hash=False)
    lines: tuple[Line, ...] = field(default=(), repr=False)
    shapes: tuple[Line, ...] = field(default=(), repr=False, compare=False)
    draw: Draw | None = field(default=None, repr=False, compare=False)
    checker: str = field(default="", kw_only=True)
    labels: Mapping[str, Label] = field(default_factory=dict, hash=False, kw_only=True)
    choices: tuple[str, ...] = field(default=(), kw_only=True)

    def _repr_html_(self) -> str:
        """Return what a notebook shows: the question, the gold chain and the answer."""
        hops = f", {self.hops} hops" if self.hops else ""
        parts = (
            [_notebook.text(self.prompt), _notebook.text(self.chain)] if self.chain else [_notebook.text(self.prompt)]
        )
        return _notebook.block(f"{self.task}{hops}; answer: {self.answer}", *parts)

    @property
    def is_answer_only(self) -> bool:
        """Whether the right response is the answer and nothing else."""
        return self.chain == self.answer

    def check(self, response_text: str, *, is_cut: bool = False) -> bool:
        """Return whether the final answer of a response is right, whatever its chain says.

        With a `checker`, that judges. Otherwise the answer is looked for after the last word that announces one, such
        as "answer" or "####"; thinking (`<think>`, Harmony's analysis) is not judged, and an answer that is taken back
        does not count. A problem made by hand, without a script, takes the last value of the text where nothing
        announces an answer, or the first one if the response is to be the answer alone.

        Args:
            response_text: The response.
            is_cut: Whether the token limit ended it. A number or word that its end touches may lack its rest, and is
                then no answer; in the short rendering of a task it lacks none.
        """
        return self.judge(response_text, is_cut=is_cut).is_right is True

    def judge(self, response_text: str, *, is_cut: bool = False) -> Verdict:
        """Return whether the final answer of a response is right, what it is, and how it was found.

        Args:
            response_text: The response.
            is_cut: As in `check`.

        Raises:
            BadInput: There is no checker of the problem's name, or it is a function that fails.
        """
        if self.checker:
            checker = checkers.load(self.checker)
            return checker.judge(response_text, self.answer, choices=self.choices, is_cut=is_cut)
        is_first = self.is_answer_only and self.rendering == "short"
        # the models that read a task's short text write whole words as tokens
        is_cut = is_cut and not (self.lines and self.rendering == "short")
        got = final_answer(response_text, self.answer, may_guess=not self.lines, is_first=is_first, is_cut=is_cut)
        return UNREAD if got is None else Verdict(means_the_same(got.text, self.answer), got.text, got.rule)

    def read(self, response_text: str) -> list[ReadSlot]:
        """Return the gold slots read from a response, up to and including the first wrong one; none without slots.

        Thinking is skipped, as in `check`; the places are those in the whole text.
        """
        return self._read(response_text).slots

    def first_error(self, response_text: str) -> FirstError | None:
        """Return the first wrong slot of a response, or None if every slot is right or the problem has no slots.

        The error type is "unparsed" where the response leaves every known shape of a line or breaks off;
        `slot` is then the slot that was due, and `start` and `end` the place where the reading stopped.

        Raises:
            BadInput: A slot of a problem made by hand is not in its chain where it says.
        """
        if not self.slots:
            return None
        slots, stop = self._read(response_text)
        read = slots[-1] if slots else None
        if read is not None and read.error_type is not None:
            gold = self.slots[read.slot]
            return FirstError(read.error_type, read.slot, gold.hop, read.start, read.end, gold.value, read.got)
        if len(slots) == len(self.slots):
            return None
        gold = self.slots[len(slots)]
        return FirstError(UNPARSED, len(slots), gold.hop, stop, stop, gold.value, "")

    def to_record(self) -> dict[str, Any]:
        """Return the problem as plain JSON values, from which `tasks.from_record` makes it again.

        A problem without a script has its slots in it.
        """
        record: dict[str, Any] = {
            "schema_version": SCHEMA_VERSION,
            "task": self.task,
            "hops": self.hops,
            "rendering": self.rendering,
            "prompt": self.prompt,
            "chain": self.chain,
            "answer": self.answer,
            "facts": self.facts,
        }
        if not self.lines:
            record["slots"] = [asdict(slot) for slot in self.slots]
        if self.checker or self.labels or self.choices:
            record |= {"checker": self.checker, "labels": dict(self.labels), "choices": list(self.choices)}
            record["schema_version"] = SET_SCHEMA_VERSION
        return record

    def _read(self, response_text: str) -> Reading:
        if not self.slots:
            return Reading([], 0)
        lines = self.lines or lines_of(self.chain, self.slots)
        start, end = said_aloud(response_text)
        slots, stop = Reader(lines, self.shapes or lines, response_text[start:end]).read()
        return Reading([replace(slot, start=slot.start + start, end=slot.end + start) for slot in slots], stop + start)


def write_chain(lines: Iterable[Line]) -> tuple[str, tuple[Slot, ...]]:
    """Return the chain that the lines make, and its slots with their places in it."""
    pieces: list[str] = []
    slots: list[Slot] = []
    at = 0
    for i, line in enumerate(lines):
        for part in ("\n" if i else "", *line.parts):
            text = part.value if isinstance(part, Part) else part
            if isinstance(part, Part):
                slots.append(Slot(at, at + len(text), part.error_type, line.hop, text))
            pieces.append(text)
            at += len(text)
    return "".join(pieces), tuple(slots)
