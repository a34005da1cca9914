"""One question and its response as tokens, cut into segments and steps.

A trace keeps the ids that the model really read and wrote. Its segments and steps are spans of those ids:
they are found in the text and carried over by the characters that each token wrote (`offsets.py`), because
tokenising a decoded text again may give other tokens than the model chose.

What this module does not know: models, and how a response is judged (`tasks`, which a trace's `problem`
calls).
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import torch

from chainwright import _notebook
from chainwright._errors import BadTrace, UnknownMarkers
from chainwright.markers.borders import Spoken, prompt_family, said_aloud
from chainwright.markers.known import ThinkMarkers, as_markers, lookalikes
from chainwright.tasks.base import UNPARSED
from chainwright.traces._align import Alignment, deviation, place_segments
from chainwright.traces._checks import (
    InfoValue,
    as_ids,
    check_positions,
    check_segments,
    check_steps,
    check_tool_steps,
    checked_info,
    checked_span,
)
from chainwright.traces.loops import Loop, find_loop
from chainwright.traces.offsets import Tokenizer, TokenOffsets, decode_with_markers, token_offsets
from chainwright.traces.segments import (
    ONE_LINE_ONE_STEP,
    SegmentConfig,
    Span,
    check_style,
    detect_style,
    segment,
)

if TYPE_CHECKING:
    from chainwright.checkers.base import Verdict
    from chainwright.tasks.base import FirstError, Problem

Outcome = Literal["right", "wrong", "unread", "cut"]


@dataclass(frozen=True)
class TraceSlot:
    """A slot of the problem's gold chain as the response fills it.

    Attributes:
        start: First token of it in the trace.
        end: One past its last token; equal to `start` when the response says nothing there.
        slot: Index into `problem.slots`.
        error_type: The type of the gold slot, or the type of the error if it is wrong.
        hop: Hop of the gold slot, from 0.
        expected: The gold value.
        got: What the response says.
        is_right: Whether that means the same.
    """

    start: int
    end: int
    slot: int
    error_type: str
    hop: int
    expected: str
    got: str
    is_right: bool


@dataclass(frozen=True, eq=False)
class Trace:
    """A question and a response as tokens. Two traces are equal when all their fields are.

    Spans are half-open token positions. `question`, `thinking` and `summary` tile `[0, T)`, and so do the
    steps; the question is one step, and no step crosses a border between segments.

    Attributes:
        input_ids: [T] token ids, int64 on the CPU; a list is converted.
        question: The prompt, with the marker that opens the thinking. Never empty.
        thinking: The reasoning, with the marker that closes it; may be empty.
        summary: What is said after it; may be empty.
        steps: The question, the sentences of the thinking, the paragraphs of the summary.
        problem: The problem that was asked, if it is known.
        response: The response text, without special tokens other than segment markers.
        prompt: The question text.
        slots: The slots that were read from the response, in order; reading stops at the first that differs. Where
            the markers say what is thinking, only the summary is read and judged.
        is_correct: Whether the final answer is right; None if it was not judged. An answer that could not be read is
            not right either; `outcome` tells it from a wrong one.
        first_error: The first wrong slot, with character offsets in `response`. None for a right chain, and where no
            slot could be located; `is_exact` tells the two apart.
        stopped: Whether the response came to its end; False when the token limit cut it.
        style: The style of the markers: "think", "harmony" or "plain".
        info: Where the trace comes from: model, seed, ...
        response_start: First token of the response; the question may reach past it by an opening marker.
        first_error_position: First token in which the wrong slot differs from the right one; None without an
            error, and when the response ends before that token.
        tool_steps: Indices of the steps that a tool wrote (Harmony's tool messages). They are there because the steps
            tile the trace; `is_models_step` tells them apart.
        verdict: What the problem's checker says of the final answer; None if it was not judged, or judged elsewhere.

    Raises:
        BadTrace: The ids are not whole numbers in one row, or a rule above does not hold.
    """

    input_ids: torch.Tensor
    question: Span
    thinking: Span
    summary: Span
    steps: list[Span]
    problem: Problem | None = field(default=None, kw_only=True)
    response: str | None = field(default=None, kw_only=True)
    prompt: str | None = field(default=None, kw_only=True)
    slots: tuple[TraceSlot, ...] = field(default=(), kw_only=True)
    is_correct: bool | None = field(default=None, kw_only=True)
    first_error: FirstError | None = field(default=None, kw_only=True)
    stopped: bool = field(default=True, kw_only=True)
    style: str = field(default="plain", kw_only=True)
    info: Mapping[str, InfoValue] = field(default_factory=dict, kw_only=True)
    response_start: int = field(default=-1, kw_only=True)
    first_error_position: int | None = field(default=None, kw_only=True)
    tool_steps: tuple[int, ...] = field(default=(), kw_only=True)
    verdict: Verdict | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        """Bring every field to its type and check the spans against each other."""
        set_field = object.__setattr__
        set_field(self, "input_ids", as_ids(self.input_ids))
        for name in ("question", "thinking", "summary"):
            set_field(self, name, checked_span(name, getattr(self, name)))
        set_field(self, "steps", [checked_span(f"step {i}", step) for i, step in enumerate(self.steps)])
        set_field(self, "slots", tuple(self.slots))
        set_field(self, "tool_steps", tuple(self.tool_steps))
        set_field(self, "style", check_style(self.style))
        set_field(self, "info", checked_info(self.info))
        if self.response_start == -1:
            set_field(self, "response_start", self.question.end)
        check_segments(self)
        check_steps(self)
        check_positions(self)
        check_tool_steps(self)

    @classmethod
    def from_text(
        cls,
        tokenizer: Tokenizer,
        question: str,
        response: str,
        *,
        style: str = "auto",
        problem: Problem | None = None,
        is_correct: bool | None = None,
        info: Mapping[str, InfoValue] | None = None,
        segment_config: SegmentConfig | None = None,
        markers: ThinkMarkers | tuple[str, str] | None = None,
        stopped: bool = True,
    ) -> Trace:
        """Return the trace of a question and a response given as text.

        Args:
            tokenizer: The tokenizer of the model that the trace will be shown to.
            question: The question exactly as the model reads it; the tokenizer's special tokens are put
                before it (unless it already begins with them) and none after it.
            response: The response; tokenised without special tokens.
            style: "think", "harmony", "plain", or "auto" to go by the markers.
            problem: The problem that was asked; fills `slots`, `first_error` and `is_correct`.
            is_correct: A judgement of the answer made elsewhere, for a trace without a problem.
            info: Where the trace comes from.
            segment_config: How thinking is cut into steps; the default is one line, one step for a problem
                with short lines, and sentences of at least 15 characters otherwise.
            markers: The pair around the thinking, such as `("<plan>", "</plan>")`; the default is that of
                `segment_config`, or else all known pairs.
            stopped: Whether the response came to its end by itself; False where a token limit cut it.

        Warns:
            UnknownMarkers: The style is "auto", no known marker is there, and a tag that looks like one is.

        Raises:
            BadInput: The style is unknown, or the markers are no pair.
            BadTrace: The question has no tokens.
        """
        build = _Build(tokenizer, style, problem, segment_config, markers)
        prompt_ids = _ids_with_front_tokens(tokenizer, question)
        response_ids, offsets = _encode_response(tokenizer, response, build.pair)
        other = {"info": info or {}, "is_correct": is_correct, "stopped": stopped}
        return build.trace(prompt_ids, response_ids, question, offsets, other)

    @classmethod
    def from_ids(
        cls,
        tokenizer: Tokenizer,
        input_ids: Sequence[int] | torch.Tensor,
        n_question: int,
        *,
        style: str = "auto",
        problem: Problem | None = None,
        stopped: bool = True,
        info: Mapping[str, InfoValue] | None = None,
        segment_config: SegmentConfig | None = None,
        markers: ThinkMarkers | tuple[str, str] | None = None,
    ) -> Trace:
        """Return the trace of ids that a model read and wrote.

        Args:
            tokenizer: The model's tokenizer.
            input_ids: [T] question and response without padding; an end-of-text token may close it,
                and is part of the last step but not of the text.
            n_question: How many of them are the question (the prompt).
            style: "think", "harmony", "plain", or "auto" to go by the markers.
            problem: The problem that was asked; fills `slots`, `first_error` and `is_correct`.
            stopped: Whether the response came to its end by itself.
            info: Where the trace comes from.
            segment_config: As in `from_text`.
            markers: As in `from_text`.

        Warns:
            UnknownMarkers: As in `from_text`.

        Raises:
            BadInput: The style is unknown, or the markers are no pair.
            BadTrace: `n_question` is not in 1..T, or the ids are not whole numbers in one row.
        """
        ids = as_ids(input_ids).tolist()
        if not 1 <= n_question <= len(ids):
            raise BadTrace(f"n_question is {n_question}, but a question takes 1 to all {len(ids)} of the input_ids.")
        build = _Build(tokenizer, style, problem, segment_config, markers)
        question = decode_with_markers(tokenizer, ids[:n_question], build.pair)
        offsets = token_offsets(tokenizer, ids[n_question:], keep_markers=True, markers=build.pair)
        other = {"info": info or {}, "stopped": stopped}
        return build.trace(ids[:n_question], ids[n_question:], question, offsets, other)

    def _repr_html_(self) -> str:
        """Return what a notebook shows: the response with its first wrong slot marked, and how its answer is."""
        title = f"Trace of {self.n_tokens} tokens: {self.outcome or 'not judged'}"
        error, said = self.first_error, self.response or ""
        if error is None:
            return _notebook.block(title, _notebook.text(said))
        label = f"{error.error_type}: {error.got!r} instead of {error.expected!r}"
        return _notebook.block(f"{title}; first error: {label}", _notebook.marked(said, error.start, error.end, label))

    @property
    def n_tokens(self) -> int:
        """Return T, the number of tokens."""
        return int(self.input_ids.shape[0])

    @property
    def response_ids(self) -> torch.Tensor:
        """Return the [T - response_start] ids of the response, with an opening marker that it begins with."""
        return self.input_ids[self.response_start :]

    @property
    def is_exact(self) -> bool | None:
        """Whether every slot of the chain is right; None if the chain is unknown or could not be read.

        That is a trace without a problem, one of a problem without slots, and a right answer after thinking whose chain
        the summary does not repeat.
        """
        if self.problem is None or not self.problem.slots:
            return None
        if self.first_error is not None:
            return False
        return True if len(self.slots) == len(self.problem.slots) else None

    @property
    def outcome(self) -> Outcome | None:
        """How the final answer is: "right", "wrong", "unread" (there is none to read) or "cut" before it was given.

        None if it was not judged. Traces that were judged elsewhere, and those of files from before verdicts, are right
        or wrong by `is_correct`. Where right and wrong responses are compared, unread and cut ones belong to neither.
        """
        if self.is_correct is None:
            return None
        if self.is_correct or self.verdict is None or self.verdict.is_right is not None:
            return "right" if self.is_correct else "wrong"
        return "unread" if self.stopped else "cut"

    @property
    def is_models_step(self) -> tuple[bool, ...]:
        """Whether the model wrote each step: it did not write the question, nor a tool's message."""
        return tuple(i > 0 and i not in self.tool_steps for i in range(len(self.steps)))

    @property
    def is_unlocated(self) -> bool:
        """Whether the answer is wrong although no first error is known; one that could not be read is not wrong."""
        return self.outcome == "wrong" and self.first_error is None

    @cached_property
    def loop(self) -> Loop | None:
        """Return the repetition that the response ends in, in characters of it; None if it ends in none."""
        return find_loop(self.response or "")

    @property
    def is_looping(self) -> bool:
        """Whether the response ends in endless repetition."""
        return self.loop is not None

    def __len__(self) -> int:
        return self.n_tokens

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Trace):
            return NotImplemented
        names = [f.name for f in fields(self) if f.name != "input_ids"]
        return torch.equal(self.input_ids, other.input_ids) and all(
            getattr(self, name) == getattr(other, name) for name in names
        )

    def __hash__(self) -> int:
        return hash((tuple(self.input_ids.tolist()), tuple(self.steps)))


