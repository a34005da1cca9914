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

_WINDOW = 6  # ids that are decoded again to see what a new one adds
_INCOMPLETE = "\ufffd"  # what a decoder writes for the bytes of a character that is not complete
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


class _Settled(NamedTuple):
    """The part of a response whose cutting more text can no longer change.

    Attributes:
        start: Its end: the first character of a line with which a step of the thinking begins; 0 if there is none.
        until: How long the text has to be for that to be known.
        opening: End of the opening marker.
    """

    start: int = 0
    until: int = 0
    opening: int = 0


class _Added(NamedTuple):
    """What a token adds to the text: whole characters, and a stand-in for one that it leaves incomplete."""

    whole: str
    incomplete: str


class _Response:
    """The response of one row; positions count from its first token, characters from its first.

    Attributes:
        ids: Its tokens.
        text: Their text; a character that is not complete stands there as a replacement character.
        ends: How many characters were complete after each token.
        anchors: First character of each token that is not white space, never falling.
        place: That of the latest token.
    """

    def __init__(self, how: LiveSteps, decode: MarkerDecoder, prompt: str):
        self.how = how
        self.decode = decode
        self.prompt = prompt
        self.ids: list[int] = []
        self.text = ""
        self.ends: list[int] = []
        self.anchors: list[int] = []
        self.place = Place(0, -1, None)
        self._window = (0, "")  # an index into `ids`, and the whole characters of the ids from there on
        self._n_read = 0  # tokens that were read as a finished trace is; later ones one by one
        self._style: Style | None = None
        self._settled = _Settled()

    def copy(self) -> _Response:
        """Return a response that goes on from here by itself."""
        other = copy.copy(self)
        other.ids, other.anchors, other.ends = list(self.ids), list(self.anchors), list(self.ends)
        return other

    def truncate(self, n_tokens: int, place: Place) -> None:
        """Forget all tokens but the first ones, the last of which had this place."""
        del self.ids[n_tokens:], self.anchors[n_tokens:], self.ends[n_tokens:]
        self.place = place
        if n_tokens < self._n_read:
            self._read_again()
            return
        self.text = self.text[: self._n_whole]
        self.text += self._new_window(self.text)
        if len(self.text) < self._settled.until:
            self._settled = _Settled()

    def append(self, token_id: int) -> Place:
        """Take in one token and return its place."""
        self.ids.append(token_id)
        added = self._added()
        if added is None:
            self._read_again()
            self.place = self._look()
            return self.place
        before = self._n_whole
        self.text = self.text[:before] + added.whole + added.incomplete
        self._anchor(before, added.whole or added.incomplete)
        self.ends.append(before + len(added.whole))
        self.place = self._look() if self._may_change(before) else self.place._replace(previous=None)
        return self.place

    @property
    def _n_whole(self) -> int:
        return self.ends[-1] if self.ends else 0

    def _anchor(self, start: int, piece: str) -> None:
        n_blank = len(piece) - len(piece.lstrip())
        position = start + (n_blank if n_blank < len(piece) else 0)
        self.anchors.append(max(position, self.anchors[-1] if self.anchors else 0))

    def _added(self) -> _Added | None:
        """Return what the latest token adds, or None if that cannot be told from a few tokens."""
        latest = len(self.ids) - 1
        whole = self.text[: self._n_whole]
        was_incomplete = len(whole) < len(self.text)
        if was_incomplete and self._n_read == latest:
            return None  # the bytes of a character may have taken back what was written before them
        start, old = self._window
        if latest - start >= 2 * _WINDOW and not was_incomplete:
            start, old = self._window_before(latest, whole) or (start, old)
        now = self.decode(self.ids[start:])
        if not now.startswith(old) or not whole.endswith(old[-8:]):
            return None
        added = now[len(old) :].rstrip(_INCOMPLETE)
        if was_incomplete and _INCOMPLETE in added:
            return None
        self._window = (start, old + added)
        return _Added(added, now[len(old) + len(added) :])

    def _window_before(self, end: int, whole: str) -> tuple[int, str] | None:
        """Return where a window may begin that reaches to token `end`, and its whole characters; None if nowhere near.

        It may begin at a token from which on the text comes out as it did before; inside a character it does not.
        """
        for start in range(max(0, end - _WINDOW), max(-1, end - 2 * _WINDOW), -1):
            old = self.decode(self.ids[start:end]).rstrip(_INCOMPLETE)
            if start == 0 or (old and whole.endswith(old)):
                return start, old
        return None

    def _new_window(self, whole: str) -> str:
        """Let a new window reach to the latest token; return the stand-in for a character that it leaves incomplete."""
        found = self._window_before(len(self.ids), whole)
        self._window = found or (0, self.decode(self.ids).rstrip(_INCOMPLETE))
        start, old = self._window
        return self.decode(self.ids[start:])[len(old) :]

    def _read_again(self) -> None:
        """Read all tokens anew, as a finished trace is read."""
        self.text, offsets = token_offsets(self.how.tokenizer, self.ids, keep_markers=True)
        self.anchors = []
        for span in offsets:
            self._anchor(span.start, self.text[span.start : span.end])
        whole = self.text.rstrip(_INCOMPLETE)
        self._new_window(whole)
        self.ends = [min(span.end, len(whole)) for span in offsets]
        self.ends[-1] = len(whole)
        self._n_read = len(self.ids)
        self._settled = _Settled()

    def _may_change(self, before: int) -> bool:
        """Return whether the latest token can begin a step, complete a marker, or make its line announce an answer.

        Its characters are those from `before` on.
        """
        old, added = self.text[:before], self.text[before:]
        said = old.rstrip()
        if not said or ">" in added or any(mark in added.rstrip()[:-1] for mark in "\n.?!"):
            return True
        lead = added[: len(added) - len(added.lstrip())]
        gap = old[len(said) :] + (lead if len(lead) < len(added) else "")
        if said.endswith(">") or "\n" in gap or (gap and said[-1:] in (".", "?", "!")):
            return True
        line = old.rfind("\n") + 1
        return len(self.text) - line < _ANNOUNCEMENT and (
            announces_answer(old[line:]) != announces_answer(self.text[line:])
        )

    def _look(self) -> Place:
        """Return the latest token's place, from the text so far that is not settled."""
        style = detect_style(self.prompt, self.text) if self.how.style == "auto" else check_style(self.how.style)
        if style != self._style:
            self._style, self._settled = style, _Settled()
        start = self._settled.start
        text = self.text[start:]
        opened = start > 0 or is_opened_by(self.prompt, style)
        borders = find_borders(text, style, opened=opened, complete=False)
        opening = self._settled.opening if start else borders.begin
        question_end = bisect_left(self.anchors, opening)
        first = bisect_left(self.anchors, start + borders.border)
        has_summary = borders.border < len(text) and first < len(self.ids)
        thinking_end = max(first, question_end) if has_summary else -1
        if has_summary and first < len(self.ids) - 1:
            return Place(question_end, thinking_end, None)
        cut = partial(segment, style=style, opened=opened, complete=False)
        found = cut(text, config=self.how.config)
        previous = self._step_before(cut, text, found)
        if not has_summary:
            self._settle(found, opening)
        return Place(question_end, thinking_end, previous)

    def _step_before(self, cut: Callable[..., Segments], text: str, found: Segments) -> Span | None:
        """Return the step before the latest token, if a step can begin there; `text` is what is not settled."""
        latest, settled = len(self.ids) - 1, self._settled.start
        fine = cut(text, config=SegmentConfig(min_chars=0, merge_numbers=False))
        anchor = self.anchors[latest] - settled
        begin = max((step.start for step in fine.steps if step.start <= anchor), default=-1)
        if begin < 0 or begin > found.summary.start or bisect_left(self.anchors, settled + begin) != latest:
            return None
        # the next sentence may become long: does a step begin here then?
        config = self.how.config or SegmentConfig()
        if begin < found.summary.start:
            found = cut(text[:begin] + "x" * max(1, config.min_chars), config=config)
        starts = [step.start for step in found.steps if step.start < found.thinking.end]
        if begin < found.thinking.end and begin not in starts:
            return None
        before = [start for start in starts if start < begin]
        if not before:
            return None
        first = bisect_left(self.anchors, settled + before[-1])
        return Span(first, latest) if first < latest else None

    def _settle(self, found: Segments, opening: int) -> None:
        """Settle the text up to a step of the thinking that begins a line and is followed by others.

        Such a step is complete and large enough, so that later text leaves it alone, and nothing that a border is
        found by reaches over its beginning.
        """
        start = self._settled.start
        starts = [start + step.start for step in found.steps]
        for begin in reversed(starts[1:-2]):
            reaches_over = found.style == "harmony" and "<|" in self.text[max(start, opening) : begin]
            if self.text[begin - 1] == "\n" and self.text[begin] not in "< \t" and not reaches_over:
                self._settled = _Settled(begin, starts[-1] + 1, opening)
                return
