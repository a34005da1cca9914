"""Reads a response beside the gold lines and stops at the first slot that differs.

1. The response is cut into rows; blank rows do not count, and rows before the first one of a known shape are
   a preamble.
2. A row is scanned part by part against the gold line that is due. Small words, punctuation, markdown signs,
   a bullet or a number in front, and case are ignored; the other words must be there.
3. A row of the due shape is compared slot by slot. A row of the same kind but another shape is compared as
   far as the shapes agree. A closing row where a hop is due is "fewer hops", a hop where the chain should
   close "more hops".
4. Anything else, and a response that stops early, ends the reading without a verdict ("unparsed").

It does not look back: text after the answer, or after the first wrong slot, is never read.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import cache
from typing import NamedTuple

from chainwright.checkers.patterns import MINUS, compiled
from chainwright.tasks._script import FEWER_HOPS, MORE_HOPS, Line, Part, ReadSlot

_SMALL_WORDS = (
    "the a an and it its is are was now so then still stays remains becomes again final up this that in at with"
).split()
_MARKS = r".,:;!\"'()\[\]\u201c\u201d\u2018\u2019"
_GAP = rf"[{MINUS[1:-1]}\u2014\u2192>\s*_`#${_MARKS}]"
_LONG_GAP = rf"(?:{_GAP}|(?<!\w)(?:{'|'.join(_SMALL_WORDS)})(?!\w))"
_TOKEN = re.compile(r"\w+|[^\w\s]")
_HEAD = compiled(r"[\s*_#>•]*(?:-\s+)?[*_]*(?:(?:step\s+)?\(?[0-9]{1,3}[.):](?=[\s*_]|$)|step\s+[0-9]{1,3}\s)?")
_OWN_NUMBER = re.compile(r"^[0-9]+\.\s")
_SYMBOLS = {"-": MINUS, "*": r"(?:[*x\u00d7\u00b7]|\\times(?!\w))", "=": "(?:=|equals(?!\\w))", "+": r"\+"}


class Row(NamedTuple):
    """A line of the response that is not blank: where it starts and ends in the text."""

    start: int
    end: int


class Found(NamedTuple):
    """Where one part of a line was found in the response."""

    part: Part
    start: int
    end: int


class Word(NamedTuple):
    """A word or sign of literal text; a response may do without the small ones."""

    text: str
    is_optional: bool


class Scan(NamedTuple):
    """How far a row follows a line.

    Attributes:
        found: The slots found, in order.
        stop: Where the row left the line.
        due: What the line has there, None when the row followed it to the end.
    """

    found: tuple[Found, ...]
    stop: int
    due: Part | Word | None

    def fits(self, text: str, row: Row, line: Line) -> bool:
        """Return whether the row has the shape of the line, with nothing of weight behind it."""
        if self.due is not None:
            return False
        return line.kind.name == "answer" or _skip_gap(text, self.stop, row.end) == row.end


class Reading(NamedTuple):
    """The slots that were read, the last of them possibly wrong, and where the reading stopped."""

    slots: list[ReadSlot]
    stop: int


def _skip_gap(text: str, start: int, end: int) -> int:
    match = compiled(f"{_LONG_GAP}*").match(text, start, end)
    return match.end() if match else start


@cache
def _words_of(literal: str) -> tuple[Word, ...]:
    """Return the words and signs of literal text, without its punctuation.

    A colon on its own, as in the short rendering, counts: some lines have no other mark.
    """
    if literal == " : ":
        return (Word(":", False),)
    tokens = re.sub(f"[{_MARKS}`]", " ", literal.casefold())
    return tuple(Word(token, token in _SMALL_WORDS) for token in _TOKEN.findall(tokens))


@cache
def _regex_of(word: Word) -> str:
    return _SYMBOLS.get(word.text) or re.escape(word.text) + (r"(?!\w)" if word.text[-1].isalnum() else "")


def _due_parts(line: Line) -> Iterator[Part | Word]:
    """Yield what a row must show for a line: words of its literal text, and slots."""
    for i, part in enumerate(line.parts):
        if isinstance(part, Part):
            yield part
        else:
            yield from _words_of(_OWN_NUMBER.sub("", part) if i == 0 else part)


def _find(due: Part | Word, text: str, start: int, end: int) -> Row | None:
    """Return the nearest place of a part after `start`; small words must be close, the others may be far off."""
    regex = due.pattern.regex if isinstance(due, Part) else _regex_of(due)
    gap = _GAP if isinstance(due, Word) and due.is_optional else _LONG_GAP
    match = compiled(f"{gap}{{0,40}}?({regex})").match(text, start, end)
    return Row(*match.span(1)) if match else None


def scan(line: Line, text: str, row: Row) -> Scan:
    """Follow a row through the parts of a line, whatever the values are."""
    head = _HEAD.match(text, row.start, row.end)
    stop = head.end() if head else row.start
    found: list[Found] = []
    for due in _due_parts(line):
        match = _find(due, text, stop, row.end)
        if match is None and isinstance(due, Word) and due.is_optional:
            continue
        if match is None:
            return Scan(tuple(found), stop, due)
        stop = match.end
        if isinstance(due, Part):
            found.append(Found(due, match.start, stop))
    return Scan(tuple(found), stop, None)


def rows_of(text: str) -> list[Row]:
    """Return the lines of a text that are not blank."""
    rows = re.finditer(r"[^\r\n]+", text)
    return [Row(match.start(), match.end()) for match in rows if not match.group().isspace()]


class Reader:
    """One reading of a response.

    Args:
        gold: The lines of the gold chain.
        shapes: One line of every shape that the task knows; their values do not matter.
        text: The response.
    """

    def __init__(self, gold: Sequence[Line], shapes: Sequence[Line], text: str) -> None:
        self._gold, self._shapes, self._text = gold, shapes, text
        self._slots: list[ReadSlot] = []
        self._n_lines, self._stop = 0, 0
        self._n_slots = sum(len(line.slots) for line in gold)
        self._open_end = len(text.rstrip(" \t"))  # text that ends with a newline has no open end

    def read(self) -> Reading:
        """Return the slots read up to and including the first wrong one."""
        rows = rows_of(self._text)
        for row in rows:
            if not self._take(row, is_last=row is rows[-1]):
                return Reading(self._slots, self._stop)
            if self._n_lines == len(self._gold):
                break
        else:
            self._stop = len(self._text)
        return Reading(self._slots, self._stop)

    def _take(self, row: Row, *, is_last: bool) -> bool:
        """Read one row; False when the reading ends here."""
        due = self._gold[self._n_lines]
        seen = scan(due, self._text, row)
        if seen.fits(self._text, row, due):
            self._n_lines += 1
            return all(self._add(found.part, found.start, found.end) for found in seen.found)
        shape = next((s for s in self._shapes if scan(s, self._text, row).fits(self._text, row, s)), None)
        if shape is not None and shape.kind == due.kind:
            self._blame(row, due, seen)
        elif shape is not None:
            self._take_out_of_order(row, due, shape)
        elif is_last and row.end >= self._open_end:
            self._take_cut(row, seen)
        else:
            self._stop = row.start
            return self._n_lines == 0
        return False

    def _add(self, part: Part, start: int, end: int, error_type: str | None = None) -> bool:
        """Note the next slot and return whether it is right; with an error type it is wrong anyway.

        A wrong value at the open end of the text may be the beginning of the right one and is not noted.
        """
        got = self._text[start:end]
        is_right = error_type is None and part.means(got)
        is_beginning = part.value.casefold().startswith(got.casefold())
        is_answer = len(self._slots) == self._n_slots - 1
        self._stop = end
        if not is_right and is_beginning and end >= self._open_end and not is_answer:
            self._stop = start
            return False
        wrong_type = None if is_right else error_type or part.error_type
        self._slots.append(ReadSlot(len(self._slots), start, end, got, is_right, wrong_type))
        return is_right

    def _word_at(self, start: int, end: int) -> tuple[int, int]:
        """Return the span of the next run of characters without a space."""
        match = re.compile(r"\s*(\S*)").match(self._text, start, end)
        return match.span(1) if match else (start, start)

    def _take_out_of_order(self, row: Row, due: Line, shape: Line) -> None:
        """Name the error of a row of another kind than the one that is due."""
        start, end = self._word_at(row.start, row.end)
        self._stop = start
        if shape.kind.rank > due.kind.rank and due.kind.repeats:
            self._add(due.slots[0], start, end, FEWER_HOPS)
        elif shape.kind.rank < due.kind.rank and shape.kind.repeats:
            self._add(due.slots[0], start, end, MORE_HOPS)

    def _blame(self, row: Row, due: Line, seen: Scan) -> None:
        """Find the first wrong slot of a row whose kind is right and whose shape is not."""
        is_over = len(seen.found) == len(due.slots)
        for found in seen.found[: -1 if is_over else None]:
            if not self._add(found.part, found.start, found.end):
                return
        if is_over:
            last = seen.found[-1]
            end = row.end if last.part.means(self._text[last.start : last.end]) else last.end
            self._add(last.part, last.start, end, last.part.error_type)
        else:
            self._stop = seen.stop
            is_cut = row.end >= self._open_end and _skip_gap(self._text, seen.stop, row.end) == row.end
            part = due.slots[len(seen.found)]
            if not is_cut:
                self._add(part, *self._word_at(seen.stop, row.end), part.error_type)

    def _take_cut(self, row: Row, seen: Scan) -> None:
        """Read the slots of a last row that breaks off; the value that it breaks off after is in doubt.

        A wrong value counts only after a whole line, since two words of any text may look like a first line.
        """
        rest = self._text[_skip_gap(self._text, seen.stop, row.end) : row.end].casefold()
        is_prefix = not rest or (isinstance(seen.due, Word) and seen.due.text.startswith(rest))
        is_trusted = is_prefix and self._n_lines > 0
        self._stop = row.start
        for found in seen.found[:-1]:
            is_right = found.part.means(self._text[found.start : found.end])
            if not (is_right or is_trusted) or not self._add(found.part, found.start, found.end):
                return
