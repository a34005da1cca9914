"""The rules that every trace keeps, checked when it is made."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

import torch

from chainwright._errors import BadTrace
from chainwright.traces.segments import Span

if TYPE_CHECKING:
    from chainwright.traces.trace import Trace

InfoValue: TypeAlias = str | int | float | bool


def as_ids(input_ids: object) -> torch.Tensor:
    """Return ids as a fresh [T] int64 tensor on the CPU, or raise `BadTrace`."""
    try:
        ids = torch.as_tensor(input_ids)
    except (TypeError, ValueError, RuntimeError) as error:
        raise BadTrace(f"input_ids must be token ids in one row, got {type(input_ids).__name__}: {error}.") from error
    if ids.ndim != 1 or ids.shape[0] == 0:
        raise BadTrace(
            f"input_ids must be one row of at least one token, [T], got shape {list(ids.shape)}; "
            "take one row of a batch and leave its padding out."
        )
    if ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
        raise BadTrace(f"input_ids must be whole numbers, got {ids.dtype}.")
    ids = ids.detach().to(device="cpu", dtype=torch.long, copy=True)
    if int(ids.min()) < 0:
        raise BadTrace(f"input_ids must not be negative, got {int(ids.min())} at position {int(ids.argmin())}.")
    return ids


def checked_span(name: str, value: Any) -> Span:
    """Return a span given as a pair, or raise `BadTrace` naming it."""
    try:
        start, end = (operator.index(position) for position in value)
        return Span(start, end)
    except (TypeError, ValueError):
        raise BadTrace(f"{name} must be a pair of token positions (start, end), got {value!r}.") from None


def checked_info(info: Mapping[str, InfoValue]) -> dict[str, InfoValue]:
    """Return a copy of `info`, or raise `BadTrace` for a value that a file could not keep."""
    for key, value in info.items():
        if not isinstance(key, str) or not isinstance(value, (str, int, float, bool)):
            raise BadTrace(f"info takes texts, numbers and booleans by name, got {key!r}: {type(value).__name__}.")
    return dict(info)


def check_segments(trace: Trace) -> None:
    """Raise `BadTrace` unless question, thinking and summary tile `[0, T)`."""
    position = 0
    for name in ("question", "thinking", "summary"):
        start, end = getattr(trace, name)
        if start != position:
            raise BadTrace(f"{name} must begin at token {position}, where the part before it ends, got {start}.")
        if end < start:
            raise BadTrace(f"{name} must not end before it begins, got ({start}, {end}).")
        position = end
    if trace.question.end == 0:
        raise BadTrace("question must hold at least one token, got (0, 0).")
    if position != trace.n_tokens:
        raise BadTrace(f"summary must end at T = {trace.n_tokens}, the number of input_ids, got {position}.")


def check_steps(trace: Trace) -> None:
    """Raise `BadTrace` unless the steps tile `[0, T)` inside the segments, the question being the first."""
    if not trace.steps or trace.steps[0] != trace.question:
        got = tuple(trace.steps[0]) if trace.steps else "no steps"
        raise BadTrace(f"step 0 must be the question {tuple(trace.question)}, got {got}.")
    position = 0
    for i, (start, end) in enumerate(trace.steps):
        if start != position or end <= start:
            raise BadTrace(
                f"step {i} must begin at token {position} and hold at least one token, got ({start}, {end})."
            )
        if start < trace.thinking.end < end:
            raise BadTrace(f"step {i} ({start}, {end}) crosses the border of the summary at {trace.thinking.end}.")
        position = end
    if position != trace.n_tokens:
        raise BadTrace(f"the last step must end at T = {trace.n_tokens}, the number of input_ids, got {position}.")


def check_positions(trace: Trace) -> None:
    """Raise `BadTrace` for a slot, a response or an error that lies outside the tokens."""
    if not 0 <= trace.response_start <= trace.n_tokens:
        raise BadTrace(f"response_start must lie in 0..{trace.n_tokens}, got {trace.response_start}.")
    for i, slot in enumerate(trace.slots):
        if not 0 <= slot.start <= slot.end <= trace.n_tokens:
            raise BadTrace(f"slot {i} must lie in [0, {trace.n_tokens}), got ({slot.start}, {slot.end}).")
    position = trace.first_error_position
    if position is not None and not 0 <= position < trace.n_tokens:
        raise BadTrace(f"first_error_position must be a token of 0..{trace.n_tokens - 1}, got {position}.")


def check_tool_steps(trace: Trace) -> None:
    """Raise `BadTrace` unless the tools' steps are steps of the thinking, each named once and in order."""
    allowed = [i for i, step in enumerate(trace.steps) if i and step.start < trace.thinking.end]
    if list(trace.tool_steps) != sorted(set(trace.tool_steps) & set(allowed)):
        raise BadTrace(f"tool_steps must be indices of steps of the thinking in order, got {trace.tool_steps}.")
