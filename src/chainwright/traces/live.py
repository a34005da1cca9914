"""The segments and steps of a response while it is being written, token by token.

A token's place depends only on the tokens up to it: it is what `segment` gives for the text so far. So a marker that is
split over several tokens counts from the token that completes it, and reading a finished trace token by token gives the
same places as while it was decoded. After the last token the segments are those of the finished `Trace`, with one
exception that cannot be known earlier: a plain response in which no line announces an answer has no summary here.

A step begins at the first token of a sentence or line. At that token it is unknown whether the sentence will turn out
to be a fragment, which a finished trace merges into the step before it. So fragments count as beginnings here, while
the step before them is cut as in the finished trace.

`segments.py` cuts the text and `_growing_text.py` decodes it. This module only avoids cutting it again at tokens where
nothing can change, and cutting parts of it that can no longer change.
"""

from __future__ import annotations

import copy
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from chainwright._errors import BadInput
from chainwright.traces._growing_text import GrowingText
from chainwright.traces.offsets import MarkerDecoder, Tokenizer
from chainwright.traces.segments import (
    SegmentConfig,
    Segments,
    Span,
    Style,
    announces_answer,
    check_style,
    detect_style,
    find_borders,
    is_opened_by,
    segment,
)

if TYPE_CHECKING:
    from chainwright.traces.trace import Trace

_ANNOUNCEMENT = 64  # a line that announces an answer does so within this many characters
_TAIL = 64  # ids at the end of the prompt that are searched for an opening marker


class Place(NamedTuple):
    """The segment and step of a token, judged from the tokens up to it. Positions count from the row's first token.

    Attributes:
        question_end: End of the question, where the thinking begins.
        thinking_end: End of the thinking, or -1 while it continues.
        previous: If this token begins a step of the thinking other than the first, or the summary: the step before it.
            Otherwise None.
    """

    question_end: int
    thinking_end: int
    previous: Span | None

    def moved(self, n: int) -> Place:
        """Return the place with all positions shifted by `n`."""
        previous = None if self.previous is None else Span(self.previous.start + n, self.previous.end + n)
        return Place(self.question_end + n, -1 if self.thinking_end < 0 else self.thinking_end + n, previous)


@dataclass(frozen=True)
class LiveSteps:
    """Reads responses while they are written.

    Attributes:
        tokenizer: The model's tokenizer.
        style: "think", "harmony", "plain", or "auto" to detect it from the markers as they appear.
        config: How the thinking is cut into steps.
    """

    tokenizer: Tokenizer
    style: str = "auto"
    config: SegmentConfig | None = None

    def __post_init__(self) -> None:
        """Raise BadInput for an unknown style."""
        if self.style != "auto":
            check_style(self.style)

    def row(self, n_question: int | None = None) -> LiveRow:
        """Return an empty row whose first `n_question` tokens are the prompt; None: as its first `extend`."""
        if n_question is not None and n_question < 1:
            raise BadInput(f"A question has at least one token; got {n_question}.")
        return LiveRow(self, n_question)


