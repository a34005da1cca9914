"""Chats and the responses of servers and engines, as replies and as the messages before them.

A reply is one response: a text, a message, a choice of a chat or completions response (also under "body"), an item list
of the Responses API, an output of vLLM, or the object of a text-generation server. Several of them are several samples.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from chainwright._errors import BadTrace
from chainwright.traces._entries import Entry, ids_of, named, reasoning_of, text_of

_CUT = {"length", "max_tokens", "max_output_tokens", "model_length", "incomplete", "max_new_tokens"}
_ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "model": "assistant",
          "chatgpt": "assistant", "bot": "assistant", "system": "system", "developer": "system", "tool": "tool",
          "function": "tool", "observation": "tool", "function_call": "assistant"}  # fmt: skip
_KEPT = ("tool_calls", "tool_call_id", "name")  # what chat templates read of a message besides role and content
_TEXT_KEYS = ("text", "generated_text", "content", "message", "response", "completion", "generation", "output",
              "solution", "model_output")  # fmt: skip


class Reply(NamedTuple):
    """One response.

    Attributes:
        text: What is said, without reasoning.
        reasoning: Reasoning that came in a field of its own.
        stopped: Whether it came to its end.
        ids: Its token ids, if the record has them.
        turns: Messages of the same list that come before it.
    """

    text: str
    reasoning: str = ""
    stopped: bool = True
    ids: Sequence[int] | None = None
    turns: Sequence[Mapping[str, Any]] = ()


def entry_of(reply: Reply, **known: Any) -> Entry:
    """Return a response with what is known of it."""
    return Entry(response=reply.text, reasoning=reply.reasoning, stopped=reply.stopped, response_ids=reply.ids, **known)


def replies_of(key: str, value: Any) -> list[Reply]:
    """Return the responses that a field holds, at least one.

    Raises:
        BadTrace: There is none, or one is nothing that is known.
    """
    if isinstance(value, str):
        return [Reply(text_of(key, value))]
    if isinstance(value, Mapping):
        return _of_mapping(key, value)
    if isinstance(value, (list, tuple)) and value:
        if all(isinstance(item, str) for item in value):
            return [Reply(text_of(key, item)) for item in value]
        if all(isinstance(item, Mapping) for item in value):
            return _of_mappings(key, value)
        if all(isinstance(item, (list, tuple)) for item in value):  # one list per problem of a batch of one
            return [reply for item in value for reply in replies_of(key, item)]
    if key == "choices":
        raise BadTrace("'choices' is not a list of choices")
    if isinstance(value, (list, tuple)):
        raise BadTrace(f"{key!r} holds no response")
    raise BadTrace(f"{key!r} is {type(value).__name__}, not text")


def _of_mapping(key: str, value: Mapping[str, Any]) -> list[Reply]:
    if isinstance(value.get("body"), Mapping):
        value = value["body"]
    if "choices" in value:
        return replies_of("choices", value["choices"])
    if isinstance(value.get("output"), (list, tuple)):
        cut = value.get("status") == "incomplete"
        return [reply._replace(stopped=reply.stopped and not cut) for reply in replies_of("output", value["output"])]
    if isinstance(value.get("outputs"), (list, tuple)):
        return replies_of("outputs", value["outputs"])
    if (error := value.get("error")) and not any(name in value for name in _TEXT_KEYS):
        message = error.get("message", error) if isinstance(error, Mapping) else error
        raise BadTrace(f"{key!r} is an error of the server ({message})")
    if not any(name in value for name in _TEXT_KEYS):
        raise BadTrace(f"{key!r} is neither text nor a message, and has no choices")
    return [reply_of(value)]


def _of_mappings(key: str, items: Sequence[Mapping[str, Any]]) -> list[Reply]:
    """Return the replies of a list: items of the Responses API and messages make one, others are one each."""
    types = {item.get("type") for item in items}
    if types & {"message", "reasoning", "function_call"} and not any("message" in item for item in items):
        return [_of_items(items)]
    if all(isinstance(item.get("role"), str) for item in items):
        before, reply = split_chat(items)
        return [reply._replace(turns=before)] if reply is not None else []
    return [reply_of(item) for item in items]


def _of_items(items: Sequence[Mapping[str, Any]]) -> Reply:
    """Return the reply that the output items of the Responses API make: reasoning, messages, calls of tools."""
    thought, said = [], []
    for item in items:
        if item.get("type") == "reasoning":
            parts = item.get("content") or item.get("summary") or []
            thought += [str(part.get("text", "")) if isinstance(part, Mapping) else str(part) for part in parts]
        elif item.get("type") == "function_call":
            said.append(_call_text({"name": item.get("name"), "arguments": item.get("arguments")}))
        else:
            said.append(content_text(item.get("content")))
    is_cut = any(item.get("status") == "incomplete" for item in items)
    return Reply("".join(said), "\n".join(filter(None, thought)), not is_cut)


def reply_of(choice: Mapping[str, Any]) -> Reply:
    """Return the reply of a choice (with a message or a bare text), of a message, or of an engine's output.

    Raises:
        BadTrace: It has no text, or one that is no text.
    """
    message = choice.get("message", choice)
    if not isinstance(message, Mapping):
        raise BadTrace("a message is not an object with a role and content")
    details = choice.get("details")
    reasons = [choice.get("finish_reason"), choice.get("stop_reason")]
    reasons += [details.get("finish_reason")] if isinstance(details, Mapping) else []
    stopped = not any(str(reason).rpartition(".")[2].lower() in _CUT for reason in reasons)
    hit = named(message, [key for key in _TEXT_KEYS if key != "message"])
    if hit is None:
        raise BadTrace("a message is not an object with a role and content")
    text = content_text(hit[1]) + "".join(map(_call_text, message.get("tool_calls") or []))
    thought = [reasoning_of(choice) if choice is not message else "", reasoning_of(message), *_thoughts(hit[1])]
    reasoning = "\n".join(dict.fromkeys(filter(None, thought)))
    return Reply(text, reasoning, stopped, ids_of(choice.get("token_ids")) or _detailed_ids(details))


def _detailed_ids(details: Any) -> list[int] | None:
    tokens = details.get("tokens") if isinstance(details, Mapping) else None
    return ids_of([token.get("id") for token in tokens if isinstance(token, Mapping)]) if tokens else None


def _call_text(call: Any) -> str:
    """Return the call of a tool as text, so that no part of a response is lost."""
    function = call.get("function", call) if isinstance(call, Mapping) else call
    return f"\n<tool_call>\n{json.dumps(function, ensure_ascii=False)}\n</tool_call>"


def _thoughts(content: Any) -> list[str]:
    """Return the reasoning among the parts of a message's content."""
    parts = content if isinstance(content, (list, tuple)) else []
    thought = [part.get(part.get("type"), part.get("thinking")) for part in parts if isinstance(part, Mapping)
               and (part.get("type") in ("thinking", "reasoning") or "thinking" in part)]  # fmt: skip
    return [each for each in thought if isinstance(each, str)]


