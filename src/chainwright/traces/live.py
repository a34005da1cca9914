"""The segments and steps of a response while it is being written, token by token.

What holds at a token depends on the tokens up to it alone: it is what `segment` says of the text so far. A marker that
is split over several tokens therefore counts from the token that completes it, and reading a whole trace token by
token gives the same as decoding it did. After the last token the segments are those of the finished `Trace`, with one
exception that nobody can foresee: a plain response in which no line announces an answer has no summary here.

A step begins at the first token of a sentence or line. Whether that sentence will turn out to be a mere fragment,
which a finished trace adds to the step before it, is not known at its first token; so fragments count as beginnings
here, while the step before them is cut as in the finished trace.

Cutting a text is `segments.py`'s work. This module only avoids doing it again for tokens at which nothing can change.
"""

from __future__ import annotations

import copy
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from chainwright._errors import BadInput
from chainwright.traces.offsets import MarkerDecoder, Tokenizer, token_offsets
from chainwright.traces.segments import (
    SegmentConfig,
    Segments,
    Span,
    announces_answer,
    check_style,
    detect_style,
    is_opened_by,
    segment,
)

if TYPE_CHECKING:
    from chainwright.traces.trace import Trace

_WINDOW = 12  # ids that are decoded again to see what a new one adds
_UNFINISHED = "\ufffd"
_ANNOUNCEMENT = 64  # characters within which a line announces an answer, if it does
_TAIL = 64  # ids of the prompt in which an opening marker is looked for


class Place(NamedTuple):
    """Where a token stands, judged from the tokens up to it. Positions count from the row's first token.

    Attributes:
        question_end: End of the question; the thinking begins there.
        thinking_end: End of the thinking, or -1 while it goes on.
        previous: The step before this token if it is the first of a step of the thinking or of the summary, but not of
            the first one; else None.
    """

    question_end: int
    thinking_end: int
    previous: Span | None

    def moved(self, n: int) -> Place:
        """Return the place with all positions `n` further on."""
        previous = None if self.previous is None else Span(self.previous.start + n, self.previous.end + n)
        return Place(self.question_end + n, -1 if self.thinking_end < 0 else self.thinking_end + n, previous)


@dataclass(frozen=True)
class LiveSteps:
    """How a response is read while it is written.

    Attributes:
        tokenizer: The model's tokenizer.
        style: "think", "harmony", "plain", or "auto" to go by the markers as they appear.
        config: How the thinking is cut into steps.
    """

    tokenizer: Tokenizer
    style: str = "auto"
    config: SegmentConfig | None = None

    def __post_init__(self) -> None:
        """Check the style."""
        if self.style != "auto":
            check_style(self.style)

    def row(self, n_question: int | None = None) -> LiveRow:
        """Return an empty row; `n_question` tokens are the prompt, or those of the first `extend` if it is None."""
        if n_question is not None and n_question < 1:
            raise BadInput(f"A question takes at least one token; got {n_question}.")
        return LiveRow(self, n_question)


class LiveRow:
    """The tokens of one row, and the place of each.

    Attributes:
        ids: All tokens so far.
        places: One for each.
    """

    def __init__(self, how: LiveSteps, n_question: int | None):
        self.how = how
        self.n_question = n_question
        self.ids: list[int] = []
        self.places: list[Place] = []
        self._response: _Response | None = None

    def extend(self, ids: list[int]) -> list[Place]:
        """Take in tokens, and return their places."""
        if self.n_question is None:
            self.n_question = len(ids)
        start = len(self.ids)
        for token_id in ids:
            self.ids.append(token_id)
            self.places.append(self._place(token_id))
        return self.places[start:]

    def truncate(self, n_tokens: int) -> None:
        """Forget all tokens from position `n_tokens` on."""
        if n_tokens >= len(self.ids):
            return
        del self.ids[n_tokens:], self.places[n_tokens:]
        if self._response is not None and self.n_question is not None:
            n_kept = n_tokens - self.n_question
            if n_kept <= 0:
                self._response = None
            else:
                self._response.truncate(n_kept, self.places[-1].moved(-self.n_question))

    def copy(self) -> LiveRow:
        """Return a row that goes on from here by itself."""
        other = LiveRow(self.how, self.n_question)
        other.ids, other.places = list(self.ids), list(self.places)
        other._response = None if self._response is None else self._response.copy()
        return other

    def _place(self, token_id: int) -> Place:
        assert self.n_question is not None
        if len(self.ids) <= self.n_question:
            return Place(self.n_question, -1, None)
        if self._response is None:
            prompt = self.ids[max(0, self.n_question - _TAIL) : self.n_question]
            decode = MarkerDecoder(self.how.tokenizer)
            self._response = _Response(self.how, decode, decode(prompt))
        return self._response.append(token_id).moved(self.n_question)


class KnownRow:
    """The tokens of a finished trace, whose places are those of its spans.

    Attributes:
        ids: The tokens so far.
        all_places: The places of all tokens of the trace.
    """

    def __init__(self, all_places: list[Place], ids: list[int] | None = None):
        self.all_places = all_places
        self.ids: list[int] = ids or []

    @classmethod
    def of(cls, trace: Trace) -> KnownRow:
        """Return the row of a trace, before its first token."""
        inside = [step for step in trace.steps[1:] if step.start < trace.thinking.end]
        befores = dict(zip((step.start for step in inside[1:]), inside, strict=False))
        if inside:
            befores[trace.summary.start] = inside[-1]
        border = trace.thinking.end
        places = [
            Place(trace.question.end, border if border <= t and t >= trace.question.end else -1, befores.get(t))
            for t in range(len(trace))
        ]
        return cls(places)

    def extend(self, ids: list[int]) -> list[Place]:
        """Take in tokens, and return their places."""
        start = len(self.ids)
        self.ids += ids
        if len(self.ids) > len(self.all_places):
            raise BadInput(f"The trace has {len(self.all_places)} tokens, but the model was given more.")
        return self.all_places[start : len(self.ids)]

    def truncate(self, n_tokens: int) -> None:
        """Forget all tokens from position `n_tokens` on."""
        del self.ids[n_tokens:]

    def copy(self) -> KnownRow:
        """Return a row that goes on from here by itself."""
        return KnownRow(self.all_places, list(self.ids))


