"""vLLM in this process as engine. It has its own copy of the model, so both must fit the device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from chainwright._errors import BadInput
from chainwright.decode.sampling import Sampling
from chainwright.engines.base import Engine, Wanted, Written

_SHARE_OF_MEMORY = 0.5  # of a GPU, for vLLM's copy and its cache; the rest is for the local model


class VllmEngine(Engine):
    """Writes with vLLM, all prompts in one call."""

    def __init__(self, model: str, *, dtype: str | None = None, revision: str | None = None):
        """Load the model into vLLM.

        Raises:
            BadInput: vLLM is not installed.
        """
        try:
            import vllm
        except ImportError as error:
            raise BadInput(
                "The engine vllm needs vLLM, which is not installed here; install it (pip install vllm), or run it as "
                "a server in an environment of its own and pass --engine openai --engine-url URL."
            ) from error
        self.name = f"{model} in vLLM {getattr(vllm, '__version__', '')}".rstrip()
        self._vllm: Any = vllm
        self._model = vllm.LLM(
            model=model, dtype=dtype or "auto", revision=revision, gpu_memory_utilization=_SHARE_OF_MEMORY
        )

    def write(self, wanted: Sequence[Wanted], sampling: Sampling, done: Callable[[int], None]) -> list[Written]:
        """Return a response to each prompt."""
        shape = {"top_p": sampling.top_p, "top_k": sampling.top_k, "min_p": sampling.min_p}
        shape["repetition_penalty"] = sampling.repetition_penalty
        given = {name: value for name, value in shape.items() if value is not None}
        params = [
            self._vllm.SamplingParams(
                temperature=sampling.temperature, max_tokens=one.limit, seed=one.seed, logprobs=0, **given
            )
            for one in wanted
        ]
        prompts = [{"prompt_token_ids": one.ids} for one in wanted]
        found = [self._written(each.outputs[0]) for each in self._model.generate(prompts, params, use_tqdm=False)]
        done(len(found))
        return found

    def _written(self, output: Any) -> Written:
        ids = [int(i) for i in output.token_ids]
        if output.logprobs is None:
            raise BadInput(f"{self.name} returned no log-probabilities, so its traces cannot be checked.")
        logprobs: list[float | None] = [
            float(at[i].logprob) if i in at else None for i, at in zip(ids, output.logprobs, strict=True)
        ]
        return Written(ids, logprobs, output.finish_reason == "stop")
