"""What one model runner keeps: which live requests ask for what, and whether it has acted.

A step goes: `note` who came and went, `begin` the pass (the tables are filled), the pass itself, `report`. The report
travels to the scheduler with the step's output (`scheduling`).
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from chainwright_vllm.heads import NotFound, hook_heads
from chainwright_vllm.slots import Slots, Span
from chainwright_vllm.spec import KnockOut, Spec, asked

logger = logging.getLogger("vllm.chainwright")
REPORT = "chainwright_report"  # the attribute of vLLM's ModelRunnerOutput


class Row(NamedTuple):
    """A request's tokens in a pass.

    Attributes:
        req_id: The request.
        start: Its first token in the pass.
        end: One past its last.
        n_computed: Tokens that were computed in earlier passes.
    """

    req_id: str
    start: int
    end: int
    n_computed: int


@dataclass
class Report:
    """What the edits did in one pass.

    Attributes:
        acted: Requests whose edit was seen to act, or had no token to act on in this pass.
        failed: Requests whose edit did not act, with a sentence.
    """

    acted: set[str] = field(default_factory=set)
    failed: dict[str, str] = field(default_factory=dict)


class Worker:
    """The edits of one model runner."""

    def __init__(self, runner: Any):
        self.slots = _slots(runner)
        self.refusal: str | None = None
        self._live: dict[str, tuple[Spec, int]] = {}  # what is asked, and tokens of the prompt
        self._now: list[tuple[str, KnockOut, bool]] = []  # edited requests of this pass, and whether tokens are
        try:
            hook_heads(runner.model, self.slots)
        except NotFound as error:
            self.refusal = f"Chainwright cannot edit this model: {error}."
            logger.warning("%s Requests that ask for edits will end with an error.", self.refusal)

    def note(self, scheduler_output: Any) -> None:
        """Remember what new requests ask for, and forget finished ones."""
        for req_id in scheduler_output.finished_req_ids:
            self._live.pop(req_id, None)
        for new in scheduler_output.scheduled_new_reqs:
            params = new.sampling_params
            spec = asked(params.extra_args) if params is not None else None
            if spec is not None:
                self._live[new.req_id] = spec, len(new.prompt_token_ids)
        self._now = []

    def begin(self, rows: Iterable[Row]) -> None:
        """Fill the tables for a pass over these rows."""
        if not self._live:
            self.slots.fill(())
            return
        spans = []
        for row in rows:
            if row.req_id not in self._live:
                continue
            knock_out, n_prompt = self._live[row.req_id]
            start = row.start + max(0, knock_out.first_edited(n_prompt) - row.n_computed)
            if start < row.end:
                spans.append(Span(start, row.end, knock_out))
            self._now.append((row.req_id, knock_out, start < row.end))
        self.slots.fill(spans)

    def report(self) -> Report:
        """Return whether the edits of the pass that has just run have acted."""
        report = Report()
        for req_id, knock_out, has_tokens in self._now:
            layers = sorted({layer for layer, _ in knock_out.heads})
            if self.refusal is not None:
                report.failed[req_id] = self.refusal
            elif has_tokens and (unfired := self.slots.unfired(layers)):
                report.failed[req_id] = f"Chainwright's edit of layer {unfired[0]} did not act; the request was ended."
            else:
                report.acted.add(req_id)
        return report


def attach(output: Any, report: Report) -> Any:
    """Return a step's output with the report on it."""
    inner = output
    for name in ("_model_runner_output", "model_runner_output"):  # the wrappers of asynchronous outputs
        inner = getattr(inner, name, inner)
    setattr(inner, REPORT, report)
    return output


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