@dataclass(frozen=True)
class _Build:
    """What both constructors of a trace share: from texts and ids to segments and slots."""

    tokenizer: Tokenizer
    style: str
    problem: Problem | None
    segment_config: SegmentConfig | None
    markers: ThinkMarkers | tuple[str, str] | None

    @property
    def pair(self) -> ThinkMarkers | None:
        """Return the one pair of markers that is looked for, None for all known ones."""
        if self.markers is not None:
            return as_markers(self.markers)
        return None if self.segment_config is None else self.segment_config.pair()

    def trace(
        self,
        prompt_ids: list[int],
        response_ids: list[int],
        question: str,
        offsets: TokenOffsets,
        other: dict[str, Any],
    ) -> Trace:
        """Return the trace of `[*prompt_ids, *response_ids]`, whose response text and spans are `offsets`.

        What the problem reads goes before the fields in `other`.
        """
        text = offsets.text
        marks = SegmentConfig(markers=self.pair)
        style = detect_style(question, text, marks) if self.style == "auto" else check_style(self.style)
        if style == "plain" and self.style == "auto":
            _warn_of_lookalikes(text)
        config = replace(self._config(style), markers=self.pair)
        family = prompt_family(question, style, self.pair)
        segments = segment(text, style, opened=family or False, config=config)
        alignment = Alignment.of(offsets)
        placed = place_segments(alignment, segments, len(prompt_ids), opened=family is not None)
        return Trace(
            torch.tensor([*prompt_ids, *response_ids], dtype=torch.long),
            *placed[:4],
            tool_steps=placed.tools,
            problem=self.problem,
            response=text,
            prompt=question,
            style=style,
            response_start=len(prompt_ids),
            **(other | self._reading(alignment, len(prompt_ids), style, family, is_cut=other.get("stopped") is False)),
        )

    def _config(self, style: str) -> SegmentConfig:
        """Return how thinking is cut: as asked, or as fits the rendering of the problem."""
        if self.segment_config is not None:
            return self.segment_config
        if style == "plain" and self.problem is not None and self.problem.rendering == "short":
            return ONE_LINE_ONE_STEP
        return SegmentConfig()

    def _reading(
        self, alignment: Alignment, n_prompt: int, style: str, family: str | None, *, is_cut: bool
    ) -> dict[str, Any]:
        """Return the fields that the problem fills in by reading the response.

        Thinking is neither read nor judged: what is said and taken back there is no error of the response. The plain
        style has no thinking of its own, so all of it counts.
        """
        if self.problem is None:
            return {}
        start, end = said_aloud(alignment.text, style, self.pair, family)
        text = Spoken(alignment.text[start:end])
        verdict = self.problem.judge(text, is_cut=is_cut)
        is_correct = verdict.is_right is True
        error = self.problem.first_error(text)
        if error is not None and error.error_type == UNPARSED and is_correct and style != "plain":
            error = None  # a summary need not repeat the chain that was thought
        if error is not None:
            error = replace(error, start=error.start + start, end=error.end + start)
        position = None if error is None else alignment.token_at(deviation(error))
        return {
            "slots": _token_slots(self.problem, alignment, n_prompt, text, start),
            "is_correct": is_correct,
            "verdict": verdict,
            "first_error": error,
            "first_error_position": None if position is None else n_prompt + position,
        }


