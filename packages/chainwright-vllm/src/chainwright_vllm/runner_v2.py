"""vLLM's second model runner (the default on CUDA): where its passes are prepared and its outputs made."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from chainwright_vllm.patching import wrap
from chainwright_vllm.worker import Row, Worker, attach


def install() -> None:
    """Wrap the runner's methods."""
    from vllm.v1.worker.gpu.model_runner import GPUModelRunner
    from vllm.v1.worker.gpu.sample.sampler import Sampler

    wrap(GPUModelRunner, "load_model", _load_model)
    wrap(GPUModelRunner, "execute_model", _execute_model)
    wrap(GPUModelRunner, "prepare_inputs", _prepare_inputs)
    wrap(GPUModelRunner, "sample_tokens", _sample_tokens)
    wrap(Sampler, "__call__", _sample)


def _load_model(own: Callable[..., Any]) -> Callable[..., Any]:
    def load_model(self: Any, *args: Any, **kwargs: Any) -> Any:
        out = own(self, *args, **kwargs)
        if getattr(self, "chainwright", None) is None:
            self.chainwright = Worker(self)
            self.sampler.chainwright = self.chainwright
        return out

    return load_model


def _execute_model(own: Callable[..., Any]) -> Callable[..., Any]:
    def execute_model(self: Any, scheduler_output: Any, *args: Any, **kwargs: Any) -> Any:
        is_dummy = kwargs.get("dummy_run", False) or (len(args) > 1 and args[1])
        if not is_dummy:
            self.chainwright.note(scheduler_output)
        return own(self, scheduler_output, *args, **kwargs)

    return execute_model


def _prepare_inputs(own: Callable[..., Any]) -> Callable[..., Any]:
    def prepare_inputs(self: Any, *args: Any, **kwargs: Any) -> Any:
        batch = own(self, *args, **kwargs)
        self.chainwright.begin(_rows(batch))
        return batch

    return prepare_inputs


def _rows(batch: Any) -> Iterator[Row]:
    starts, computed = batch.query_start_loc_np, batch.num_computed_tokens_np
    is_due = computed + batch.num_scheduled_tokens >= batch.prefill_len_np
    for i, req_id in enumerate(batch.req_ids):
        yield Row(req_id, int(starts[i]), int(starts[i + 1]), int(computed[i]), bool(is_due[i]))


def _sample(own: Callable[..., Any]) -> Callable[..., Any]:
    def sample(self: Any, logits: Any, input_batch: Any, *args: Any, **kwargs: Any) -> Any:
        worker = getattr(self, "chainwright", None)
        held = () if worker is None else worker.decide(logits)
        out = own(self, logits, input_batch, *args, **kwargs)
        for row in held:
            out.num_sampled[row] = 0  # as for a prompt that is not at its end
        return out

    return sample


def _sample_tokens(own: Callable[..., Any]) -> Callable[..., Any]:
    def sample_tokens(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self.execute_model_state is None:
            return own(self, *args, **kwargs)
        return attach(own(self, *args, **kwargs), self.chainwright.report())

    return sample_tokens
