r"""Step-to-step saliency: at every layer, how much each step of a trace draws on each earlier one.

1. The influence of key token k on query token t is `I[t, k] = mean over heads |A[t, k] dL/dA[t, k]|`, with attention
   weights A and the next-token cross-entropy L.
2. The step map is the mean of I over (tokens of step i) x (tokens of step j), for every layer.
3. Both come out of one backward pass that goes layer by layer (`_layer_by_layer.py`) and, inside a layer, block of
   queries by block (`_step_maps.py`): memory grows linearly with the length of the trace, plus S^2.

A map shows where the loss is sensitive, which is not the same as where the answer comes from: `step_causes` measures
how far the two agree.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args, overload

import pyarrow as pa
import torch
from rich.console import Console
from rich.progress import Progress
from torch import Tensor, nn

from chainwright._errors import BadInput, BadTrace, UnsupportedModel
from chainwright._finding import Finding
from chainwright.decode import check_fits, left_pad
from chainwright.diagnose._layer_by_layer import LOGITS_AT_ONCE, frozen, loss_gradient, pull_back, record_layers
from chainwright.diagnose._step_maps import BLOCK_BYTES, Recorder, Steps, StepSums, Workspace, blockwise
from chainwright.diagnose.step_measures import (
    QUESTION,
    SUMMARY,
    THINKING,
    StepMeasures,
    pair_counts,
    step_measures,
)
from chainwright.models.anatomy import Anatomy, anatomy, evaluating
from chainwright.models.load import provenance
from chainwright.models.seam import Attend, AttentionCall, Handlers, attach, attached_handlers, seam_kind
from chainwright.traces import Span, Trace

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

Target = Literal["sequence", "span"]
Pairs = Literal["all", "causal"]
TraceLike = Trace | tuple[Any, Any]
# rows of short traces run side by side up to about this many tokens
_TOKENS_AT_ONCE = 2**12


@dataclass(frozen=True, kw_only=True)
class StepSaliency(Finding):
    """The step maps of one trace.

    Attributes:
        map: `[L, S, S]` float32: mean influence of a token of step j (last axis) on a token of step i. Lower
            triangular.
        steps: Start and end token of each step, half-open.
        segments: The segment of each step: "question", "thinking" or "summary".
        loss: The loss whose gradient was taken, nats.
    """

    map: Tensor
    steps: list[list[int]]
    segments: list[str]
    loss: float

    @property
    def sizes(self) -> list[int]:
        """Return the number of tokens of each step."""
        return [end - start for start, end in self.steps]

    @property
    def measures(self) -> StepMeasures:
        """Return lock-in, reach, decay and intensities by layer."""
        return step_measures(self.map, self.sizes, self.segments, self.config["pairs"])

    def step_of(self, position: int) -> int:
        """Return the step that holds a token.

        Raises:
            BadInput: The trace has no such token.
        """
        for i, (start, end) in enumerate(self.steps):
            if start <= position < end:
                return i
        raise BadInput(f"Token {position} lies in no step; the trace has tokens 0 to {self.steps[-1][1] - 1}.")

    def summary(self) -> str:
        """Return the layers where rows look back least and where the summary draws least on the thinking."""
        found, n_layers = self.measures, len(self.map)
        lines = [f"{len(self.steps)} steps, {self.steps[-1][1]} tokens, {n_layers} layers, loss {self.loss:.3f} nats."]
        if not bool(found.lock_in.isnan().all()):
            worst = int(found.lock_in.nan_to_num(-1).argmax())
            lines.append(f"Lock-in is highest in layer {worst}: {float(found.lock_in[worst]):.2f}.")
        if not bool(found.decay_share.isnan().all()):
            least = int(found.decay_share.nan_to_num(2).argmin())
            lines.append(f"The summary draws least on the thinking in layer {least}: "
                         f"{float(found.decay_share[least]):.2f} of its mass.")  # fmt: skip
        return " ".join(lines)

    def plot(self) -> Figure:
        """Return the step map on a logarithmic scale, with a slider over layers."""
        from chainwright import figures

        return figures.step_map(self.map, self.segments)

    def to_frame(self) -> pa.Table:
        """Return one row for each layer and pair of steps that causality allows."""
        n_layers, n_steps = self.map.shape[:2]
        to, from_ = torch.tril_indices(n_steps, n_steps)
        layer = torch.arange(n_layers).repeat_interleave(len(to))
        return pa.table(
            {
                "layer": layer.tolist(),
                "step": to.repeat(n_layers).tolist(),
                "from_step": from_.repeat(n_layers).tolist(),
                "saliency": self.map[:, to, from_].flatten().tolist(),
            }
        )


class SaliencyPlan(NamedTuple):
    """An estimate made before anything long is run.

    Attributes:
        n_tokens: Tokens of the longest trace.
        n_steps: Steps of the trace that has most.
        n_traces: Traces.
        mebibytes: Memory above the model's own.
        seconds: Time for all of them, good to a factor of two or so.
    """

    n_tokens: int
    n_steps: int
    n_traces: int
    mebibytes: float
    seconds: float

    def __str__(self) -> str:
        """Return the estimate as a sentence."""
        what = "1 trace" if self.n_traces == 1 else f"{self.n_traces} traces"
        return (
            f"{what} of up to {self.n_tokens} tokens in {self.n_steps} steps: about {self.mebibytes:.0f} MiB above the "
            f"model's own and {self.seconds:.1f} s."
        )


@overload
def step_saliency(
    model: nn.Module,
    trace: TraceLike,
    *,
    target: Target = ...,
    span: tuple[int, int] | None = ...,
    pairs: Pairs = ...,
    block_bytes: int = ...,
    progress: bool = ...,
) -> StepSaliency: ...
@overload
def step_saliency(
    model: nn.Module,
    trace: list[TraceLike] | list[Trace],
    *,
    target: Target = ...,
    span: tuple[int, int] | None = ...,
    pairs: Pairs = ...,
    block_bytes: int = ...,
    progress: bool = ...,
) -> list[StepSaliency]: ...
def step_saliency(
    model: nn.Module,
    trace: TraceLike | list[TraceLike] | list[Trace],
    *,
    target: Target = "sequence",
    span: tuple[int, int] | None = None,
    pairs: Pairs = "all",
    block_bytes: int = BLOCK_BYTES,
    progress: bool = False,
) -> StepSaliency | list[StepSaliency]:
    """Return the step maps of a trace, or of each trace of a list.

    Edits that are attached when it is called stay in force, so it shows the map of the edited model.

    Args:
        model: A Transformers decoder.
        trace: A trace, `(input_ids, steps)` with steps that tile the ids and of which the first is the question, or a
            list of such. Traces of a list run side by side where they are short.
        target: "sequence": the mean cross-entropy of all tokens but the first. "span": the mean over one span.
        span: For "span", half-open token positions; None takes the trace's summary.
        pairs: What the mean of an entry is over: "all" token pairs of the two steps, or the "causal" ones. They differ
            on the diagonal, where causality hides half of the pairs.
        block_bytes: Size of one buffer.
        progress: Show a progress bar on the error stream.

    Raises:
        BadInput: An unknown target, a span outside the trace, without tokens to predict, or missing.
        BadTrace: Steps that do not tile the trace, ids outside the vocabulary, more tokens than the model has
            positions, or a single token.
        UnsupportedModel: The model's layers cannot be run one by one.

    Note:
        Number types below float32 are widened inside the attention's backward pass, and sums are float64. A model with
        sliding windows is given a mask of T x T bits by Transformers (one for all heads), 256 MB at 16k tokens.

    Source: Step-Saliency (arXiv 2604.06695). "sequence" is the authors' code, which backpropagates the mean loss once;
    the paper writes the loss of each token.
    """
    _check_choice("target", target, get_args(Target))
    _check_choice("pairs", pairs, get_args(Pairs))
    if span is not None and target != "span":
        raise BadInput("span is given, but target is 'sequence', which takes every token; pass target='span'.")
    parts = anatomy(model)
    many = isinstance(trace, list)
    given = list(trace) if isinstance(trace, list) else [trace]
    jobs = [_job(parts, _as_trace(one), target, span) for one in given]
    run = _Run(parts, pairs, target, Workspace(block_bytes))
    found: dict[int, StepSaliency] = {}
    with evaluating(parts.model), frozen(parts.model), _bar(progress, parts.n_layers * len(jobs)) as advance:
        for batch in _batches(jobs):
            maps = run.maps([jobs[i] for i in batch], partial(advance, len(batch)))
            found.update(zip(batch, maps, strict=True))
    return [found[i] for i in range(len(jobs))] if many else found[0]


def _check_choice(name: str, value: object, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise BadInput(f"{name} must be {' or '.join(map(repr, allowed))}; got {value!r}.")


def _as_trace(given: TraceLike) -> Trace:
    if isinstance(given, Trace):
        return given
    if not isinstance(given, tuple) or len(given) != 2:
        raise BadInput(f"A trace is given as a Trace or as (input_ids, steps); got {type(given).__name__}.")
    ids, steps = given
    if isinstance(ids, Tensor) and ids.dim() == 2 and len(ids) == 1:
        ids = ids[0]
    spans = [Span(int(start), int(end)) for start, end in steps]
    if not spans:
        raise BadTrace("steps is empty; give spans (start, end) that tile the input_ids, the first being the question.")
    n_tokens = len(ids)
    return Trace(ids, spans[0], Span(spans[0].end, n_tokens), Span(n_tokens, n_tokens), spans)


class _Job(NamedTuple):
    """A trace, and the tokens whose loss counts (half-open)."""

    trace: Trace
    span: Span


def _job(parts: Anatomy, trace: Trace, target: Target, span: tuple[int, int] | None) -> _Job:
    check_fits(parts, trace)
    if len(trace) == 1:
        raise BadTrace("The trace has one token, so no token is predicted from another and there is no loss to follow.")
    if target == "sequence":
        return _Job(trace, Span(1, len(trace)))
    start, end = trace.summary if span is None else span
    if span is None and start == end:
        raise BadInput("The trace has no summary, so target='span' needs a span; pass span=(start, end).")
    if not 0 <= start < end <= len(trace):
        raise BadInput(f"span must be (start, end) inside the trace's {len(trace)} tokens; got ({start}, {end}).")
    if end == 1:
        raise BadInput("span (0, 1) holds the first token alone, which nothing predicts; choose a later span.")
    return _Job(trace, Span(max(1, start), end))


def _batches(jobs: Sequence[_Job]) -> Iterator[list[int]]:
    """Yield indices of traces of like length, the longest first."""
    waiting = sorted(range(len(jobs)), key=lambda i: -len(jobs[i].trace))
    while waiting:
        n = max(1, _TOKENS_AT_ONCE // len(jobs[waiting[0]].trace))
        yield waiting[:n]
        waiting = waiting[n:]


@contextmanager
def _bar(progress: bool, total: int) -> Iterator[Any]:
    console = Console(stderr=True)
    with Progress(console=console, disable=not (progress and console.is_terminal), transient=True) as bar:
        task = bar.add_task("step saliency", total=total)
        yield lambda n, layer: bar.advance(task, n)


@dataclass(frozen=True)
class _Run:
    """One call of `step_saliency`."""

    parts: Anatomy
    pairs: Pairs
    target: Target
    workspace: Workspace

    def maps(self, jobs: list[_Job], done: Any) -> list[StepSaliency]:
        """Return the maps of traces that are run side by side."""
        traces, device = [job.trace for job in jobs], self.parts.model.device
        ids, mask = left_pad([trace.input_ids.tolist() for trace in traces], 0, device)
        steps = _steps(traces, ids.shape[1]).to(device)
        each = Steps(steps, max(len(trace.steps) for trace in traces))
        sums = [StepSums.of(each) for _ in range(self.parts.n_layers)]
        attached = attached_handlers(self.parts.model)
        forward = partial(_attention, seam_kind(self.parts.model), self.workspace)
        plain = Handlers({i: (forward,) for i in range(self.parts.n_layers)})
        with attach(self.parts.model, plain, innermost=True):
            recorded = record_layers(self.parts, ids, None if bool(mask.all()) else mask)
            losses, gradient = loss_gradient(self.parts, recorded.output, ids, _weights(jobs, ids))

            def handler_of(layer: int) -> Any:
                recorder = Recorder(sums[layer], self.workspace, wants_gradients=layer > 0)
                return partial(_recording, recorder, forward)

            pull_back(self.parts, recorded, gradient, handler_of, attached, done)
        unread = [i for i, one in enumerate(sums) if not one.n_blocks]
        if unread:
            raise UnsupportedModel(
                f"An edit that is attached replaces the attention of layer {unread[0]}, so it has no weights whose "
                "influence could be taken; leave its block first."
            )
        totals = torch.stack([one.total.cpu() for one in sums], dim=1)  # (row, layer, step, step)
        return [self._finding(job, totals[i], float(losses[i])) for i, job in enumerate(jobs)]

    def _finding(self, job: _Job, totals: Tensor, loss: float) -> StepSaliency:
        trace = job.trace
        n_steps = len(trace.steps)
        counts = pair_counts([end - start for start, end in trace.steps], self.pairs)
        return StepSaliency(
            map=(totals[:, :n_steps, :n_steps].double() / counts).float(),
            steps=[list(step) for step in trace.steps],
            segments=segments_of(trace),
            loss=loss,
            config={"target": self.target, "pairs": self.pairs, "span": list(job.span)},
            provenance=provenance(self.parts.model),
        )


def segments_of(trace: Trace) -> list[str]:
    """Return the segment of each step of a trace."""
    ends = ((QUESTION, trace.question.end), (THINKING, trace.thinking.end), (SUMMARY, len(trace)))
    return [next(name for name, end in ends if step.start < end) for step in trace.steps]


def _steps(traces: Sequence[Trace], width: int) -> Tensor:
    """Return the step of each token of left-padded traces `[N, T]`; padding has the step after the last of all."""
    padding = max(len(trace.steps) for trace in traces)
    steps = torch.full((len(traces), width), padding)
    for row, trace in zip(steps, traces, strict=True):
        for i, (start, end) in enumerate(trace.steps):
            row[width - len(trace) + start : width - len(trace) + end] = i
    return steps


def _weights(jobs: Sequence[_Job], ids: Tensor) -> Tensor:
    """Return what each token's cross-entropy counts, `[N, T]`: one over the length of the span inside it."""
    weights = torch.zeros(ids.shape)
    for row, job in zip(weights, jobs, strict=True):
        n_padding = len(row) - len(job.trace)
        row[n_padding + job.span.start : n_padding + job.span.end] = 1 / (job.span.end - job.span.start)
    return weights.to(ids.device)


