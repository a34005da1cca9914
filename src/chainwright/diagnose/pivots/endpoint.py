"""Continuing prefixes with a model behind an OpenAI-compatible server.

A server takes text, so the text of the prefix is sent, which the other model may cut into tokens elsewhere than at the
prefix's end. With `/v1/completions` the prompt is the question as the model that wrote the response was asked it,
without BOS, which servers add, and the beginning of the response. With `/v1/chat/completions` the question is the
user's message and the beginning of the response that of the assistant's, which the server must be able to continue
(vLLM and SGLang can).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, Literal

from transformers import PreTrainedTokenizerBase

from chainwright._errors import BadInput
from chainwright.decode.sampling import Sampling
from chainwright.diagnose.pivots.completers import Asked, Completer, Ending, judged_text, prefix_text

Api = Literal["completions", "chat"]


class Endpoint(Completer):
    """Continues with a model behind an OpenAI-compatible server."""

    def __init__(
        self,
        url: str,
        model: str,
        tokenizer: PreTrainedTokenizerBase,
        sampling: Sampling,
        *,
        api: Api = "completions",
        api_key: str | None = None,
        timeout: float = 120.0,
    ):
        """Take the server's address, such as "http://localhost:8000/v1", and what the model is called there.

        Args:
            url: Address up to "/v1".
            model: The name that the server knows the model by.
            tokenizer: The tokenizer of the responses whose prefixes are continued.
            sampling: How the server is asked to draw; temperature and top-p alone are sent.
            api: Which of the two ways to ask.
            api_key: Key of the server; None takes the one in OPENAI_API_KEY, if there is one.
            timeout: Seconds until a request is given up.

        Raises:
            BadInput: The library `openai` is missing, or the sampling has what the protocol does not know.
        """
        try:
            import openai
        except ImportError as error:
            raise BadInput(
                "Continuing with a server needs the library openai; install it with "
                'pip install "chainwright[endpoint]".'
            ) from error
        if others := [n for n in ("top_k", "min_p", "repetition_penalty") if getattr(sampling, n) is not None]:
            raise BadInput(f"The OpenAI protocol knows no {others[0]}; set temperature and top_p alone.")
        self.url, self.model, self.tokenizer, self.sampling, self.api = url, model, tokenizer, sampling, api
        self.name = f"{model} at {url}"
        self._drawing = sampling
        self._errors: type[Exception] = openai.OpenAIError
        key = api_key or os.environ.get("OPENAI_API_KEY") or "none"
        self._client = openai.OpenAI(base_url=url, api_key=key, timeout=timeout, max_retries=3)

    def complete(self, asked: Sequence[Asked], seed: int) -> list[list[Ending]]:
        """Return the endings, one request per prefix.

        Raises:
            BadInput: The server cannot be reached, refuses a request, or returns too few continuations.
        """
        return [self._one(each, seed) for each in asked]

    def _one(self, asked: Asked, seed: int) -> list[Ending]:
        text = prefix_text(self.tokenizer, asked)
        shared: dict[str, Any] = {
            "model": self.model,
            "n": asked.n,
            "max_tokens": asked.limit,
            "temperature": self._drawing.temperature,
            "top_p": self._drawing.top_p or 1.0,
            # other continuations of a prefix get other draws, and a repeated run the same where the server keeps to it
            "seed": seed + asked.first,
        }
        try:
            choices = self._chat(asked, text, shared) if self.api == "chat" else self._completions(asked, text, shared)
        except self._errors as error:
            first = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
            raise BadInput(
                f"The server at {self.url} did not continue a prefix with {self.model!r}: {first}. Check the address "
                "and the model's name, or name another completer."
            ) from error
        if len(choices) < asked.n:
            raise BadInput(
                f"The server at {self.url} was asked for {asked.n} continuations and returned {len(choices)}; it must "
                "support n above 1."
            )
        return [judged_text(asked.trace, text + more, reason == "stop", 0) for more, reason in choices[: asked.n]]

    def _completions(self, asked: Asked, text: str, shared: dict[str, Any]) -> list[tuple[str, str]]:
        ids = list(asked.prefix[: asked.trace.response_start])
        ids = ids[1:] if ids[0] == self.tokenizer.bos_token_id else ids
        question = str(self.tokenizer.decode(ids, clean_up_tokenization_spaces=False))
        found = self._client.completions.create(prompt=question + text, **shared)
        return [(choice.text or "", choice.finish_reason or "") for choice in found.choices]

    def _chat(self, asked: Asked, text: str, shared: dict[str, Any]) -> list[tuple[str, str]]:
        problem = asked.trace.problem
        assert problem is not None
        messages: list[Any] = [{"role": "user", "content": problem.prompt}]
        more: dict[str, Any] = {}
        if text:
            messages.append({"role": "assistant", "content": text})
            more = {"add_generation_prompt": False, "continue_final_message": True}
        found = self._client.chat.completions.create(messages=messages, extra_body=more, **shared)
        return [(choice.message.content or "", choice.finish_reason or "") for choice in found.choices]

    def settings(self) -> dict[str, Any]:
        """Return what a finding records of it."""
        return {**super().settings(), "continues_from": "text", "api": self.api}
