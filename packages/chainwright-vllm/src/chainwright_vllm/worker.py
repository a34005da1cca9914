"""What one model runner keeps: which live requests ask for what, and whether it has acted.

A step goes: `note` who came and went, `begin` the pass (the tables are filled), the pass itself, `decide` doubtful
tokens, `report`. The report travels to the scheduler with the step's output (`scheduling`).
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from chainwright_vllm.bridging import Flowing, Flows
from chainwright_vllm.doubts import Answering, Asking, Decisions, Doubts
from chainwright_vllm.heads import NotFound, hook_heads
from chainwright_vllm.repairs import check, identity, known, load
from chainwright_vllm.slots import Slots, Span
from chainwright_vllm.spec import RUN, BadRequest, Head, KnockOut, Spec, UseRepair, UseStepFlow, asked
from chainwright_vllm.states import LastStates
from chainwright_vllm.stepflow import load_stepflow
from chainwright_vllm.tcr import TCR

logger = logging.getLogger("vllm.chainwright")
REPORT = "chainwright_report"  # the attribute of vLLM's ModelRunnerOutput


class Row(NamedTuple):
    """A request's tokens in a pass.

    Attributes:
        req_id: The request.
        start: Its first token in the pass.
        end: One past its last.
        n_computed: Tokens that were computed in earlier passes.
        is_due: Whether its next token is chosen after this pass.
    """

    req_id: str
    start: int
    end: int
    n_computed: int
    is_due: bool


@dataclass
class Report:
    """What the edits did in one pass.

    Attributes:
        acted: Requests whose edit was seen to act, or had no token to act on in this pass.
        failed: Requests whose edit did not act, with a sentence.
        held: Requests that have to wait for runs without these heads.
        changed: Requests whose token was decided, and whether another one is now the likeliest.
    """

    acted: set[str] = field(default_factory=set)
    failed: dict[str, str] = field(default_factory=dict)
    held: dict[str, tuple[Head, ...]] = field(default_factory=dict)
    changed: dict[str, bool] = field(default_factory=dict)


class _Live(NamedTuple):
    spec: Spec
    n_prompt: int
    run: tuple[str, int] | None


class Worker:
    """The edits of one model runner."""

    def __init__(self, runner: Any):
        self.refusal: str | None = None
        self.slots = _slots(runner)
        self.states = _states(runner)
        self.doubts = Doubts(self._last_states)
        self.flows = Flows(runner)
        self._flowing: list[Flowing] = []
        self._shape = identity(runner.model_config).shape
        self._n_layers: int = runner.model_config.get_total_num_hidden_layers()
        self._live: dict[str, _Live] = {}
        self._edited: dict[str, tuple[KnockOut, bool]] = {}  # edited requests of this pass, and whether tokens are
        self._asking: list[Asking] = []
        self._answering: list[Answering] = []
        self._decisions = Decisions()
        self._is_decided = True
        try:
            hook_heads(runner.model, self.slots)
        except NotFound as error:
            self.refusal = f"Chainwright cannot edit this model: {error}."
            logger.warning("%s Requests that ask for edits will end with an error.", self.refusal)

    def note(self, scheduler_output: Any) -> None:
        """Remember what new requests ask for, and forget finished ones."""
        for req_id in scheduler_output.finished_req_ids:
            self._live.pop(req_id, None)
        self.doubts.forget(scheduler_output.finished_req_ids)
        self.flows.forget(scheduler_output.finished_req_ids)
        for new in scheduler_output.scheduled_new_reqs:
            extra_args = getattr(new.sampling_params, "extra_args", None)
            spec = asked(extra_args)
            if spec is not None:
                run = (extra_args or {}).get(RUN)
                prompt = new.prompt_embeds if new.prompt_token_ids is None else new.prompt_token_ids
                self._live[new.req_id] = _Live(spec, len(prompt), None if run is None else tuple(run))
        self._edited, self._asking, self._answering, self._decisions = {}, [], [], Decisions()
        self._is_decided = False

    def begin(self, rows: Iterable[Row]) -> None:
        """Fill the tables for a pass over these rows, which are in the order of the pass."""
        self._flowing = []
        if not self._live:
            self.slots.fill(())
            self.states.begin((), is_wanted=False)
            self.flows.begin(())
            return
        spans, last = [], []
        for i, row in enumerate(rows):
            last.append(row.end - 1)
            live = self._live.get(row.req_id)
            if live is None:
                continue
            if isinstance(live.spec, UseStepFlow):
                self._flow(row, live, live.spec)
            elif isinstance(live.spec, KnockOut):
                spans += self._edit(row, live, live.spec)
                if live.run is not None and row.is_due:
                    self._answering.append(Answering(i, *live.run))
            elif row.is_due:
                self._asking.append(
                    Asking(i, row.req_id, load(live.spec.folder).tcr, row.n_computed + row.end - row.start)
                )
        self.slots.fill(spans)
        self.flows.begin(self._flowing)
        self.states.begin(last, is_wanted=bool(self._asking))

    def _flow(self, row: Row, live: _Live, spec: UseStepFlow) -> None:
        if self.flows.refusal is None:
            flow = load_stepflow(spec.folder, self._shape)
            self._flowing.append(self.flows.flowing(row, live.n_prompt, flow))

    def _edit(self, row: Row, live: _Live, knock_out: KnockOut) -> list[Span]:
        start = row.start + max(0, knock_out.first_edited(live.n_prompt) - row.n_computed)
        self._edited[row.req_id] = knock_out, start < row.end
        return [Span(start, row.end, knock_out)] if start < row.end else []

    def decide(self, logits: Tensor | None) -> Collection[int]:
        """Replace the logits of decided tokens in place.

        Args:
            logits: Next-token logits of the pass `[rows, V]`; None on a rank that has none.

        Returns:
            Rows whose token is not to be chosen now.
        """
        # the sampler also runs on made-up logits, to warm up
        if logits is None or self._is_decided or not (self._asking or self._answering):
            return ()
        self._is_decided = True
        with torch.inference_mode():
            self._decisions = self.doubts.decide(logits, self._asking, self._answering)
        return [ask.row for ask in self._asking if ask.req_id in self._decisions.held]

    def report(self) -> Report:
        """Return what the edits of the pass that has just run have done."""
        report = Report(held=self._decisions.held, changed=self._decisions.changed)
        for req_id, (knock_out, has_tokens) in self._edited.items():
            unfired = self.slots.unfired(sorted({layer for layer, _ in knock_out.heads})) if has_tokens else []
            self._add(report, req_id, [f"edit of layer {layer}" for layer in unfired])
        for one in self._flowing:
            silent = [f"StepFlow in layer {layer}" for layer in self.flows.unfired(one.req_id, one.flow)]
            self._add(report, one.req_id, silent)
        for req_id in self._decisions.lost:
            report.failed[req_id] = "Chainwright's repair lost track of this request, which was ended."
        for ask in self._asking:
            if ask.req_id in self._decisions.lost:
                continue
            unread = self.states.unfired(self._layers(ask.tcr)) if ask.tcr.layers else []
            self._add(report, ask.req_id, [f"reading of layer {layer}" for layer in unread])
        asking = {ask.req_id for ask in self._asking}
        # a prompt that is not at its end has nothing to decide yet
        report.acted |= {req_id for req_id, live in self._live.items() if isinstance(live.spec, UseRepair)} - asking
        if self.flows.refusal is not None:
            flowing = [req_id for req_id, live in self._live.items() if isinstance(live.spec, UseStepFlow)]
            report.failed |= dict.fromkeys(flowing, self.flows.refusal)
        return report

    def _add(self, report: Report, req_id: str, silent: Sequence[str]) -> None:
        if self.refusal is not None:
            report.failed[req_id] = self.refusal
        elif silent:
            report.failed[req_id] = f"Chainwright's {silent[0]} did not act; the request was ended."
        else:
            report.acted.add(req_id)

    def _layers(self, tcr: TCR) -> list[int]:
        return [layer % self._n_layers for layer in tcr.layers]

    def _last_states(self, layers: Sequence[int], rows: Sequence[int]) -> Tensor:
        return self.states.read([layer % self._n_layers for layer in layers], rows)


def attach(output: Any, report: Report) -> Any:
    """Return a step's output with the report on it."""
    inner = output
    for name in ("_model_runner_output", "model_runner_output"):  # the wrappers of asynchronous outputs
        inner = getattr(inner, name, inner)
    setattr(inner, REPORT, report)
    return output