def _attention(kind: str, workspace: Workspace, call: AttentionCall, attend: Attend) -> Tensor:
    """Return z without holding all weights: by the library's kernel where it has one for these sizes."""
    if kind == "sdpa" and call.q.shape[-1] == call.v.shape[-1]:
        return attend(call)
    return blockwise(call, workspace)


def _recording(recorder: Recorder, forward: Any, call: AttentionCall, attend: Attend) -> Tensor:
    return recorder.record(lambda asked: forward(asked, attend), call)


def plan_step_saliency(
    model: nn.Module, trace: TraceLike | list[TraceLike] | list[Trace], *, block_bytes: int = BLOCK_BYTES
) -> SaliencyPlan:
    """Return what `step_saliency` will need, from the model's sizes and a matrix product timed for an instant.

    Raises:
        BadTrace: As `step_saliency`.
    """
    parts = anatomy(model)
    given = list(trace) if isinstance(trace, list) else [trace]
    jobs = [_job(parts, _as_trace(one), "sequence", None) for one in given]
    lengths = [len(job.trace) for job in jobs]
    flops = sum(_flops(parts, n) for n in lengths)
    n_tokens, n_steps = max(lengths), max(len(job.trace.steps) for job in jobs)
    n_bytes = _bytes(parts, max(n_tokens, min(_TOKENS_AT_ONCE, sum(lengths))), n_tokens, n_steps, block_bytes)
    return SaliencyPlan(n_tokens, n_steps, len(jobs), n_bytes / 2**20, flops / _flops_a_second(parts))


