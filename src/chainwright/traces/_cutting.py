r"""Where steps begin in thinking: sentence ends of every script, lines, blank lines, or a pattern of the user's.

1. A boundary is where the match of a delimiter ends. In Harmony's format the end of a message is one too.
2. A piece that is too short to be a step joins the one before it; a first one is joined by those after it. Nothing
   joins across the end of a message.
3. A message that a tool wrote is one piece.

A boundary counts once a character follows it, so that a text which is being written gets each one at the first
character of the step that begins there, and reading on never moves it.

Source: Unicode's Sentence_Terminal property (UAX 29, UAX 44); Step-Saliency (arXiv 2604.06695) for English.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import regex

from chainwright._errors import BadInput
from chainwright.markers.known import LINE_END, ThinkMarkers, as_markers

_SPACE = r"[ \u00a0\u2009\u202f\u3000]"
# after a stop of a Latin text an opening mark can only be a closing one of another country, as in German
_CLOSING = r"[\p{Pe}\p{Pf}\p{Pi}\"'*_~]"
_CLOSING_WIDE = r"[\p{Pe}\p{Pf}\"'*_~]"
_HAN = r"\p{Han}\p{Hiragana}\p{Katakana}"
# U+2024 is a dot of a table of contents; the wide stops may stand in a number
_WIDE = r"(?:[\p{Sentence_Terminal}--[\x00-\x7f\u2024\uff0e\ufe52]]|[\uff0e\ufe52](?!\d))"
_SENTENCE = (
    rf"(?V1)[.?!\u2026]{_CLOSING}{{0,32}}(?:{_SPACE}\u00bb)?{_SPACE}+"
    rf"|{_WIDE}(?:{_WIDE}|[?!])*+{_CLOSING_WIDE}{{0,32}}+\s*+"
    rf"|[?!]++{_CLOSING_WIDE}{{0,32}}+(?=[{_HAN}])"
    rf"|{LINE_END}+"
)
_BLANK_LINES = rf"(?>{LINE_END})[^\S\n\r\v\f\x85\u2028\u2029]*(?>{LINE_END})\s*"
_DELIMITERS = {"sentences": _SENTENCE, "lines": rf"{LINE_END}+", "blank lines": _BLANK_LINES}
PARAGRAPH_END = regex.compile(_BLANK_LINES)
_HARD = r"(?P<hard><\|(?:end|call)\|>\s*)"
_TOOL = regex.compile(r"<\|start\|>(?!assistant)\w[^<]{0,200}<\|")
_BARE_NUMBER = regex.compile(r"[+-]?\d[\d.,]*%?")
_BESIDE_NUMBERS = "()[].:, \u3002\u3001\uff0c\uff1a\uff08\uff09\u0964"
_DENSE = regex.compile(rf"[{_HAN}\p{{Hangul}}]")
_BACK = 64  # characters before a boundary in which the match that ends there begins
_BACK_OWN = 256  # the same for a pattern of the user's


@dataclass(frozen=True)
class SegmentConfig:
    r"""How thinking is recognised and cut into steps.

    Attributes:
        min_chars: A fragment with fewer characters, not counting outer white space, is merged into another step. A
            character of Chinese, Japanese or Korean counts as three.
        merge_numbers: Whether a fragment that is only a number is merged into another step, whatever its length.
        delimiter: What ends a step: "sentences" (of every script, and lines), "lines", "blank lines", or a regular
            expression such as `r";\s*"`, whose match belongs to the step that it ends and has at most 256 characters.
        markers: The pair of markers around thinking, `("<think>", "</think>")`; None takes all known ones.

    Raises:
        BadInput: The delimiter is no regular expression, or the markers are no pair.
    """

    min_chars: int = 15
    merge_numbers: bool = True
    delimiter: str = "sentences"
    markers: ThinkMarkers | tuple[str, str] | None = None

    def __post_init__(self) -> None:
        """Check the delimiter and the markers."""
        boundary_pattern(self.delimiter, is_harmony=False)
        self.pair()

    def pair(self) -> ThinkMarkers | None:
        """Return the pair of markers, None for all known ones."""
        return None if self.markers is None else as_markers(self.markers)


@cache
def boundary_pattern(delimiter: str, *, is_harmony: bool) -> regex.Pattern[str]:
    """Return the pattern whose matches end a step.

    Raises:
        BadInput: The delimiter is neither a known name nor a regular expression.
    """
    own = _DELIMITERS.get(delimiter, delimiter)
    try:
        if not isinstance(own, str) or not own:
            raise BadInput(_bad_delimiter(delimiter))
        flags = "(?V1)" if delimiter in _DELIMITERS else ""
        body = own.removeprefix("(?V1)")
        return regex.compile(f"{flags}(?:{body})|{_HARD}" if is_harmony else f"{flags}{body}")
    except regex.error as error:
        raise BadInput(f"{_bad_delimiter(delimiter)} ({error})") from error


def _bad_delimiter(delimiter: object) -> str:
    return (
        f"A delimiter of steps is 'sentences', 'lines', 'blank lines' or a regular expression, got {delimiter!r}; "
        "see SegmentConfig."
    )


ONE_LINE_ONE_STEP = SegmentConfig(min_chars=1, merge_numbers=False)
"""For short renderings, where each hop is a line such as `ann flips tails`."""


class Boundary(NamedTuple):
    """Where a piece begins, and whether a message does."""

    start: int
    is_hard: bool


def is_tool(text: str, start: int) -> bool:
    """Return whether a message that begins at `start` was written by a tool, not by the model."""
    return _TOOL.match(text, start) is not None


class Pieces:
    """The pieces of a growing thinking, and the step that each belongs to.

    Attributes:
        starts: First character of each piece; the last one is still growing.
        messages: First character of the message that each piece is in; the thinking's without Harmony.
        steps: First character of the step that each complete piece is part of.
    """

    def __init__(self, begin: int, config: SegmentConfig, *, is_harmony: bool):
        self.begin, self.config, self.is_harmony = begin, config, is_harmony
        self.starts, self.messages = [begin], [begin]
        self.steps: list[int] = []
        self._pos = begin
        self._pattern = boundary_pattern(config.delimiter, is_harmony=is_harmony)
        self._back = _BACK if config.delimiter in _DELIMITERS else _BACK_OWN

    def copy(self) -> Pieces:
        """Return independent pieces of the same text."""
        other = copy.copy(self)
        other.starts, other.messages, other.steps = list(self.starts), list(self.messages), list(self.steps)
        return other

    def tail(self, n: int) -> Pieces:
        """Return the last `n` pieces, to try more text on, which leaves these as they are."""
        other = copy.copy(self)
        other.starts, other.messages = self.starts[-n:], self.messages[-n:]
        other.steps = self.steps[len(self.starts) - len(other.starts) :]
        return other

    def feed(self, text: str, end: int) -> None:
        """Read on to character `end`."""
        for boundary in self._boundaries(text, end):
            self.steps.append(self.step_of(text, len(self.starts) - 1, boundary.start))
            self.starts.append(boundary.start)
            self.messages.append(boundary.start if boundary.is_hard else self.messages[-1])
        said = self._pos + len(text[self._pos : end].rstrip())
        self._pos = max(self._pos, self.starts[-1], said - self._back)

    def truncate(self, end: int) -> None:
        """Go back to what was known when the text had `end` characters."""
        while len(self.starts) > 1 and self.starts[-1] >= end:
            del self.starts[-1], self.messages[-1]
        del self.steps[len(self.starts) - 1 :]
        self._pos = self.starts[-1]

    def _boundaries(self, text: str, end: int) -> Iterator[Boundary]:
        last = self.starts[-1]
        in_tool = self.is_harmony and is_tool(text, self.messages[-1])
        for match in self._pattern.finditer(text, self._pos, end):
            start, is_hard = match.end(), self.is_harmony and match["hard"] is not None
            if start >= end:
                return
            if start <= last or (in_tool and not is_hard):
                continue
            last = start
            in_tool = is_tool(text, start) if is_hard else in_tool
            yield Boundary(start, is_hard)

    def step_of(self, text: str, piece: int, end: int) -> int:
        """Return the first character of the step of a piece that ends at `end`; all pieces before it are complete."""
        start = self.starts[piece]
        if self.messages[piece] == start:
            return start
        before = self.steps[piece - 1]
        if self._is_small(text[start:end]) or self.is_open(text, piece):
            return before
        return start

    def is_open(self, text: str, piece: int) -> bool:
        """Return whether the step before a piece is the first of its message and still too short to be one."""
        start = self.starts[piece]
        if self.messages[piece] == start:
            return False
        before = self.steps[piece - 1]
        return before == self.messages[piece] and self._is_small(text[before:start])

    def _is_small(self, fragment: str) -> bool:
        words = fragment.strip()
        n = len(words)
        if n < self.config.min_chars and not words.isascii():
            n += 2 * len(_DENSE.findall(words))
        return n < self.config.min_chars or (
            self.config.merge_numbers and _BARE_NUMBER.fullmatch(words.strip(_BESIDE_NUMBERS)) is not None
        )
