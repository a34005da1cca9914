r"""Step-to-step saliency: at every layer, how strongly each step of a trace depends on each earlier one.

1. The influence of key token k on query token t is `I[t, k] = mean over heads |A[t, k] dL/dA[t, k]|`, with attention
   weights A and the next-token cross-entropy L.
2. The step map is the mean of I over (tokens of step i) x (tokens of step j), for every layer.
3. One backward pass gives the maps of all layers. It runs layer by layer (`_backward.py`) and, in each layer, one block
   of queries at a time (`_attention_maps.py`), so memory grows linearly with the length of the trace, plus S^2.

A map shows where the loss is sensitive, which is not necessarily where the answer comes from: `step_causes` measures
how far the two agree.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, get_args, overload

import pyarrow as pa
import torch
from torch import Tensor, nn

from chainwright._errors import BadInput, UnsupportedModel
from chainwright._finding import Finding
from chainwright._progress import Bar, progress_bar
from chainwright._registry import register
from chainwright.diagnose.steps._attention_maps import Recorder, Steps, StepSums, Workspace, blockwise, usual_block
from chainwright.diagnose.steps._backward import loss_gradient, pull_back, record_layers
from chainwright.diagnose.steps._inputs import Job, Target, TraceLike, as_trace, batches_of, job_of
from chainwright.diagnose.steps.measures import (
    QUESTION,
    SUMMARY,
    THINKING,
    StepMeasures,
    pair_counts,
    step_measures,
)
from chainwright.models.anatomy import Anatomy, anatomy, evaluating, frozen
from chainwright.models.gradients import check_gradients
from chainwright.models.load import provenance
from chainwright.models.padding import left_pad
from chainwright.models.seam import Attend, AttentionCall, Handlers, attach, attached_handlers, seam_kind
from chainwright.models.sharding import is_sharded
from chainwright.traces import Trace

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

Pairs = Literal["all", "causal"]


@register("finding", "StepSaliency")
@dataclass(frozen=True, kw_only=True)
class StepSaliency(Finding):
    """The step maps of one trace.

    Attributes:
        map: `[L, S, S]` float32: mean influence of a token of step j (last axis) on a token of step i. Lower
            triangular.
        steps: Start and end token of each step, half-open.
        segments: The segment of each step: "question", "thinking" or "summary".
        loss: The loss that was differentiated, nats.
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
        """Return lock-in, reach, decay and intensities per layer."""
        return step_measures(self.map, self.sizes, self.segments, self.config["pairs"])

    def step_of(self, position: int) -> int:
        """Return the index of the step that contains a token.

        Raises:
            BadInput: The trace has no such token.
        """
        for i, (start, end) in enumerate(self.steps):
            if start <= position < end:
                return i
        raise BadInput(f"Token {position} is in no step; the trace has tokens 0 to {self.steps[-1][1] - 1}.")

    def summary(self) -> str:
        """Return the layers where lock-in is highest and where the summary depends least on the thinking."""
        measures, n_layers = self.measures, len(self.map)
        lines = [f"{len(self.steps)} steps, {self.steps[-1][1]} tokens, {n_layers} layers, loss {self.loss:.3f} nats."]
        if not bool(measures.lock_in.isnan().all()):
            worst = int(measures.lock_in.nan_to_num(-1).argmax())
            lines.append(f"Lock-in is highest in layer {worst}: {float(measures.lock_in[worst]):.2f}.")
        if not bool(measures.decay_share.isnan().all()):
            least = int(measures.decay_share.nan_to_num(2).argmin())
            lines.append(f"The summary depends least on the thinking in layer {least}: "
                         f"{float(measures.decay_share[least]):.2f} of its mass.")  # fmt: skip
        return " ".join(lines)

    def plot(self) -> Figure:
        """Return the step map on a logarithmic scale, with a slider over layers."""
        from chainwright import figures

        return figures.step_map(self.map, self.segments)

    def to_frame(self) -> pa.Table:
        """Return one row per layer and pair of steps (a step with itself or an earlier one)."""
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