class LiveRow:
    """The tokens of one row and their places, for a response that is being written.

    Attributes:
        ids: All tokens so far.
        places: The place of each.
    """

    def __init__(self, how: LiveSteps, n_question: int | None):
        self.how = how
        self.n_question = n_question
        self.ids: list[int] = []
        self.places: list[Place] = []
        self._response: _Response | None = None

    def extend(self, ids: list[int]) -> list[Place]:
        """Add tokens and return their places."""
        if self.n_question is None:
            self.n_question = len(ids)
        start = len(self.ids)
        for token_id in ids:
            self.ids.append(token_id)
            self.places.append(self._place(token_id))
        return self.places[start:]

    def truncate(self, n_tokens: int) -> None:
        """Drop all tokens from position `n_tokens` on, such as those that speculative decoding rejected."""
        if n_tokens >= len(self.ids):
            return
        del self.ids[n_tokens:], self.places[n_tokens:]
        if self._response is not None and self.n_question is not None:
            n_response = n_tokens - self.n_question
            if n_response <= 0:
                self._response = None
            else:
                self._response.truncate(n_response, self.places[-1].moved(-self.n_question))

    def copy(self) -> LiveRow:
        """Return an independent row with the same tokens, for a beam that branches here."""
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
    """The tokens of a finished trace, whose places follow from its spans without reading any text.

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
        """Add tokens and return their places."""
        start = len(self.ids)
        self.ids += ids
        if len(self.ids) > len(self.all_places):
            raise BadInput(f"The trace has {len(self.all_places)} tokens, but the model got more.")
        return self.all_places[start : len(self.ids)]

    def truncate(self, n_tokens: int) -> None:
        """Drop all tokens from position `n_tokens` on."""
        del self.ids[n_tokens:]

    def copy(self) -> KnownRow:
        """Return an independent row of the same trace with the same tokens."""
        return KnownRow(self.all_places, list(self.ids))


class _Settled(NamedTuple):
    """The beginning of a response whose cut into steps no further text can change.

    Attributes:
        start: Where it ends: the first character of a line at which a step of the thinking begins; 0 if it is empty.
        until: Length of the text from which that is certain; a text cut back below it must be read from the start.
        opening: End of the opening marker.
    """

    start: int = 0
    until: int = 0
    opening: int = 0


class _Response:
    """The response of one row; positions count from its first token, characters from its first.

    Attributes:
        written: Its tokens and their text.
        place: That of the latest token.
    """

    def __init__(self, how: LiveSteps, decode: MarkerDecoder, prompt: str):
        self.how = how
        self.prompt = prompt
        self.written = GrowingText(how.tokenizer, decode)
        self.place = Place(0, -1, None)
        self._style: Style | None = None
        self._settled = _Settled()

    def copy(self) -> _Response:
        """Return an independent response with the same tokens."""
        other = copy.copy(self)
        other.written = self.written.copy()
        return other

    def truncate(self, n_tokens: int, place: Place) -> None:
        """Drop all but the first tokens, the last of which had this place."""
        was_reread = self.written.truncate(n_tokens)
        self.place = place
        if was_reread or len(self.written.text) < self._settled.until:
            self._settled = _Settled()

    def append(self, token_id: int) -> Place:
        """Add one token and return its place."""
        before = self.written.append(token_id)
        if before is None:  # any of the text may have changed
            self._settled = _Settled()
            self.place = self._look()
        elif self._may_change(before):
            self.place = self._look()
        else:
            # the cut of the text is as it was: the token continues the step of the one before it
            self.place = self.place._replace(previous=None)
        return self.place

    def _may_change(self, before: int) -> bool:
        """Return whether the latest token can begin a step, complete a marker, or make its line announce an answer.

        Its characters are those from `before` on. A cheap test that may say yes too often, but never no wrongly: most
        tokens are the middle of a sentence, and cutting the text at each of them would take quadratic time.
        """
        old, added = self.written.text[:before], self.written.text[before:]
        words = old.rstrip()
        # a first token, the end of a marker, or a sentence that ends inside the token
        if not words or ">" in added or any(mark in added.rstrip()[:-1] for mark in "\n.?!"):
            return True
        # the white space between the last word and this token's first letter is what may be a boundary
        lead = added[: len(added) - len(added.lstrip())]
        gap = old[len(words) :] + (lead if len(lead) < len(added) else "")
        if words.endswith(">") or "\n" in gap or (gap and words[-1:] in (".", "?", "!")):
            return True
        # in the plain style a line may turn into the answer line after it began, as `answer` completes `ans`
        line = old.rfind("\n") + 1
        return len(self.written.text) - line < _ANNOUNCEMENT and (
            announces_answer(old[line:]) != announces_answer(self.written.text[line:])
        )

    def _look(self) -> Place:
        """Return the latest token's place, by cutting the part of the text that is not settled."""
        style = (
            detect_style(self.prompt, self.written.text) if self.how.style == "auto" else check_style(self.how.style)
        )
        if style != self._style:
            self._style, self._settled = style, _Settled()
        start = self._settled.start
        text = self.written.text[start:]
        # the settled part lies inside the thinking, so what follows it counts as opened
        opened = start > 0 or is_opened_by(self.prompt, style)
        borders = find_borders(text, style, opened=opened, complete=False)
        opening = self._settled.opening if start else borders.begin
        question_end = bisect_left(self.written.anchors, opening)
        first = bisect_left(self.written.anchors, start + borders.border)  # the summary's first token
        has_summary = borders.border < len(text) and first < len(self.written.ids)
        thinking_end = max(first, question_end) if has_summary else -1
        if has_summary and first < len(self.written.ids) - 1:
            return Place(question_end, thinking_end, None)  # steps inside the summary are not reported
        cut = partial(segment, style=style, opened=opened, complete=False)
        segments = cut(text, config=self.how.config)
        previous = self._step_before(cut, text, segments)
        if not has_summary:
            self._settle(segments, opening)
        return Place(question_end, thinking_end, previous)

    def _step_before(self, cut: Callable[..., Segments], text: str, segments: Segments) -> Span | None:
        """Return the step before the latest token if a step can begin there; `text` is the part that is not settled."""
        latest, settled = len(self.written.ids) - 1, self._settled.start
        # without merging, every sentence or line is a beginning; the latest token must be the first of one
        fine = cut(text, config=SegmentConfig(min_chars=0, merge_numbers=False))
        anchor = self.written.anchors[latest] - settled
        begin = max((step.start for step in fine.steps if step.start <= anchor), default=-1)
        if begin < 0 or begin > segments.summary.start or bisect_left(self.written.anchors, settled + begin) != latest:
            return None
        # the sentence that begins here is still short and would be merged; cut as if it had reached its full length
        config = self.how.config or SegmentConfig()
        if begin < segments.summary.start:
            segments = cut(text[:begin] + "x" * max(1, config.min_chars), config=config)
        starts = [step.start for step in segments.steps if step.start < segments.thinking.end]
        if begin < segments.thinking.end and begin not in starts:
            return None
        before = [start for start in starts if start < begin]
        if not before:
            return None
        first = bisect_left(self.written.anchors, settled + before[-1])
        return Span(first, latest) if first < latest else None

    def _settle(self, segments: Segments, opening: int) -> None:
        """Settle the text up to a step of the thinking that begins a line and is followed by others.

        Such a step is complete and long enough, so later text cannot change it, and nothing by which a border is
        recognised extends over its beginning.
        """
        start = self._settled.start
        starts = [start + step.start for step in segments.steps]
        # the last two steps may still grow or merge; the first one may still take in a fragment
        for begin in reversed(starts[1:-2]):
            # a Harmony header may be in progress across lines
            reaches_over = segments.style == "harmony" and "<|" in self.written.text[max(start, opening) : begin]
            if self.written.text[begin - 1] == "\n" and self.written.text[begin] not in "< \t" and not reaches_over:
                self._settled = _Settled(begin, starts[-1] + 1, opening)
                return