def content_text(content: Any) -> str:
    """Return the text of a message's content: a text, or the text parts of a list.

    Raises:
        BadTrace: It is something else.
    """
    if content is None:  # a response that was cut while it thought has no content
        return ""
    if isinstance(content, str):
        return text_of("content", content)
    if not isinstance(content, (list, tuple)):
        raise BadTrace(f"the content of a message is {type(content).__name__}, not text")
    texts = [_part_text(part) for part in content]
    if not all(isinstance(text, str) for text in texts):
        raise BadTrace("the content of a message has parts that are not text")
    return "".join(texts)


def _part_text(part: Any) -> Any:
    if not isinstance(part, Mapping):
        return part
    if part.get("type") in ("image", "image_url", "input_image", "audio", "input_audio", "video"):
        raise BadTrace(f"a message has a part of type {part['type']!r}; only text is read")
    return part.get("text", "")


def split_chat(messages: Sequence[Any]) -> tuple[list[dict[str, Any]], Reply | None]:
    """Return the messages before the response, as chat templates read them, and the response if the chat ends with one.

    Raises:
        BadTrace: A message is not one.
    """
    turns = [_turn(message) for message in messages]
    if turns[-1]["role"] != "assistant":
        return [_plain(turn) for turn in turns], None
    last = dict(messages[-1])
    if "value" in last and "content" not in last:
        last["content"] = last["value"]
    return [_plain(turn) for turn in turns[:-1]], reply_of(last)


def _turn(message: Any) -> dict[str, Any]:
    """Return a message by role and content, whether it says "role" or, as ShareGPT does, "from"."""
    role = message.get("role", message.get("from")) if isinstance(message, Mapping) else None
    if not isinstance(role, str):
        raise BadTrace("a message is not an object with a role and content")
    if role not in _ROLES:
        raise BadTrace(f"a message has the unknown role {role!r}; known are {', '.join(_ROLES)}")
    return {**message, "role": _ROLES[role], "content": message.get("content", message.get("value"))}


def _plain(turn: Mapping[str, Any]) -> dict[str, Any]:
    plain = {"role": turn["role"], "content": content_text(turn["content"])}
    if thought := [*filter(None, [reasoning_of(turn)]), *_thoughts(turn["content"])]:
        plain["reasoning_content"] = "\n".join(thought)
    return plain | {key: turn[key] for key in _KEPT if turn.get(key) is not None}
