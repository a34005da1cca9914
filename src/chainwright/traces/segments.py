r"""The parts of a response: its thinking, its summary, and the steps of both.

Everything here works on characters of the response text; `_align.py` maps the result to tokens.

1. Find the markers around the thinking (`markers.py`). An opening marker at the start belongs to the question, all
   others to the thinking, which ends with the marker that closes it last: text between two blocks of thinking is
   thinking.
2. Cut the thinking into steps (`_cutting.py`): sentences and lines. Fragments under `SegmentConfig.min_chars`
   characters, and bare numbers, are merged into the step before them, a first one into the next.
3. Cut the summary into paragraphs, after blank lines.

`Reader` does this for a text that grows; a finished text is one that grew all at once, so both are cut the same. What
the plain style, which has no markers, takes for its summary is the answer line, which is known only at the end.

Source: Step-Saliency (arXiv 2604.06695), the definition of segments and steps. Departures: the authors drop
short fragments, here they are merged, so that the steps tile the text; sentences end in every script.
"""

from __future__ import annotations

import copy
from bisect import bisect_left
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, NamedTuple

from chainwright._errors import unknown_name
from chainwright.markers.borders import Borders, marked_borders, plain_borders, prompt_family
from chainwright.markers.known import HARMONY, MARKERS, STRIPPED, ThinkMarkers, events
from chainwright.markers.scan import Core, Scan, scan
from chainwright.traces._cutting import ONE_LINE_ONE_STEP, PARAGRAPH_END, Pieces, SegmentConfig, is_tool

__all__ = [
    "MARKERS",
    "ONE_LINE_ONE_STEP",
    "STYLES",
    "Reader",
    "SegmentConfig",
    "Segments",
    "Span",
    "Style",
    "ThinkMarkers",
    "check_style",
    "detect_style",
    "is_opened_by",
    "segment",
]

Style = Literal["think", "harmony", "plain"]
"""How a response marks its thinking."""
STYLES: tuple[Style, ...] = ("think", "harmony", "plain")
"""All of them, in the order in which they are recognised."""
_CHECKPOINT = 400  # characters between two states that a text which is cut back returns to


class Span(NamedTuple):
    """A half-open range: `start` is its first position and `end` one past its last."""

    start: int
    end: int


@dataclass(frozen=True)
class Segments:
    """The parts of a response, in characters, without gaps between them.

    Attributes:
        style: The style of markers that was used.
        opening: The part at the start that belongs to the question: an opening marker, or nothing.
        thinking: From there to the end of the closing marker (plain: to the answer line).
        summary: The rest.
        steps: Steps of the thinking, then of the summary. They tile `[opening.end, len(text))`.
        tools: Those steps of the thinking that are messages of a tool (Harmony), not of the model.
    """

    style: Style
    opening: Span
    thinking: Span
    summary: Span
    steps: tuple[Span, ...]
    tools: tuple[Span, ...] = ()


def check_style(style: str) -> Style:
    """Return `style` if it is one of `STYLES`.

    Raises:
        BadInput: It is not; the message lists the allowed ones.
    """
    for known in STYLES:
        if style == known:
            return known
    raise unknown_name("trace style", style, ("auto", *STYLES))


def _style_of(family: str | None) -> Style:
    if family is None:
        return "plain"
    return "harmony" if family in (HARMONY, STRIPPED) else "think"


def detect_style(question: str, response: str, config: SegmentConfig | None = None) -> Style:
    """Return the style of the markers at the end of a question and in its response; "plain" without any."""
    reader = Reader("auto", config, family=prompt_family(question, "auto", (config or SegmentConfig()).pair()))
    reader.feed(response, len(response))
    return reader.look(response).style


def is_opened_by(question: str, style: Style, config: SegmentConfig | None = None) -> bool:
    """Return whether a question ends inside thinking, as some chat templates make it.

    That is with an opening marker, or with one and the beginning of the thinking.
    """
    return prompt_family(question, style, (config or SegmentConfig()).pair()) is not None


def segment(
    text: str,
    style: Style,
    *,
    opened: bool | str = False,
    config: SegmentConfig | None = None,
    complete: bool = True,
) -> Segments:
    """Return the thinking, the summary and the steps of a response text.

    Without a closing marker everything is thinking if it was opened (an unclosed `<think>`), otherwise everything is
    summary.

    Args:
        text: The response, without the question; may be empty.
        style: "think", "harmony" or "plain".
        opened: Whether the question already opens the thinking, or with which pair of markers, as `prompt_family` names
            it; True takes the first marker of the response for one of that pair.
        config: How the thinking is recognised and cut into steps.
        complete: Whether the response is finished. While it is being written, the last line of a plain response is not
            a summary unless it announces an answer.

    Raises:
        BadInput: `style` is unknown.
    """
    family = opened if isinstance(opened, str) else None
    reader = Reader(check_style(style), config, family=family, opened=bool(opened))
    reader.feed(text, len(text))
    return reader.segments(text, complete=complete)


class Look(NamedTuple):
    """The style and the borders of a text so far."""

    style: Style
    borders: Borders