@overload
def step_saliency(
    model: nn.Module,
    trace: TraceLike,
    *,
    target: Target = ...,
    span: tuple[int, int] | None = ...,
    pairs: Pairs = ...,
    block_bytes: int | None = ...,
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
    block_bytes: int | None = ...,
    progress: bool = ...,
) -> list[StepSaliency]: ...
def step_saliency(
    model: nn.Module,
    trace: TraceLike | list[TraceLike] | list[Trace],
    *,
    target: Target = "sequence",
    span: tuple[int, int] | None = None,
    pairs: Pairs = "all",
    block_bytes: int | None = None,
    progress: bool = False,
) -> StepSaliency | list[StepSaliency]:
    """Return the step maps of a trace, or of each trace in a list.

    Edits that are attached when it is called stay in force, so it gives the map of the edited model.

    Args:
        model: A Transformers decoder.
        trace: A trace, or `(input_ids, steps)` with steps that tile the ids and the question as first step, or a list
            of either. Short traces of a list run side by side.
        target: "sequence": the mean cross-entropy of all tokens but the first. "span": the mean over one span.
        span: For "span", half-open token positions; None takes the trace's summary.
        pairs: What an entry is the mean over: "all" token pairs of the two steps, or the "causal" ones. They differ on
            the diagonal, where causality hides half of the pairs.
        block_bytes: Size of one buffer; None takes 4 MB on a processor, and 256 MB elsewhere.
        progress: Show a progress bar on stderr.

    Raises:
        BadInput: The target is unknown, or the span is missing, outside the trace, or has no token to predict.
        BadTrace: The steps do not tile the trace, an id is outside the vocabulary, or the trace is a single token or
            longer than the model's context.
        UnsupportedModel: The model's layers cannot be run one by one.

    Note:
        Dtypes below float32 are widened inside the attention's backward pass, and sums are float64. For a model with
        sliding windows Transformers builds a mask of T x T bytes (one for all heads), 256 MB at 16k tokens.

    Source: Step-Saliency (arXiv 2604.06695). "sequence" follows the authors' code, which backpropagates the mean loss
    once; the paper writes the loss of each token.
    """
    _check_choice("target", target, get_args(Target))
    _check_choice("pairs", pairs, get_args(Pairs))
    if span is not None and target != "span":
        raise BadInput("A span was passed, but target 'sequence' takes every token; pass target='span' with it.")
    parts = anatomy(model)
    check_gradients(parts, "Step saliency")
    many = isinstance(trace, list)
    jobs = [job_of(parts, as_trace(t), target, span) for t in (trace if isinstance(trace, list) else [trace])]
    run = _Run(parts, pairs, target, Workspace(block_bytes or usual_block(parts.device)))
    by_trace: dict[int, StepSaliency] = {}
    bar = progress_bar("step saliency", parts.n_layers * len(jobs), shown=progress)
    with evaluating(parts.model), frozen(parts.model), bar as shown:
        for batch in batches_of(jobs):
            maps = run.maps([jobs[i] for i in batch], partial(_layer_done, shown, len(batch)))
            by_trace.update(zip(batch, maps, strict=True))
    return [by_trace[i] for i in range(len(jobs))] if many else by_trace[0]


def _layer_done(bar: Bar, n_traces: int, layer: int) -> None:
    bar.advance(n_traces)


def _check_choice(name: str, value: object, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise BadInput(f"{name} must be {' or '.join(map(repr, allowed))}; got {value!r}.")


@dataclass(frozen=True)
class _Run:
    """One call of `step_saliency`."""

    parts: Anatomy
    pairs: Pairs
    target: Target
    workspace: Workspace

    def maps(self, jobs: list[Job], done: Any) -> list[StepSaliency]:
        """Return the maps of traces that run side by side in one batch."""
        traces, device = [job.trace for job in jobs], self.parts.device
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

            # the operations of weights that are spread over ranks take no gradient that is left out
            is_spread = is_sharded(self.parts.model)

            def handler_of(layer: int) -> Any:
                recorder = Recorder(sums[layer], self.workspace, wants_gradients=layer > 0 or is_spread)
                return partial(_recording, recorder, forward)

            pull_back(self.parts, recorded, gradient, handler_of, attached, done)
        unread = [i for i, layer_sums in enumerate(sums) if not layer_sums.n_blocks]
        if unread:
            raise UnsupportedModel(
                f"An attached edit replaces the attention of layer {unread[0]}, so it has no weights whose influence "
                "could be measured; leave the edit's block first."
            )
        totals = torch.stack([layer_sums.total.cpu() for layer_sums in sums], dim=1)  # (row, layer, step, step)
        return [self._finding(job, totals[i], float(losses[i])) for i, job in enumerate(jobs)]

    def _finding(self, job: Job, totals: Tensor, loss: float) -> StepSaliency:
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
    """Return the segment ("question", "thinking" or "summary") of each step of a trace."""
    ends = ((QUESTION, trace.question.end), (THINKING, trace.thinking.end), (SUMMARY, len(trace)))
    return [next(name for name, end in ends if step.start < end) for step in trace.steps]


def _steps(traces: Sequence[Trace], width: int) -> Tensor:
    """Return the step of each token of left-padded traces `[N, T]`; padding gets an index after every real step."""
    padding = max(len(trace.steps) for trace in traces)
    steps = torch.full((len(traces), width), padding)
    for row, trace in zip(steps, traces, strict=True):
        for i, (start, end) in enumerate(trace.steps):
            row[width - len(trace) + start : width - len(trace) + end] = i
    return steps


def _weights(jobs: Sequence[Job], ids: Tensor) -> Tensor:
    """Return the weight of each token's cross-entropy, `[N, T]`: 1 / length inside the span, 0 outside."""
    weights = torch.zeros(ids.shape)
    for row, job in zip(weights, jobs, strict=True):
        n_padding = len(row) - len(job.trace)
        row[n_padding + job.span.start : n_padding + job.span.end] = 1 / (job.span.end - job.span.start)
    return weights.to(ids.device)


def _attention(kind: str, workspace: Workspace, call: AttentionCall, attend: Attend) -> Tensor:
    """Return z without storing all weights: by the library's fused kernel where it supports these sizes."""
    if kind == "sdpa" and call.q.shape[-1] == call.v.shape[-1]:
        return attend(call)
    return blockwise(call, workspace)


def _recording(recorder: Recorder, forward: Any, call: AttentionCall, attend: Attend) -> Tensor:
    return recorder.record(lambda inner_call: forward(inner_call, attend), call)