class _Response:
    """The response of one row; positions count from its first token, characters from its first."""

    def __init__(self, how: LiveSteps, decode: MarkerDecoder, prompt: str):
        self.how = how
        self.decode = decode
        self.prompt = prompt
        self.ids: list[int] = []
        self.text = ""
        self.anchors: list[int] = []  # first character of each token that is not white space, never falling
        self.place = Place(0, -1, None)  # of the latest token
        self.window = (0, "")  # an index into `ids`, and the text of the ids from there on
        self.is_unfinished = False  # whether the latest token leaves a character incomplete

    def copy(self) -> _Response:
        """Return a response that goes on from here by itself."""
        other = copy.copy(self)
        other.ids, other.anchors = list(self.ids), list(self.anchors)
        return other

    def truncate(self, n_tokens: int, place: Place) -> None:
        """Forget all tokens but the first ones, the last of which had this place."""
        del self.ids[n_tokens:]
        self.place = place
        self._read_again()

    def append(self, token_id: int) -> Place:
        """Take in one token and return its place."""
        before = len(self.text)
        self.ids.append(token_id)
        added = self._added_text()
        if added is None:
            self._read_again()
            self.place = self._look()
        else:
            self._anchor(before, added)
            self.text += added
            self.place = self._look() if self._may_change(before, added) else self.place._replace(previous=None)
        return self.place

    def _anchor(self, start: int, piece: str) -> None:
        n_blank = len(piece) - len(piece.lstrip())
        position = start + (n_blank if n_blank < len(piece) else 0)
        self.anchors.append(max(position, self.anchors[-1] if self.anchors else 0))

    def _added_text(self) -> str | None:
        """Return what the latest token adds to the text, or None if that cannot be told from a few tokens."""
        start, old = self.window
        if len(self.ids) - start > 2 * _WINDOW:
            start = len(self.ids) - _WINDOW
            old = self.decode(self.ids[start:-1])
        now = self.decode(self.ids[start:])
        self.window = (start, now)
        was_unfinished, self.is_unfinished = self.is_unfinished, now.endswith(_UNFINISHED)
        if self.is_unfinished:
            return ""
        if was_unfinished or not now.startswith(old) or not self.text.endswith(old[-8:]):
            return None
        return now[len(old) :]

    def _read_again(self) -> None:
        """Read all tokens anew, as a finished trace is read."""
        self.text, offsets = token_offsets(self.how.tokenizer, self.ids, keep_markers=True)
        self.anchors = []
        for span in offsets:
            self._anchor(span.start, self.text[span.start : span.end])
        self.window = (len(self.ids), "")
        self.is_unfinished = self.text.endswith(_UNFINISHED)

    def _may_change(self, before: int, added: str) -> bool:
        """Return whether the token can begin a step, complete a marker, or make its line announce an answer."""
        if len(self.ids) == 1 or any(mark in added for mark in ">\n.?!"):
            return True
        old = self.text[:before]
        said = old.rstrip()
        gap = old[len(said) :] + added[: len(added) - len(added.lstrip())]
        if said.endswith(">") or "\n" in gap or (gap and said[-1:] in (".", "?", "!")):
            return True
        line = old.rfind("\n") + 1
        return len(self.text) - line < _ANNOUNCEMENT and (
            announces_answer(old[line:]) != announces_answer(self.text[line:])
        )

    def _look(self) -> Place:
        """Return the latest token's place, from the whole text so far."""
        style = detect_style(self.prompt, self.text) if self.how.style == "auto" else check_style(self.how.style)
        opened = is_opened_by(self.prompt, style)
        cut = partial(segment, style=style, opened=opened, complete=False)
        found = cut(self.text, config=self.how.config)
        question_end = bisect_left(self.anchors, found.opening.end)
        first = bisect_left(self.anchors, found.summary.start)
        has_summary = found.summary.start < found.summary.end and first < len(self.ids)
        thinking_end = max(first, question_end) if has_summary else -1
        return Place(question_end, thinking_end, self._step_before(cut, found))

    def _step_before(self, cut: Callable[..., Segments], found: Segments) -> Span | None:
        """Return the step before the latest token, if a step can begin there."""
        latest = len(self.ids) - 1
        fine = cut(self.text, config=SegmentConfig(min_chars=0, merge_numbers=False))
        begin = max((step.start for step in fine.steps if step.start <= self.anchors[latest]), default=-1)
        if begin < 0 or begin > found.summary.start or bisect_left(self.anchors, begin) != latest:
            return None
        # the next sentence may become long: does a step begin here then?
        config = self.how.config or SegmentConfig()
        if begin < found.summary.start:
            found = cut(self.text[:begin] + "x" * max(1, config.min_chars), config=config)
        starts = [step.start for step in found.steps if step.start < found.thinking.end]
        if begin < found.thinking.end and begin not in starts:
            return None
        before = [start for start in starts if start < begin]
        if not before:
            return None
        first = bisect_left(self.anchors, before[-1])
        return Span(first, latest) if first < latest else None