def _warn_of_lookalikes(text: str) -> None:
    """Warn of the first tag of a plain response that looks like a marker of thinking."""
    tag = next(lookalikes(text), None)
    if tag is not None:
        warnings.warn(
            f"{tag!r} looks like a marker of thinking, but is none that is known, so the whole response counts as the "
            "answer; name the pair with markers=(open, close) (--think-markers OPEN CLOSE), or say style='plain'.",
            UnknownMarkers,
            stacklevel=4,
        )


def _token_slots(problem: Problem, alignment: Alignment, n_prompt: int, text: str, start: int) -> tuple[TraceSlot, ...]:
    """Return the slots that the problem reads from the text at character `start` of the response, at their tokens."""
    slots = []
    for read in problem.read(text):
        gold = problem.slots[read.slot]
        span = alignment.token_span(start + read.start, start + read.end)
        slots.append(
            TraceSlot(
                start=n_prompt + span.start,
                end=n_prompt + span.end,
                slot=read.slot,
                error_type=read.error_type or gold.error_type,
                hop=gold.hop,
                expected=gold.value,
                got=read.got,
                is_right=read.is_right,
            )
        )
    return tuple(slots)


def _ids_with_front_tokens(tokenizer: Tokenizer, question: str) -> list[int]:
    """Return the ids of a question, with the special tokens that belong before it and no others."""
    plain = list(tokenizer(question, add_special_tokens=False)["input_ids"])
    full = list(tokenizer(question)["input_ids"])
    special = set(tokenizer.all_special_ids)
    n_front = next(
        (i for i in range(len(full) - len(plain) + 1) if full[i : i + len(plain)] == plain),
        next((i for i, token_id in enumerate(full) if token_id not in special), 0),
    )
    front = full[:n_front] if plain else [token_id for token_id in full[:1] if token_id in special]
    if not front and not plain:
        raise BadTrace("The question has no tokens; a trace needs at least one before the response.")
    return plain if plain[: len(front)] == front else front + plain


def _encode_response(
    tokenizer: Tokenizer, response: str, markers: ThinkMarkers | None
) -> tuple[list[int], TokenOffsets]:
    """Return the ids of a response and the characters that each of them covers.

    The text is the response as given when the ids decode to it, or when the tokenizer knows which
    characters each id comes from (all fast ones do); otherwise it is what the ids decode to.
    """
    ids = list(tokenizer(response, add_special_tokens=False)["input_ids"])
    offsets = token_offsets(tokenizer, ids, keep_markers=True, markers=markers)
    if offsets.text != response and getattr(tokenizer, "is_fast", False):
        encoded = tokenizer(response, add_special_tokens=False, return_offsets_mapping=True)
        offsets = TokenOffsets(response, [Span(*pair) for pair in encoded["offset_mapping"]])
    return ids, offsets
