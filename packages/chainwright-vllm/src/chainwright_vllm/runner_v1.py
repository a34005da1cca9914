"""vLLM's first model runner (CPU, XPU and, where chosen, CUDA): where its passes are prepared and its outputs made."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any

from chainwright_vllm.patching import wrap
from chainwright_vllm.worker import Row, Worker, attach


def install() -> None:
    """Wrap the runner's methods."""
    from vllm.v1.worker.cpu_model_runner import CPUModelRunner
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

    wrap(CPUModelRunner, "load_model", _load_model)
    wrap(GPUModelRunner, "load_model", _load_model)
    wrap(GPUModelRunner, "execute_model", _execute_model)
    wrap(GPUModelRunner, "_prepare_inputs", _prepare_inputs)
    wrap(GPUModelRunner, "sample_tokens", _sample_tokens)


def _load_model(own: Callable[..., Any]) -> Callable[..., Any]:
    def load_model(self: Any, *args: Any, **kwargs: Any) -> Any:
        out = own(self, *args, **kwargs)
        if getattr(self, "chainwright", None) is None:
            self.chainwright = Worker(self)
        return out

    return load_model


def _execute_model(own: Callable[..., Any]) -> Callable[..., Any]:
    def execute_model(self: Any, scheduler_output: Any, *args: Any, **kwargs: Any) -> Any:
        self.chainwright.note(scheduler_output)
        return own(self, scheduler_output, *args, **kwargs)

    return execute_model


def _prepare_inputs(own: Callable[..., Any]) -> Callable[..., Any]:
    def prepare_inputs(self: Any, *args: Any, **kwargs: Any) -> Any:
        out = own(self, *args, **kwargs)
        self.chainwright.begin(_rows(self))
        return out

    return prepare_inputs


def _rows(runner: Any) -> Iterator[Row]:
    starts = runner.query_start_loc.np
    computed = runner.input_batch.num_computed_tokens_cpu
    is_not_due = runner.discard_request_mask.np
    for i, req_id in enumerate(runner.input_batch.req_ids):
        yield Row(req_id, int(starts[i]), int(starts[i + 1]), int(computed[i]), not is_not_due[i])


def _sample_tokens(own: Callable[..., Any]) -> Callable[..., Any]:
    def sample_tokens(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self.execute_model_state is None:
            return own(self, *args, **kwargs)
        held = self.chainwright.decide(self.execute_model_state.logits)
        with _not_sampled(self, held):
            output = own(self, *args, **kwargs)
        return attach(output, self.chainwright.report())

    return sample_tokens


@contextmanager
def _not_sampled(runner: Any, rows: Collection[int]) -> Iterator[None]:
    """Let the runner drop the tokens of some rows, as it does for prompts that are not at their end.

    A token that is dropped must not cost its request a draw, so generators are out of reach meanwhile. On a CPU also
    those of unfinished prompts: there the runner would rewind them, which PyTorch's CPU generators refuse.
    """
    batch, is_dropped = runner.input_batch, runner.discard_request_mask.np
    for row in rows:
        is_dropped[row] = True
    aside = rows if runner.device.type != "cpu" else [row for row in range(batch.num_reqs) if is_dropped[row]]
    kept = {row: batch.generators.pop(row) for row in aside if row in batch.generators}
    try:
        yield
    finally:
        batch.generators.update(kept)
