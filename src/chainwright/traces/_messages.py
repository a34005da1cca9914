"""Lines of chat data as flat records: lists of messages, and the responses of servers.

1. The response is a text, a message, or in `choices[0]` of a server's response (also under "response" or its "body").
2. A list of messages ("messages", or "prompt" and "completion" as such lists) ends with the response; what is before it
   is the question, rendered by the tokenizer's chat template, or joined by blank lines where it has none.
3. The fields of a message that hold its reasoning become those of the record.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from chainwright._errors import BadTrace
from chainwright.traces.offsets import Tokenizer

NESTED_KEYS = ("messages", "choices")
_PLACES = ("response", "completion", "choices")


class Flat(NamedTuple):
    """A record whose question and response are texts, and whether the response came to its end."""

    record: dict[str, Any]
    stopped: bool


def flattened(record: Mapping[str, Any], tokenizer: Tokenizer, reasoning_keys: Sequence[str]) -> Flat:
    """Return a record with its messages as texts; what is text already stays.

    Raises:
        BadTrace: A message is not one, there are several choices, or there is no question before the response.
    """
    flat = {key: value for key, value in record.items() if key not in NESTED_KEYS}
    stopped = True
    for key in _PLACES:
        value = record.get(key)
        if isinstance(value, Mapping) or (key == "choices" and value is not None):
            choice = _choice(value, key)
            stopped = choice.get("finish_reason") != "length"
            flat.pop(key, None)
            flat |= _said(choice, reasoning_keys)
    for key in ("messages", "question", "prompt", "completion"):
        value = record.get(key)
        if isinstance(value, list) and value and isinstance(value[0], Mapping):
            flat.pop(key, None)
            flat |= _of_messages(value, tokenizer, reasoning_keys)
        elif key == "messages" and value is not None:
            raise BadTrace("'messages' is not a list of messages with roles")
    return Flat(flat, stopped)


def _choice(value: Any, key: str) -> Mapping[str, Any]:
    """Return the choice of a server's response, or the message that is there in its place."""
    if isinstance(value, Mapping):
        body = value.get("body")
        value = body if isinstance(body, Mapping) else value
        if "choices" not in value:
            if "content" not in value and "message" not in value:
                raise BadTrace(f"{key!r} is neither text nor a message, and has no choices")
            return dict(value)
        value = value["choices"]
    if not isinstance(value, list) or not value or not isinstance(value[0], Mapping):
        raise BadTrace("'choices' is not a list of choices")
    if len(value) > 1:
        raise BadTrace(f"there are {len(value)} choices; write one line per choice")
    return dict(value[0])


def _said(choice: Mapping[str, Any], reasoning_keys: Sequence[str]) -> dict[str, Any]:
    """Return response and reasoning of a choice (with a message or a bare text) or of a message."""
    if isinstance(choice.get("text"), str) and "message" not in choice and "content" not in choice:
        return {"response": choice["text"]}
    message = choice.get("message", choice)
    if not isinstance(message, Mapping):
        raise BadTrace("a message is not an object with a role and content")
    content = message.get("content")
    parts = content if isinstance(content, list) else []
    thought = [part["thinking"] for part in parts if isinstance(part, Mapping) and "thinking" in part]
    said: dict[str, Any] = {key: message[key] for key in reasoning_keys if message.get(key) is not None}
    if thought:
        said["thinking"] = "\n".join(map(str, thought))
    # a response that was cut while it thought has no content
    return {**said, "response": "" if content is None else _text_of(content)}


def _text_of(content: Any) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise BadTrace(f"the content of a message is {type(content).__name__}, not text")
    texts = [part.get("text", "") if isinstance(part, Mapping) else part for part in content]
    if not all(isinstance(text, str) for text in texts):
        raise BadTrace("the content of a message has parts that are not text")
    return "".join(texts)


def _of_messages(messages: list[Any], tokenizer: Tokenizer, reasoning_keys: Sequence[str]) -> dict[str, Any]:
    """Return what a list of messages holds: a question, a response, or both."""
    if not all(isinstance(message, Mapping) and isinstance(message.get("role"), str) for message in messages):
        raise BadTrace("a message is not an object with a role and content")
    ends_with_reply = messages[-1]["role"] == "assistant"
    before = messages[:-1] if ends_with_reply else messages
    flat: dict[str, Any] = {}
    if before:
        turns = [{"role": m["role"], "content": _text_of(m.get("content") or "")} for m in before]
        flat["question"] = _question(turns, tokenizer)
    return flat | (_said(messages[-1], reasoning_keys) if ends_with_reply else {})


def _question(turns: list[dict[str, str]], tokenizer: Tokenizer) -> str:
    if not getattr(tokenizer, "chat_template", None):
        return "\n\n".join(turn["content"] for turn in turns)
    try:
        return str(tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False))  # type: ignore[attr-defined]
    except Exception as error:  # templates raise what they like
        raise BadTrace(f"the chat template refuses the messages: {error}") from error
