"""The inputs of step maps: traces in several forms, the tokens whose loss counts, and which traces run together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple

from torch import Tensor

from chainwright._errors import BadInput, BadTrace
from chainwright.models.anatomy import Anatomy
from chainwright.scoring import check_fits
from chainwright.traces import Span, Trace

Target = Literal["sequence", "span"]
TraceLike = Trace | tuple[Any, Any]
TOKENS_AT_ONCE = 2**12
"""Short traces run side by side up to about this many tokens."""


def as_trace(trace: TraceLike) -> Trace:
    """Return a trace, made from `(input_ids, steps)` if it is not one already: the first step becomes the question."""
    if isinstance(trace, Trace):
        return trace
    if not isinstance(trace, tuple) or len(trace) != 2:
        raise BadInput(f"Pass a trace as a Trace or as (input_ids, steps); got {type(trace).__name__}.")
    ids, steps = trace
    if isinstance(ids, Tensor) and ids.dim() == 2 and len(ids) == 1:
        ids = ids[0]
    spans = [Span(int(start), int(end)) for start, end in steps]
    if not spans:
        raise BadTrace("steps is empty; give spans (start, end) that tile the input_ids, the first being the question.")
    n_tokens = len(ids)
    return Trace(ids, spans[0], Span(spans[0].end, n_tokens), Span(n_tokens, n_tokens), spans)


class Job(NamedTuple):
    """A trace, and the tokens whose loss counts (half-open)."""

    trace: Trace
    span: Span


def job_of(parts: Anatomy, trace: Trace, target: Target, span: tuple[int, int] | None) -> Job:
    """Return a trace with the tokens whose loss counts, after checking both; see `step_saliency` for the errors."""
    check_fits(parts, trace)
    if len(trace) == 1:
        raise BadTrace("The trace has a single token, so no token is predicted and there is no loss.")
    if target == "sequence":
        return Job(trace, Span(1, len(trace)))
    start, end = trace.summary if span is None else span
    if span is None and start == end:
        raise BadInput("The trace has no summary, so target='span' needs a span; pass span=(start, end).")
    if not 0 <= start < end <= len(trace):
        raise BadInput(f"span must be (start, end) inside the trace's {len(trace)} tokens; got ({start}, {end}).")
    if end == 1:
        raise BadInput("span (0, 1) holds only the first token, which nothing predicts; choose a later span.")
    return Job(trace, Span(max(1, start), end))


def batches_of(jobs: Sequence[Job]) -> Iterator[list[int]]:
    """Yield indices of traces of similar length, the longest first."""
    waiting = sorted(range(len(jobs)), key=lambda i: -len(jobs[i].trace))
    while waiting:
        n = max(1, TOKENS_AT_ONCE // len(jobs[waiting[0]].trace))
        yield waiting[:n]
        waiting = waiting[n:]
