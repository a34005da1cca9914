"""From inspect's messages and config to what the engine writes. What cannot be done is refused by its name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from inspect_ai.model import ChatMessage, ChatMessageAssistant, ContentReasoning, ContentText, GenerateConfig
from inspect_ai.tool import ToolChoice, ToolInfo

from chainwright._errors import BadInput, unknown_name
from chainwright.integrations.server.protocol import ChatAsked

_DONE = (
    "max_tokens", "temperature", "top_p", "top_k", "stop_seqs", "seed", "num_choices", "logprobs", "top_logprobs",
    "reasoning_effort", "extra_body",
)  # fmt: skip
_OF_INSPECT = (
    "max_retries", "timeout", "attempt_timeout", "stream_idle_timeout", "max_connections", "adaptive_connections",
    "system_message", "max_tool_output", "internal_tools", "parallel_tool_calls", "cache", "cache_prompt",
    "reasoning_history", "fail_on_refusal",
)  # fmt: skip
"""Settings that inspect follows itself, or that say nothing to a model of this machine without tools."""
_NOTHING: Mapping[str, tuple[Any, ...]] = {
    "best_of": (1,),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logit_bias": ({},),
    "batch": (False,),
    "fallback_models": ([],),
    "extra_headers": ({},),
    "modalities": ([],),
}
"""The values at which settings that are not done ask for nothing."""
_EXTRA = ("min_p", "repetition_penalty", "chat_template_kwargs")


def check_config(config: GenerateConfig) -> None:
    """Raise BadInput for a setting that this provider cannot follow."""
    for name in type(config).model_fields:
        value = getattr(config, name)
        if value is None or name in _DONE or name in _OF_INSPECT or value in _NOTHING.get(name, ()):
            continue
        raise BadInput(f"Models of the provider 'chainwright' do not do {name}, which is {value!r}; leave it out.")
    for name in config.extra_body or {}:
        if name not in _EXTRA:
            raise unknown_name("field of extra_body for the provider 'chainwright'", name, _EXTRA)
    if config.top_logprobs and not config.logprobs:
        raise BadInput(f"top_logprobs is {config.top_logprobs}, which needs logprobs to be on.")
    if (config.num_choices or 1) > 1 and not config.temperature:
        raise BadInput(
            f"num_choices is {config.num_choices}, but greedy decoding (temperature 0, the default here) gives the "
            "same answer each time; set a temperature, such as 1.0."
        )


def check_tools(tools: Sequence[ToolInfo], choice: ToolChoice) -> None:
    """Raise BadInput if a model is to call tools."""
    if tools and choice != "none":
        names = ", ".join(tool.name for tool in tools)
        raise BadInput(
            f"Models of the provider 'chainwright' call no tools; take {names} out of the task, or pass tool_choice "
            "'none'."
        )


def asked_of(
    messages: Sequence[ChatMessage],
    config: GenerateConfig,
    repairs: Sequence[str],
    template: Mapping[str, Any],
    seed: int,
) -> ChatAsked:
    """Return what a request asks for.

    Args:
        messages: The conversation.
        config: How it is to be answered; `max_tokens` is left to the caller.
        repairs: The names of the repairs that act.
        template: What the chat template is passed.
        seed: Decides the draws.

    Raises:
        BadInput: Something that the provider does not do, or a value out of its range.
    """
    check_config(config)
    extra = dict(config.extra_body or {})
    passed = {**template, **extra.pop("chat_template_kwargs", {})}
    if config.reasoning_effort is not None:
        passed["reasoning_effort"] = config.reasoning_effort
    return ChatAsked(
        messages=tuple(map(_message, messages)),
        repair=tuple(repairs) or None,
        repair_report=bool(repairs),
        n=config.num_choices,
        stop=None if config.stop_seqs is None else tuple(config.stop_seqs),
        temperature=config.temperature,
        seed=seed,
        top_p=config.top_p,
        top_k=config.top_k,
        logprobs=config.logprobs,
        top_logprobs=config.top_logprobs,
        chat_template_kwargs=passed,
        **extra,
    )


def _message(message: ChatMessage) -> dict[str, Any]:
    """Return a message by role and content, with its reasoning in a field of its own."""
    if isinstance(message, ChatMessageAssistant) and message.tool_calls:
        raise BadInput("A message of the assistant calls tools, which models of the provider 'chainwright' do not do.")
    parts = [ContentText(text=message.content)] if isinstance(message.content, str) else message.content
    if others := [part.type for part in parts if not isinstance(part, (ContentText, ContentReasoning))]:
        raise BadInput(
            f"A message has a part of the type {others[0]!r}; models of the provider 'chainwright' read text alone."
        )
    said: dict[str, Any] = {"role": message.role}
    said["content"] = "".join(part.text for part in parts if isinstance(part, ContentText))
    if thought := "\n".join(part.reasoning for part in parts if isinstance(part, ContentReasoning)):
        said["reasoning_content"] = thought
    return said