def readable_layers(model_config: Any) -> frozenset[int]:
    """Return the layers that repairs may read: all, or those of known repairs where passes are compiled or captured.

    Args:
        model_config: vLLM's ModelConfig.
    """
    n_layers = model_config.get_total_num_hidden_layers()
    if model_config.enforce_eager:
        return frozenset(range(n_layers))
    layers: set[int] = set()
    for folder in known().values():
        try:
            saved = load(str(folder.resolve()))
            check(saved, identity(model_config))
        except BadRequest:
            continue  # for another model, or of another kind: a request for it is refused with the reason
        layers |= {layer % n_layers for layer in saved.tcr.layers}
    return frozenset(layers)


def _states(runner: Any) -> LastStates:
    config = runner.model_config
    return LastStates(
        runner.model,
        readable_layers(config),
        config.get_hidden_size(),
        runner.max_num_reqs,
        config.dtype,
        runner.device,
        is_frozen=not config.enforce_eager,
    )


def _slots(runner: Any) -> Slots:
    from vllm.distributed import get_tensor_model_parallel_rank
    from vllm.utils.torch_utils import async_tensor_h2d

    config = runner.model_config
    n_heads = config.get_num_attention_heads(runner.parallel_config)  # of this rank
    first = n_heads * get_tensor_model_parallel_rank()
    return Slots(
        config.get_total_num_hidden_layers(),
        range(first, first + n_heads),
        # a pass is padded at most to the largest captured graph
        max(runner.max_num_tokens, runner.compilation_config.max_cudagraph_capture_size or 0),
        runner.max_num_reqs,
        config.dtype,
        runner.device,
        lambda array, out: async_tensor_h2d(array, out=out),
    )
