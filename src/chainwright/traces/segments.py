r"""The parts of a response: its thinking, its summary, and the steps of both.

Everything here works on characters of the response text; `_align.py` maps the result to tokens.

1. Find the marker that opens the thinking (`<think>`, a Harmony analysis header) and the one that closes it.
   A marker ends the segment before it: an opening one belongs to the question, a closing one to the thinking.
2. Cut the thinking into sentences, after `. `, `? `, `! ` and after newlines. Fragments under
   `SegmentConfig.min_chars` characters, and bare numbers, are merged into the step before them, a first one into
   the next.
3. Cut the summary into paragraphs, after blank lines.

Only the first closing marker counts; later markers are ordinary text. So the segment of a token depends only on the
tokens before it, and a response is cut during decoding as it is when read afterwards. The plain style, which has no
markers, is the exception: its summary begins at the answer line, which is known only at the end.

Source: Step-Saliency (arXiv 2604.06695), the definition of segments and steps. Departure: the authors drop
short fragments, here they are merged, so that the steps tile the text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, NamedTuple

from chainwright._errors import unknown_name

Style = Literal["think", "harmony", "plain"]
STYLES: tuple[Style, ...] = ("think", "harmony", "plain")
MARKERS = ("<think>", "</think>", "<|start|>", "<|end|>", "<|channel|>", "<|message|>")

_HEADER = r"(?:<\|start\|>[^<]*)?<\|channel\|>\s*{channel}\b[^<]*(?:<\|constrain\|>[^<]*)?<\|message\|>"
_OPENING = {
    "think": re.compile(r"\s*<think>"),
    "harmony": re.compile(r"\s*" + _HEADER.format(channel="analysis")),
}
_CLOSING = {
    "think": re.compile(r"</think>"),
    "harmony": re.compile(r"(?:<\|end\|>\s*)?" + _HEADER.format(channel="final")),
}
_OPEN_AT_END = {
    "think": re.compile(r"<think>\s*\Z"),
    "harmony": re.compile(_HEADER.format(channel="analysis") + r"\s*\Z"),
}
_SENTENCE_END = re.compile(r"[.?!] +|\n+")
_PARAGRAPH_END = re.compile(r"\n[^\S\n]*\n\s*")
_BARE_NUMBER = re.compile(r"[+-]?\d[\d.,]*%?")
_BESIDE_NUMBERS = "()[].:, "
_ANSWER = re.compile(r"\\boxed|(?:the )?(?:final )?answer\b|therefore\b", re.IGNORECASE)
_BEFORE_ANSWERS = " \t>*_$#-"


class Span(NamedTuple):
    """A half-open range: `start` is its first position and `end` one past its last."""

    start: int
    end: int


@dataclass(frozen=True)
class SegmentConfig:
    """How thinking is cut into steps.

    Attributes:
        min_chars: A fragment with fewer characters, not counting outer white space, is merged into another step.
        merge_numbers: Whether a fragment that is only a number is merged into another step, whatever its length.
    """

    min_chars: int = 15
    merge_numbers: bool = True


ONE_LINE_ONE_STEP = SegmentConfig(min_chars=1, merge_numbers=False)
"""For short renderings, where each hop is a line such as `ann flips tails`."""


@dataclass(frozen=True)
class Segments:
    """The parts of a response, in characters, without gaps between them.

    Attributes:
        style: The style of markers that was used.
        opening: The part at the start that belongs to the question: an opening marker, or nothing.
        thinking: From there to the end of the closing marker (plain: to the answer line).
        summary: The rest.
        steps: Steps of the thinking, then of the summary. They tile `[opening.end, len(text))`.
    """

    style: Style
    opening: Span
    thinking: Span
    summary: Span
    steps: tuple[Span, ...]


def detect_style(question: str, response: str) -> Style:
    """Return the style of the markers at the end of a question and in its response; "plain" without any."""
    if "<|channel|>" in response and (_CLOSING["harmony"].search(response) or _OPENING["harmony"].match(response)):
        return "harmony"
    if "</think>" in response or _OPENING["think"].match(response):
        return "think"
    for style in ("harmony", "think"):
        if _OPEN_AT_END[style].search(question):
            return check_style(style)
    return "plain"


def check_style(style: str) -> Style:
    """Return `style` if it is one of `STYLES`.

    Raises:
        BadInput: It is not; the message lists the allowed ones.
    """
    for known in STYLES:
        if style == known:
            return known
    raise unknown_name("trace style", style, ("auto", *STYLES))


def is_opened_by(question: str, style: Style) -> bool:
    """Return whether a question ends with the opening marker, as some chat templates make it."""
    return style != "plain" and _OPEN_AT_END[style].search(question) is not None


def segment(
    text: str, style: Style, *, opened: bool = False, config: SegmentConfig | None = None, complete: bool = True
) -> Segments:
    """Return the thinking, the summary and the steps of a response text.

    Without a closing marker everything is thinking if it was opened (an unclosed `<think>`), otherwise everything is
    summary. An opening marker counts only at the very start of the text; elsewhere it is ordinary text.

    Args:
        text: The response, without the question; may be empty.
        style: "think", "harmony" or "plain".
        opened: Whether the question already ends with the opening marker.
        config: How the thinking is cut into steps.
        complete: Whether the response is finished. While it is being written, the last line of a plain response is not
            a summary unless it announces an answer.

    Raises:
        BadInput: `style` is unknown.
    """
    known = check_style(style)
    config = config or SegmentConfig()
    begin, close, border = find_borders(text, known, opened=opened, complete=complete)
    steps = _thinking_steps(text, begin, close, border, config) + _summary_steps(text, border)
    return Segments(known, Span(0, begin), Span(begin, border), Span(border, len(text)), tuple(steps))


class Borders(NamedTuple):
    """The start of the thinking, of its closing marker, and of the summary."""

    begin: int
    close: int
    border: int


def find_borders(text: str, style: Style, *, opened: bool, complete: bool) -> Borders:
    """Return the borders of the segments alone; see `segment`."""
    if style == "plain":
        answer = _answer_line_start(text, complete)
        return Borders(0, answer, answer)
    opening = _OPENING[style].match(text)
    begin = opening.end() if opening else 0
    closing = _CLOSING[style].search(text, begin)
    if closing is None:
        border = len(text) if opening or opened else 0
        return Borders(begin, border, border)
    if style == "harmony" and not (opening or opened) and not text[: closing.start()].strip():
        # A final header with no analysis before it closes the question: there is no thinking.
        return Borders(closing.end(), closing.end(), closing.end())
    return Borders(begin, closing.start(), closing.end())


def _answer_line_start(text: str, complete: bool) -> int:
    """Return the start of the last line that announces an answer.

    Without one, it is that of the last line that is not blank, or the end of a text that is still being written.
    """
    end, last = len(text), 0
    for line in reversed(text.splitlines(keepends=True)):
        start = end - len(line)
        if announces_answer(line):
            return start
        last = last or (start if line.strip() else 0)
        end = start
    return last if complete else len(text)


def announces_answer(line: str) -> bool:
    """Return whether a line announces the answer, such as `Answer: 4` or `#### 4`."""
    return line.lstrip().startswith("####") or _ANSWER.match(line.lstrip(_BEFORE_ANSWERS)) is not None


def _thinking_steps(text: str, begin: int, close: int, border: int, config: SegmentConfig) -> list[Span]:
    """Return the steps of the thinking; the last one includes the closing marker `[close, border)`."""

    def is_small(fragment: str) -> bool:
        words = fragment.strip()
        return len(words) < config.min_chars or (
            config.merge_numbers and _BARE_NUMBER.fullmatch(words.strip(_BESIDE_NUMBERS)) is not None
        )

    steps = _merge(text, _cut(text, begin, close, _SENTENCE_END), is_small)
    if border == close:
        return steps
    last = steps.pop() if steps else Span(close, close)
    return [*steps, Span(last.start, border)]


def _summary_steps(text: str, border: int) -> list[Span]:
    """Return the paragraphs from `border` on; white space alone is not a paragraph."""
    pieces = _cut(text, border, len(text), _PARAGRAPH_END)
    return _merge(text, pieces, lambda paragraph: not paragraph.strip())


def _cut(text: str, begin: int, end: int, boundary: re.Pattern[str]) -> list[Span]:
    """Return the pieces of `text[begin:end]`, each with the boundary that ends it."""
    ends = [match.end() for match in boundary.finditer(text, begin, end)]
    borders = [begin, *(position for position in ends if position < end), end]
    return [Span(a, b) for a, b in pairwise(borders) if a < b]


def _merge(text: str, pieces: Sequence[Span], is_small: Callable[[str], bool]) -> list[Span]:
    """Return the pieces with small ones merged into the one before; a small first one is merged with those after it."""
    merged: list[Span] = []
    for piece in pieces:
        first_is_small = len(merged) == 1 and is_small(text[slice(*merged[0])])
        if merged and (first_is_small or is_small(text[slice(*piece)])):
            merged[-1] = Span(merged[-1].start, piece.end)
        else:
            merged.append(piece)
    return merged
