"""The segments and steps of a response while it is being written, token by token.

A token's place depends only on the tokens up to it: it is what `segment` gives for the text so far. So a marker that is
split over several tokens counts from the token that completes it, and reading a finished trace token by token gives the
same places as while it was decoded. After the last token the segments are those of the finished `Trace`, with one
exception that cannot be known earlier: a plain response in which no line announces an answer has no summary here.

A step begins at the first token of a sentence or line. At that token it is unknown whether the sentence will turn out
to be a fragment, which a finished trace merges into the step before it. So fragments count as beginnings here, while
the step before them is cut as in the finished trace.

`segments.py` cuts the text, `_growing_text.py` decodes it; both read on from where they were, so the time grows
linearly with the number of tokens. This module only asks them at each token.
"""

from __future__ import annotations

import copy
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from chainwright._errors import BadInput
from chainwright.markers.borders import prompt_family
from chainwright.traces._cutting import Pieces, is_tool
from chainwright.traces._growing_text import GrowingText
from chainwright.traces.offsets import MarkerDecoder, Tokenizer
from chainwright.traces.segments import Look, Reader, SegmentConfig, Span, check_style, thinking_steps

if TYPE_CHECKING:
    from chainwright.traces.trace import Trace

_NEAR = 32  # pieces before a step that are searched for the last one that is the model's


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
        config: How the thinking is recognised and cut into steps.
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
            decode = MarkerDecoder(self.how.tokenizer, (self.how.config or SegmentConfig()).pair())
            self._response = _Response(self.how, decode, decode(self.ids[: self.n_question]))
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
        models = [step for step, is_models in zip(trace.steps, trace.is_models_step, strict=True) if is_models]
        inside = [step for step in models if step.start < trace.thinking.end]
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


class _Response:
    """The response of one row; positions count from its first token, characters from its first.

    Attributes:
        written: Its tokens and their text.
        place: That of the latest token.
    """

    def __init__(self, how: LiveSteps, decode: MarkerDecoder, prompt: str):
        self.how = how
        self.written = GrowingText(how.tokenizer, decode)
        self.place = Place(0, -1, None)
        family = prompt_family(prompt, how.style, (how.config or SegmentConfig()).pair())
        self._reader = Reader(how.style, how.config, family=family)

    def copy(self) -> _Response:
        """Return an independent response with the same tokens."""
        other = copy.copy(self)
        other.written, other._reader = self.written.copy(), self._reader.copy()
        return other

    def truncate(self, n_tokens: int, place: Place) -> None:
        """Drop all but the first tokens, the last of which had this place."""
        if self.written.truncate(n_tokens):
            self._reader.restart()
        else:
            self._reader.truncate(self.written.n_whole)
        self.place = place

    def append(self, token_id: int) -> Place:
        """Add one token and return its place."""
        if self.written.append(token_id) is None:  # any of the text may have changed
            self._reader.restart()
        self.place = self._look()
        return self.place

    def _look(self) -> Place:
        """Return the latest token's place."""
        text, anchors = self.written.text, self.written.anchors
        # a character that is not complete yet will be replaced by another one
        self._reader.feed(text, self.written.n_whole)
        look = self._reader.look(text, complete=False)
        begin, _, border = look.borders
        question_end = bisect_left(anchors, begin)
        first = bisect_left(anchors, border)  # the summary's first token
        has_summary = border < len(text) and first < len(anchors)
        thinking_end = max(first, question_end) if has_summary else -1
        if has_summary and first < len(anchors) - 1:
            return Place(question_end, thinking_end, None)  # steps inside the summary are not reported
        pieces = self._reader.pieces(text, self.written.n_whole, look)
        before = self._before_summary(pieces, look) if has_summary else self._before_step(pieces)
        start = -1 if before is None else bisect_left(anchors, before)
        latest = len(anchors) - 1
        return Place(question_end, thinking_end, Span(start, latest) if 0 <= start < latest else None)

    def _before_summary(self, pieces: Pieces, look: Look) -> int | None:
        """Return the first character of the last step of the thinking that is the model's; None without any."""
        steps = thinking_steps(self.written.text, pieces, look.borders.close, look.borders.border)
        return self._models([step.start for step in steps[-_NEAR:]], pieces)

    def _before_step(self, pieces: Pieces) -> int | None:
        """Return the first character of the step before the one that begins at the latest token; None if none does."""
        text, anchors, n_whole = self.written.text, self.written.anchors, self.written.n_whole
        if len(text) > n_whole:
            # a step may begin with the character that is not complete; it is taken back at once
            pieces = pieces.tail(_NEAR)
            pieces.feed(text, len(text))
        piece = bisect_right(pieces.starts, anchors[-1]) - 1
        if piece < 1 or bisect_left(anchors, pieces.starts[piece]) != len(anchors) - 1:
            return None
        if pieces.is_open(text, piece) or (pieces.is_harmony and is_tool(text, pieces.starts[piece])):
            return None
        return self._models(pieces.steps[max(0, piece - _NEAR) : piece], pieces)

    def _models(self, starts: Sequence[int], pieces: Pieces) -> int | None:
        """Return the last of some steps that no tool wrote."""
        text = self.written.text
        return next((s for s in reversed(starts) if not (pieces.is_harmony and is_tool(text, s))), None)
