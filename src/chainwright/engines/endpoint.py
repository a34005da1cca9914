"""An OpenAI-compatible server as engine: `/v1/completions` with the prompt's token ids, one request per response.

Token ids come back from servers that know `return_token_ids` (vLLM, `chainwright serve`); others are asked without it,
and the local tokenizer makes tokens of their text. Log-probabilities are asked for always: without them nothing could
be checked. The key is read from OPENAI_API_KEY; it is never written anywhere.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from typing import Any

from transformers import PreTrainedTokenizerBase

from chainwright._errors import BadInput
from chainwright.decode.sampling import Sampling
from chainwright.engines.base import Engine, Wanted, Written

AT_ONCE = 64
"""Requests that wait for the server together; it decides how many of them it runs side by side."""
_RETRIES = 3
_MOST_SEED = 2**31 - 1


class OpenAIEngine(Engine):
    """Writes with a model behind an OpenAI-compatible server."""

    def __init__(self, url: str, model: str, tokenizer: PreTrainedTokenizerBase, *, timeout: float = 600.0):
        """Take the server's address, such as "http://localhost:8000/v1", and what the model is called there.

        Raises:
            BadInput: The library `openai` is missing, the server does not answer, or it has no such model.
        """
        try:
            import openai
        except ImportError as error:
            raise BadInput(
                "Writing traces with a server needs the library openai; install it with "
                'pip install "chainwright[endpoint]".'
            ) from error
        self.url, self.model, self.tokenizer, self.timeout = url, model, tokenizer, timeout
        self.name = f"{model} at {url}"
        self._openai = openai
        key = os.environ.get("OPENAI_API_KEY") or "none"
        self._client = openai.OpenAI(base_url=url, api_key=key, timeout=timeout, max_retries=_RETRIES)
        self._returns_ids = True
        self._check_model()

    def _check_model(self) -> None:
        known = [str(one.id) for one in self._asked(lambda: self._client.models.list().data)]
        if known and self.model not in known:
            raise BadInput(
                f"The server at {self.url} has no model {self.model!r}, but {', '.join(known[:8])}; name one of these "
                "with --engine-model."
            )

    def write(self, wanted: Sequence[Wanted], sampling: Sampling, done: Callable[[int], None]) -> list[Written]:
        """Return a response to each prompt; many requests wait at once."""
        if not wanted:
            return []
        # the first alone: it finds out what the server knows, and whether it can be used at all
        found = {0: self._one(wanted[0], sampling)}
        done(1)
        with ThreadPoolExecutor(AT_ONCE) as pool:
            futures: dict[Future[Written], int] = {
                pool.submit(self._one, one, sampling): i for i, one in enumerate(wanted) if i
            }
            try:
                for future in as_completed(futures):
                    found[futures[future]] = future.result()
                    done(1)
            except BaseException:
                for future in futures:
                    future.cancel()
                raise
        return [found[i] for i in range(len(wanted))]

    def _one(self, wanted: Wanted, sampling: Sampling) -> Written:
        options: dict[str, Any] = {
            "model": self.model,
            "prompt": wanted.ids,
            "max_tokens": wanted.limit,
            "temperature": sampling.temperature,
            "seed": wanted.seed % _MOST_SEED,
            "logprobs": 1,
        }
        if sampling.top_p is not None:
            options["top_p"] = sampling.top_p
        more = {name: getattr(sampling, name) for name in ("top_k", "min_p", "repetition_penalty")}
        extra = {name: value for name, value in more.items() if value is not None}
        try:
            body = {**extra, "return_token_ids": True} if self._returns_ids else extra
            choice = self._client.completions.create(**options, extra_body=body).choices[0]
        except self._openai.BadRequestError as error:
            if not self._returns_ids or "return_token_ids" not in str(error):
                raise self._refused(error) from error
            self._returns_ids = False  # a server that refuses fields that it does not know
            choice = self._asked(lambda: self._client.completions.create(**options, extra_body=extra).choices[0])
        except self._openai.OpenAIError as error:
            raise self._refused(error) from error
        return self._written(choice)

    def _written(self, choice: Any) -> Written:
        """Return what a choice holds.

        Raises:
            BadInput: No log-probabilities, or tokens that the local tokenizer does not have.
        """
        found = choice.logprobs
        if found is None or found.token_logprobs is None:
            raise BadInput(
                f"The server at {self.url} returns no log-probabilities, without which its traces cannot be checked "
                "against this model; use a server that does (vLLM, SGLang, chainwright serve), or no --engine."
            )
        logprobs: list[float | None] = list(found.token_logprobs)
        ids = getattr(choice, "token_ids", None)
        ended = choice.finish_reason == "stop"
        if ids is not None:
            self._check_text(list(ids), choice.text or "")
            return Written(list(ids), _fitted(logprobs, len(ids)), ended)
        ids = list(self.tokenizer(choice.text or "", add_special_tokens=False)["input_ids"])
        texts = [self.tokenizer.decode([i], clean_up_tokenization_spaces=False) for i in ids]
        # a server that reports the end token has one entry more
        is_same = texts == list(found.tokens or ())[: len(texts)]
        return Written(ids, _fitted(logprobs, len(ids)) if is_same else [None] * len(ids), ended, is_text=True)

    def _check_text(self, ids: Sequence[int], text: str) -> None:
        """Raise BadInput unless the local tokenizer makes the same text of the tokens as the server."""
        known = len(self.tokenizer)
        own = "" if any(i >= known for i in ids) else str(self.tokenizer.decode(ids, skip_special_tokens=True))
        if own.strip() != text.strip():
            place = next(
                (k for k, (a, b) in enumerate(zip(own, text, strict=False)) if a != b), min(len(own), len(text))
            )
            raise BadInput(
                f"The server at {self.url} reads its tokens as {text[place : place + 20]!r} where the tokenizer of "
                f"this model has {own[place : place + 20]!r}, so it serves a model with another tokenizer; serve the "
                "model that is diagnosed."
            )

    def _asked(self, ask: Callable[[], Any]) -> Any:
        try:
            return ask()
        except self._openai.OpenAIError as error:
            raise self._refused(error) from error

    def _refused(self, error: Exception) -> BadInput:
        """Return what went wrong in a sentence."""
        known = self._openai
        if isinstance(error, known.APITimeoutError):
            why = f"did not answer within {self.timeout:g} s, {_RETRIES + 1} times; raise --engine-timeout"
        elif isinstance(error, known.APIConnectionError):
            why = "cannot be reached; start it, or check --engine-url"
        elif isinstance(error, known.AuthenticationError):
            why = "refuses the key; set OPENAI_API_KEY"
        else:
            first = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
            why = f"refused a request: {first}"
        return BadInput(f"The server at {self.url} {why}. Finished work is kept; the same command resumes.")


def _fitted(values: Sequence[float | None], n: int) -> list[float | None]:
    """Return as many values as there are tokens; where the server has fewer, the last are unknown."""
    return [*values[:n], *[None] * (n - len(values))]