class Reader:
    """Cuts a response that grows at its end and may be cut back.

    Attributes:
        style: "auto" or one of `STYLES`.
        config: How thinking is recognised and cut.
    """

    def __init__(
        self, style: str, config: SegmentConfig | None = None, *, family: str | None = None, opened: bool = False
    ):
        self.style, self.config = style, config or SegmentConfig()
        self._events = events(style, self.config.pair())
        # thinking that the prompt opened is as deep as if it had been opened here
        is_open = style != "plain" and (opened or family is not None)
        self._state = self._first = Scan(core=Core(family=family if is_open else None, depth=int(is_open)))
        self._checkpoints: list[tuple[int, Scan]] = []
        self._pieces: Pieces | None = None

    def copy(self) -> Reader:
        """Return an independent reader of the same text."""
        other = copy.copy(self)
        other._checkpoints = list(self._checkpoints)
        other._pieces = None if self._pieces is None else self._pieces.copy()
        return other

    def restart(self) -> None:
        """Forget all text."""
        self._state, self._checkpoints, self._pieces = self._first, [], None

    def feed(self, text: str, end: int) -> None:
        """Take note of `text[:end]`, which begins with what was fed before."""
        self._state = scan(self._events, self._state, text, end)
        if end - (self._checkpoints[-1][0] if self._checkpoints else 0) >= _CHECKPOINT:
            self._checkpoints.append((end, self._state))

    def truncate(self, end: int) -> None:
        """Go back to a text of `end` characters."""
        while self._checkpoints and self._checkpoints[-1][0] > end:
            del self._checkpoints[-1]
        self._state = self._checkpoints[-1][1] if self._checkpoints else self._first
        if self._pieces is not None:
            self._pieces.truncate(end)

    def look(self, text: str, *, complete: bool = True) -> Look:
        """Return the style and the borders of a text, of which the beginning was fed."""
        state = scan(self._events, self._state, text, len(text), final=True)
        style = _style_of(state.core.family) if self.style == "auto" else check_style(self.style)
        if style == "plain":
            return Look(style, plain_borders(state, text, complete=complete))
        return Look(style, marked_borders(state.core, text))

    def pieces(self, text: str, whole: int, look: Look) -> Pieces:
        """Return the pieces of the thinking, up to character `whole` of the text."""
        is_harmony, pieces = look.style == "harmony", self._pieces
        if pieces is None or (pieces.begin, pieces.is_harmony) != (look.borders.begin, is_harmony):
            pieces = self._pieces = Pieces(look.borders.begin, self.config, is_harmony=is_harmony)
        pieces.feed(text, whole)
        return pieces

    def segments(self, text: str, *, complete: bool = True) -> Segments:
        """Return all parts of a text of which everything was fed."""
        look = self.look(text, complete=complete)
        begin, close, border = look.borders
        pieces = self.pieces(text, len(text), look)
        thinking = thinking_steps(text, pieces, close, border)
        steps = (*thinking, *_summary_steps(text, border))
        tools = tuple(step for step in thinking if pieces.is_harmony and is_tool(text, step.start))
        return Segments(look.style, Span(0, begin), Span(begin, border), Span(border, len(text)), steps, tools)


def thinking_steps(text: str, pieces: Pieces, close: int, border: int) -> list[Span]:
    """Return the steps of a thinking whose closing marker is `text[close:border]`; the last step includes it."""
    n = bisect_left(pieces.starts, close)
    if border == pieces.begin:
        return []
    if n == 0:
        return [Span(pieces.begin, border)]
    starts = sorted({*pieces.steps[: n - 1], last_step(text, pieces, close)})
    steps = [Span(a, b) for a, b in pairwise([*starts, border])]
    # the header after a tool's message is the model's
    after = pieces.starts[n] if n < len(pieces.starts) else border
    if pieces.is_harmony and is_tool(text, steps[-1].start) and close < after < border:
        steps[-1:] = [Span(steps[-1].start, after), Span(after, border)]
    return steps


def last_step(text: str, pieces: Pieces, close: int) -> int:
    """Return the first character of the last step of a thinking whose own text ends at `close`."""
    return pieces.step_of(text, max(0, bisect_left(pieces.starts, close) - 1), close)


def _summary_steps(text: str, border: int) -> list[Span]:
    """Return the paragraphs from `border` on; white space alone is not a paragraph."""
    ends = [match.end() for match in PARAGRAPH_END.finditer(text, border)]
    borders = [border, *(position for position in ends if position < len(text)), len(text)]
    pieces = [Span(a, b) for a, b in pairwise(borders) if a < b]
    merged: list[Span] = []
    for piece in pieces:
        first_is_blank = len(merged) == 1 and _is_blank(text, merged[0])
        if merged and (first_is_blank or _is_blank(text, piece)):
            merged[-1] = Span(merged[-1].start, piece.end)
        else:
            merged.append(piece)
    return merged


def _is_blank(text: str, span: Span) -> bool:
    return not text[span.start : span.end].strip()
