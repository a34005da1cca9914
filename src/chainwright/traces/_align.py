"""From characters to tokens: segments, steps, slots and the first error of a response.

A token belongs to the step that contains its first character other than white space, so a token such as ` The`
belongs to the sentence that it begins. A token without text belongs to the step at its place; at the end of the
response (an end-of-text token) that is the last one.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import Counter
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, NamedTuple

from chainwright.tasks.base import UNPARSED
from chainwright.traces.offsets import TokenOffsets
from chainwright.traces.segments import Segments, Span

if TYPE_CHECKING:
    from chainwright.tasks.base import FirstError


class TokenSegments(NamedTuple):
    """The segments and steps of a whole trace, in tokens; `tools` are the indices of the steps that a tool wrote."""

    question: Span
    thinking: Span
    summary: Span
    steps: list[Span]
    tools: tuple[int, ...]


@dataclass(frozen=True)
class Alignment:
    """The span of characters of each token of a response.

    Attributes:
        text: The response text.
        starts: First character of each response token, never decreasing.
        ends: One past the last character of each, never decreasing.
    """

    text: str
    starts: tuple[int, ...]
    ends: tuple[int, ...]

    @classmethod
    def of(cls, offsets: TokenOffsets) -> Alignment:
        """Return the alignment of a list of token spans, made non-decreasing."""
        starts = accumulate((span.start for span in offsets.offsets), max)
        ends = accumulate((span.end for span in offsets.offsets), max)
        return cls(offsets.text, tuple(starts), tuple(ends))

    def anchors(self) -> list[int]:
        """Return each token's first character that is not white space, or else its start, never decreasing."""
        anchors = []
        for start, end in zip(self.starts, self.ends, strict=True):
            piece = self.text[start:end]
            n_blank = len(piece) - len(piece.lstrip())
            anchors.append(start + n_blank if n_blank < len(piece) else start)
        return list(accumulate(anchors, max))

    def token_span(self, start: int, end: int) -> Span:
        """Return the response tokens that contain some of the characters `[start, end)`.

        An empty range of characters gives the empty span before the next token.
        """
        first = bisect_right(self.ends, start)
        return Span(first, max(first, bisect_left(self.starts, end)) if end > start else first)

    def token_at(self, position: int) -> int | None:
        """Return the token that contains a character; past the end of the text, the first token there, or None."""
        token = bisect_right(self.ends, position)
        if token == len(self.ends):
            token = bisect_left(self.starts, position)
        return token if token < len(self.ends) else None


def place_segments(alignment: Alignment, segments: Segments, n_prompt: int, *, opened: bool) -> TokenSegments:
    """Return the segments of a trace of `n_prompt` prompt tokens and the aligned response tokens.

    Args:
        alignment: The response, T - n_prompt tokens.
        segments: Its segments in characters.
        n_prompt: Number of tokens before the response.
        opened: Whether the prompt ends with the opening marker. If so, the tokens of a response without any text belong
            to the thinking, otherwise to the summary.
    """
    n_opening, n_thinking, steps, tools = _count_tokens(alignment, segments, opened)
    question = Span(0, n_prompt + n_opening)
    thinking = Span(question.end, question.end + n_thinking)
    summary = Span(thinking.end, n_prompt + len(alignment.starts))
    borders = list(accumulate(steps, initial=question.end))
    spans = [Span(a, b) for a, b in pairwise(borders)]
    return TokenSegments(question, thinking, summary, [question, *spans], tuple(i + 1 for i in tools))


class _Counts(NamedTuple):
    """Numbers of response tokens in the opening marker, in the thinking, and in each step; `tools`: steps of tools."""

    n_opening: int
    n_thinking: int
    steps: list[int]
    tools: list[int]


def _count_tokens(alignment: Alignment, segments: Segments, opened: bool) -> _Counts:
    """Return the number of response tokens in each part, in order."""
    n_tokens = len(alignment.starts)
    pieces = [piece for piece in (segments.opening, *segments.steps) if piece.start < piece.end]
    if not pieces:
        return _Counts(0, n_tokens if opened else 0, [n_tokens] if n_tokens else [], [])
    starts = [piece.start for piece in pieces]
    counts = Counter(starts[max(0, bisect_right(starts, anchor) - 1)] for anchor in alignment.anchors())
    steps = [(start, counts[start]) for start in starts if start >= segments.opening.end and counts[start]]
    tools = {step.start for step in segments.tools}
    return _Counts(
        n_opening=n_tokens - sum(n for _, n in steps),
        n_thinking=sum(n for start, n in steps if start < segments.thinking.end),
        steps=[n for _, n in steps],
        tools=[i for i, (start, _) in enumerate(steps) if start in tools],
    )


def deviation(error: FirstError) -> int:
    """Return the first character of a response that differs from the expected text, given its first error.

    Expected `heads` and written `heals` differ at the `l`. Where the written text is a prefix of the expected one, the
    difference is the character after it. An error that could not be parsed differs from its start.
    """
    if error.error_type == UNPARSED:
        return error.start
    pairs = zip(error.expected.casefold(), error.got.casefold(), strict=False)
    n_same = next((i for i, (expected, written) in enumerate(pairs) if expected != written), None)
    if n_same is None:
        n_same = min(len(error.expected), len(error.got))
    return min(error.start + n_same, error.end)