def _flops(parts: Anatomy, n_tokens: int) -> float:
    """Return the multiplications and additions of two forward passes and one backward pass to the activations."""
    n_weights = float(sum(p.numel() for p in parts.model.parameters()))
    attention = 7.0 * parts.n_layers * parts.n_heads * parts.d_head * n_tokens * n_tokens
    return 6.0 * n_weights * n_tokens + attention


def _bytes(parts: Anatomy, n_tokens: int, longest: int, n_steps: int, block_bytes: int) -> float:
    """Return the bytes of all layers' inputs, one layer's insides, some logits, the buffers and the maps."""
    size = parts.model.dtype.itemsize
    block_weights = sum(p.numel() for p in parts.layers[-1].block.parameters())
    insides = n_tokens * (block_weights / parts.d_model + 8 * parts.d_model) * 2 * size
    wide = n_tokens * parts.n_heads * parts.d_head * 4 * 8
    kept = n_tokens * parts.d_model * size * (parts.n_layers + 4)
    logits = 3 * 4 * min(LOGITS_AT_ONCE, n_tokens * parts.d_vocab)
    buffers = 3 * min(block_bytes, 4 * parts.n_heads * longest * longest)
    return float(kept + insides + wide + logits + buffers + 16 * parts.n_layers * n_steps * n_steps)


def _flops_a_second(parts: Anatomy) -> float:
    """Return how fast this device multiplies matrices of the model's width, timed for about 50 ms."""
    width = max(64, parts.d_model)
    a = torch.ones(256, width, dtype=parts.model.dtype, device=parts.model.device)
    b = torch.ones(width, width, dtype=parts.model.dtype, device=parts.model.device)
    n, start = 0, time.perf_counter()
    while (spent := time.perf_counter() - start) < 0.05:
        float((a @ b)[0, 0])
        n += 1
    # about half of the time goes to what is no matrix product
    return float(n * 256 * width * width / spent)
