"""Which engines there are."""

from __future__ import annotations

from typing import Literal

from transformers import PreTrainedTokenizerBase

from chainwright.engines.base import Engine

Kind = Literal["openai", "vllm"]


def engine_of(
    kind: Kind,
    tokenizer: PreTrainedTokenizerBase,
    *,
    model: str,
    url: str | None = None,
    dtype: str | None = None,
    revision: str | None = None,
    timeout: float = 600.0,
) -> Engine:
    """Return an engine by its kind.

    Args:
        kind: "openai" or "vllm".
        tokenizer: The local model's tokenizer.
        model: The name that the engine knows the model by.
        url: Address of the server, up to "/v1".
        dtype: Number type of the model in vLLM.
        revision: Its revision there.
        timeout: Seconds until a request to a server is given up.

    Raises:
        BadInput: The library that it needs is missing, or the server does not answer or has no such model.
    """
    if kind == "openai":
        from chainwright.engines.endpoint import OpenAIEngine

        assert url is not None
        return OpenAIEngine(url, model, tokenizer, timeout=timeout)
    from chainwright.engines.vllm import VllmEngine

    return VllmEngine(model, dtype=dtype, revision=revision)
