"""What a request may hold: the fields of OpenAI's protocol that are served, a few of our own, and how one is refused.

A field that this server does not know is refused, and so is one that it cannot do, unless it asks for nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, NoReturn, TypeVar

from pydantic import Field

from chainwright._config import Config, MustBe
from chainwright._errors import BadInput

# with the values at which they ask for nothing
_NOT_DONE: Mapping[str, tuple[Any, ...]] = {
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logit_bias": ({},),
    "best_of": (1,),
    "suffix": ("",),
    "tools": ([],),
    "tool_choice": ("none",),
    "functions": ([],),
    "function_call": ("none",),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "audio": (),
    "prediction": (),
}
_WITHOUT_EFFECT = ("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key")
Ids = tuple[Annotated[int, Field(ge=0)], ...]


class Refused(Exception):
    """A request that is answered with an error.

    Attributes:
        status: The HTTP status.
        message: A sentence.
        code: OpenAI's code of the error, if it has one.
    """

    def __init__(self, status: int, message: str, code: str | None = None):
        super().__init__(message)
        self.status, self.message, self.code = status, message, code


def error_body(status: int, message: str, code: str | None = None) -> dict[str, Any]:
    """Return an error as OpenAI's clients read it."""
    kinds = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}
    kind = "server_error" if status >= 500 else kinds.get(status, "invalid_request_error")
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}


class StreamOptions(Config):
    """What a stream holds besides the answer."""

    include_usage: bool | None = Field(default=None, description="Whether its last chunk counts the tokens.")
    include_obfuscation: bool | None = Field(default=None, description="Ignored.")


class Asked(Config):
    """What both kinds of requests have in common."""

    model: str | None = Field(default=None, description="The model, with '+' and a repair for each that acts.")
    repair: str | tuple[str, ...] | None = Field(default=None, description="Repairs, in place of those in `model`.")
    repair_report: bool = Field(default=False, description="Whether the answer says what repairs did at each token.")
    n: int | None = Field(default=None, ge=1, le=128, description="Answers to each prompt.")
    stop: Annotated[str | tuple[str, ...] | None, MustBe("a text, a list of texts, or none")] = Field(
        default=None, description="Texts before which an answer ends."
    )
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**64, description="Decides what is drawn.")
    temperature: float | None = Field(default=None, ge=0, le=100, description="0 is greedy, and the default.")
    top_p: float | None = Field(default=None, gt=0, le=1, description="As in `Sampling`; 1 is off.")
    top_k: int | None = Field(default=None, ge=-1, description="As in `Sampling`; 0 and -1 are off.")
    min_p: float | None = Field(default=None, ge=0, le=1, description="As in `Sampling`; 0 is off.")
    repetition_penalty: float | None = Field(default=None, gt=0, le=100, description="As in `Sampling`; 1 is off.")
    max_tokens: int | None = Field(default=None, ge=0, description="Most tokens of an answer.")
    return_token_ids: bool | None = Field(default=None, description="Whether the ids of the tokens are given (vLLM's).")
    stream: bool | None = Field(default=None, description="Whether the answer is sent while it is written.")
    stream_options: StreamOptions | None = Field(default=None, description="What a stream holds besides.")

    @property
    def limit(self) -> int | None:
        """Return the most tokens of an answer; None leaves it to the server."""
        return self.max_tokens


class ChatAsked(Asked):
    """A request for a chat completion."""

    messages: tuple[Mapping[str, Any], ...] = Field(min_length=1, description="The conversation.")
    max_completion_tokens: int | None = Field(default=None, ge=1, description="The newer name of max_tokens.")
    max_tokens: int | None = Field(default=None, ge=1, description="Most tokens of an answer.")
    logprobs: bool | None = Field(default=None, description="Whether log-probabilities are given.")
    top_logprobs: int | None = Field(default=None, ge=0, le=20, description="How many of the likeliest tokens.")
    chat_template_kwargs: Mapping[str, Any] = Field(default={}, description="What the chat template is passed.")

    @property
    def limit(self) -> int | None:
        """Return the most tokens of an answer; None leaves it to the server."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    @property
    def n_likely(self) -> int | None:
        """Return how many of the likeliest tokens are given at each token; None gives no log-probabilities."""
        return (self.top_logprobs or 0) if self.logprobs else None


class TextAsked(Asked):
    """A request for a completion of a text."""

    prompt: Annotated[
        str | tuple[str, ...] | Ids | tuple[Ids, ...], MustBe("a text, a list of texts, or token ids")
    ] = Field(description="What is continued.")
    echo: bool | None = Field(default=None, description="Whether the prompt is given back in front of its answer.")
    logprobs: int | None = Field(default=None, ge=0, le=20, description="How many of the likeliest tokens.")
    response_start: int | None = Field(
        default=None, ge=1, description="With echo: how many tokens of the prompt are the question."
    )

    @property
    def n_likely(self) -> int | None:
        """Return how many of the likeliest tokens are given at each token; None gives no log-probabilities."""
        return self.logprobs


A = TypeVar("A", bound=Asked)


def parse(kind: type[A], body: bytes) -> A:
    """Return what the body of a request asks for.

    Raises:
        Refused: It is no JSON, or asks for something that there is not.
    """
    try:
        fields = json.loads(body, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise Refused(400, f"The body of the request is not JSON ({_short(error)}).") from error
    if not isinstance(fields, dict):
        raise Refused(400, 'The body of the request must be a JSON object, such as {"model": ..., "messages": [...]}.')
    try:
        asked = kind(**_served(fields))
        _check_text(asked.model_dump())
    except BadInput as error:
        raise Refused(400, str(error)) from error
    if kind is ChatAsked and fields.get("top_logprobs") and not fields.get("logprobs"):
        raise Refused(400, "top_logprobs needs logprobs to be true.")
    return asked


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")


def _short(error: Exception) -> str:
    return "nested too deeply" if isinstance(error, RecursionError) else str(error)[:200]


def _served(fields: dict[str, Any]) -> dict[str, Any]:
    """Return the fields without those that have no effect here; refuse those that would have one."""
    for name, nothing in _NOT_DONE.items():
        if fields.get(name) is not None and fields[name] not in nothing:
            raise Refused(400, f"This server does not do {name}; leave it out.")
    return {name: value for name, value in fields.items() if name not in (*_NOT_DONE, *_WITHOUT_EFFECT)}


def _check_text(value: Any) -> None:
    """Refuse halves of surrogate pairs, which no tokenizer reads."""
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise Refused(
                400, "A text holds half of a surrogate pair, which is no character; send valid Unicode."
            ) from error
    elif isinstance(value, Mapping):
        _check_text(list(value) + list(value.values()))
    elif isinstance(value, (list, tuple)):
        for item in value:
            _check_text(item)
