"""The formats of trace files: each recognises a record and says which questions and responses it holds.

    inspect     a sample of an inspect log
    lm-eval     a line of a sample log of lm-evaluation-harness
    graded      solutions of several models to one problem, each with its judgement
    chat        messages, ShareGPT conversations, requests and responses of OpenAI-like servers, also as batch files,
                outputs of vLLM and of text-generation servers
    text        question and response under their common names

A record of the last two kinds may be both: a question under its name and a server's response, for example.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from chainwright._errors import BadTrace, unknown_name
from chainwright.traces._entries import (
    ANSWER_KEYS,
    ID_KEYS,
    JUDGEMENT_KEYS,
    MODEL_KEYS,
    PROMPT_KEYS,
    QUESTION_KEYS,
    REASONING_KEYS,
    RESPONSE_KEYS,
    SAMPLE_KEYS,
    Entry,
    Label,
    Record,
    ids_of,
    judgement,
    label_of,
    named,
    reasoning_of,
    text_of,
)
from chainwright.traces._inspect_log import inspect_entries
from chainwright.traces._messages import Reply, entry_of, replies_of, reply_of, split_chat

_CHATS = ("messages", "conversations", "conversation")
_SERVER = {"object", "created", "usage", "system_fingerprint", "service_tier", "method", "url", "finish_reason",
           "stop_reason", "index", "logprobs", "prompt_token_ids", "token_ids", "details", "request_id", "error",
           "parameters", "status", "finished", "metrics", "prompt_logprobs"}  # fmt: skip
_LABELS = ("level", "subject", "type", "category", "difficulty", "topic")
_READ = {*PROMPT_KEYS, *QUESTION_KEYS, *REASONING_KEYS, *ANSWER_KEYS, *JUDGEMENT_KEYS, *ID_KEYS, *MODEL_KEYS,
         *SAMPLE_KEYS, *_CHATS, *_SERVER, *_LABELS, "body", "request", "system"}  # fmt: skip
_SOLUTION_KEYS = ("solution", "response", "completion", "generation", "output")
Reader = Callable[[Record], list[Entry]]


def entries_of(record: Record, form: str) -> list[Entry]:
    """Return the questions and responses of a record, at least one.

    Raises:
        BadTrace: The record holds none that can be read.
    """
    if form == "auto":
        form = next(name for name, fits in _SIGNS.items() if fits(record))
    entries = READERS[form](record)
    if not entries:
        raise BadTrace("the record holds no response")
    return entries


def check_format(form: str) -> None:
    """Raise BadInput unless a format is known."""
    if form not in FORMATS:
        raise unknown_name("format of traces", form, FORMATS)


def is_request(record: Record) -> bool:
    """Say whether a record is the request of a batch file, whose response is in another record of the same id."""
    body = record.get("body")
    return "custom_id" in record and "response" not in record and isinstance(body, Mapping) and "choices" not in body


def models_of(record: Record) -> list[str]:
    """Return the names of the models in a record of graded solutions; none in any other."""
    return list(_solutions(record)) if _is_graded(record) else []


def _is_inspect(record: Record) -> bool:
    return "epoch" in record and "output" in record and "input" in record and "target" in record


def _is_lm_eval(record: Record) -> bool:
    return "doc" in record and ("resps" in record or "filtered_resps" in record)


def _solutions(record: Record) -> dict[str, Mapping[str, Any]]:
    return {
        name: value
        for name, value in record.items()
        if isinstance(value, Mapping)
        and isinstance((named(value, _SOLUTION_KEYS) or ("", None))[1], str)
        and any(key in value for key in JUDGEMENT_KEYS)
    }


def _is_graded(record: Record) -> bool:
    there = _solutions(record)
    return bool(there) and not any(key in record for key in RESPONSE_KEYS if key not in there and key != "solution")


def _any(record: Record) -> bool:
    return True


def _lm_eval(record: Record) -> list[Entry]:
    """Return the responses to one document of an lm-eval log."""
    doc = record["doc"] if isinstance(record["doc"], Mapping) else {}
    raw = record.get("resps") or record.get("filtered_resps") or []
    responses = [item for group in raw for item in (group if isinstance(group, list) else [group])]
    if not responses or not all(isinstance(item, str) for item in responses):
        raise BadTrace("the record has log-likelihoods of choices and no text that the model wrote")
    prompt, turns = _lm_eval_prompt(record.get("arguments"))
    question = (named(doc, QUESTION_KEYS) or ("", None))[1]
    metrics = [key for key in record.get("metrics") or ("exact_match", "acc") if record.get(key) in (0, 1)]
    target = record.get("target")
    shared = {
        "question": question if isinstance(question, str) else None,
        "prompt": prompt,
        "turns": turns,
        "label": bool(record[metrics[0]]) if metrics else None,
        "answer": target if isinstance(target, (str, int, float)) and target != "" else None,
        "id": label_of(record, ("doc_id",)),
        "labels": {key: doc[key] for key in _LABELS if isinstance(doc.get(key), (str, int, float))}
        | ({"filter": record["filter"]} if isinstance(record.get("filter"), str) else {}),
    }
    return [entry_of(Reply(text_of("resps", text)), sample=k, **shared) for k, text in enumerate(responses)]


def _lm_eval_prompt(arguments: Any) -> tuple[str | None, list[dict[str, Any]]]:
    """Return the prompt of an lm-eval record, as text or, where it went to a chat server, as messages."""
    if isinstance(arguments, Mapping):
        arguments = next(iter(arguments.values()), None)
        first = arguments.get("arg_0") if isinstance(arguments, Mapping) else None
    else:
        first = arguments
        while isinstance(first, (list, tuple)) and first:
            first = first[0]
    if not isinstance(first, str):
        return None, []
    if first.startswith('[{"role"'):
        try:
            return None, split_chat(json.loads(first))[0]
        except ValueError:
            pass
    return first, []


def _graded(record: Record) -> list[Entry]:
    """Return the solutions of every model to one problem."""
    flat = {key: value for key, value in record.items() if key not in _solutions(record)}
    question, prompt = _question(flat)
    shared = {"question": question, "prompt": prompt, "answer": label_of(flat, ANSWER_KEYS), **_known(flat, "")}
    unread = [key for key in flat if key not in _READ]
    entries = []
    for name, value in _solutions(record).items():
        key, text = named(value, _SOLUTION_KEYS) or ("", "")
        entry = entry_of(Reply(text_of(key, text), reasoning_of(value)), label=judgement(value), **shared)
        entries.append(replace(entry, model=name, unread=unread))
    return entries


def _common(record: Record) -> list[Entry]:
    """Return the responses of a record of question and response, in whatever spelling, or of a server's exchange."""
    request = _request(record)
    chat = next((key for key in _CHATS if record.get(key) is not None), None)
    hit = named(record, [key for key in RESPONSE_KEYS if key in record])
    if hit is not None and hit[0] == "output" and isinstance(hit[1], (list, tuple)):
        hit = ("output", record)  # the Responses API, whose status is beside its output
    turns, reply = _chat(record, chat) if chat else ([], None)
    if hit is None and reply is None and isinstance(record.get("body"), Mapping) and "choices" in record["body"]:
        hit = ("body", record["body"])
    if hit is None and reply is None and chat is None:
        hit = _text_alone(record)
    if hit is None and reply is None:
        raise BadTrace(f"there is no response (a field such as {_some(RESPONSE_KEYS)})")
    if hit is not None and hit[1] is None and not reasoning_of(record):
        raise BadTrace(f"{hit[0]!r} is NoneType, not text")
    replies = [reply] if hit is None and reply is not None else _replies(record, *(hit or ("", None)))
    question, prompt = _question({**request, **{k: v for k, v in record.items() if k not in ("messages",)}})
    if not turns and request:
        turns = _request_turns(request)
    turns = turns or _prompt_turns(record)
    used = "" if hit is None else hit[0]
    gold = "solution" if used != "solution" and label_of(record, ANSWER_KEYS) is None else ""
    shared = {
        "question": question,
        "prompt": prompt,
        "label": judgement(record),
        **_known(record, used),
        "answer": _answer(record, used),
        "prompt_ids": ids_of(record.get("prompt_token_ids")) or ids_of(_nested(record, "response", "prompt_token_ids")),
        "unread": [key for key in record if key not in _READ and key != used and key != gold],
    }
    reasoning = reasoning_of(record)
    first = shared.pop("sample", None)
    if len(replies) > 1 and first is not None:
        raise BadTrace(f"the record has {len(replies)} responses and a sample number; write one line per response")
    return [
        entry_of(
            each._replace(reasoning=_one_reasoning(each.reasoning, reasoning)),
            turns=each.turns or turns,
            sample=first if len(replies) == 1 else k,
            **shared,
        )
        for k, each in enumerate(replies)
    ]


def _replies(record: Record, key: str, value: Any) -> list[Reply]:
    if value is None:
        value = ""
    if key == "generated_text" or (
        key in ("response", "completion", "output", "output_text") and isinstance(value, str)
    ):
        # what is said of the end of a response may be beside it
        return [reply_of({**{k: record[k] for k in ("finish_reason", "stop_reason", "details", "token_ids")
                             if k in record}, "text": text_of(key, value)})]  # fmt: skip
    return replies_of(key, value)


def _text_alone(record: Record) -> tuple[str, Any] | None:
    return ("text", record["text"]) if isinstance(record.get("text"), str) else None


def _one_reasoning(own: str, beside: str) -> str:
    if own and beside and own != beside:
        raise BadTrace("reasoning is in the message and beside it, and differs; keep one of the two")
    return own or beside


def _request(record: Record) -> Mapping[str, Any]:
    """Return the request that a record of an exchange has beside the response."""
    request = record.get("request", record.get("body"))
    if isinstance(request, Mapping) and isinstance(request.get("body"), Mapping):
        request = request["body"]
    return request if isinstance(request, Mapping) else {}


def _request_turns(request: Mapping[str, Any]) -> list[dict[str, Any]]:
    messages = request.get("messages", request.get("input"))
    if isinstance(messages, (list, tuple)) and messages:
        before, _ = split_chat([{"role": "user", "content": m} if isinstance(m, str) else m for m in messages])
        start = [{"role": "system", "content": request["instructions"]}] if request.get("instructions") else []
        return [*start, *before]
    return []


def _prompt_turns(record: Record) -> list[dict[str, Any]]:
    """Return the messages that a field which is named like a question holds, if one does."""
    for key in (*PROMPT_KEYS, *QUESTION_KEYS):
        value = record.get(key)
        if isinstance(value, (list, tuple)) and value and isinstance(value[0], Mapping):
            return split_chat(value)[0]
    return []


def _chat(record: Record, key: str) -> tuple[list[dict[str, Any]], Reply | None]:
    messages = record[key]
    if not isinstance(messages, (list, tuple)) or not messages:
        raise BadTrace(f"{key!r} is not a list of messages with roles")
    before, reply = split_chat(messages)
    if key != "messages" and isinstance(record.get("system"), str) and record["system"]:
        before = [{"role": "system", "content": record["system"]}, *before]
    return before, reply


def _question(record: Record) -> tuple[str | None, str | None]:
    """Return the bare question and the prompt of a record, each None where it has none."""
    texts = {}
    for role, keys in (("prompt", PROMPT_KEYS), ("question", QUESTION_KEYS)):
        hit = named(record, keys)
        if hit is not None and not isinstance(hit[1], (list, tuple)):
            if hit[1] is None:
                continue
            texts[role] = text_of(*hit)
            more = record.get("input") if hit[0] == "instruction" else None
            if isinstance(more, str) and more:
                texts[role] += f"\n\n{more}"
    if any(text == "" for text in texts.values()):
        raise BadTrace("the question is empty")
    return texts.get("question"), texts.get("prompt")


def _known(record: Record, used: str) -> dict[str, Any]:
    """Return who wrote a response, to what, and what else is known of the problem."""
    sample = label_of(record, SAMPLE_KEYS)
    model = named(record, MODEL_KEYS)
    labels = {key: record[key] for key in _LABELS if isinstance(record.get(key), (str, int, float)) and key != used}
    return {
        "id": label_of(record, ID_KEYS),
        "model": model[1] if model is not None and isinstance(model[1], str) else "",
        "sample": sample if isinstance(sample, int) else None,
        "labels": {key: value for key, value in labels.items() if not isinstance(value, bool)},
    }


def _answer(record: Record, used: str) -> Label | None:
    """Return the gold answer, which may also be the gold solution where something else is the response."""
    answer = label_of(record, [key for key in ANSWER_KEYS if key != used])
    if answer is None and used != "solution" and isinstance(record.get("solution"), str):
        return str(record["solution"])
    return answer


def _nested(record: Record, *keys: str) -> Any:
    value: Any = record
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def _some(keys: Sequence[str]) -> str:
    return ", ".join(map(repr, keys[:8]))


_SIGNS: Mapping[str, Callable[[Record], bool]] = {
    "inspect": _is_inspect,
    "lm-eval": _is_lm_eval,
    "graded": _is_graded,
    "text": _any,
}
READERS: Mapping[str, Reader] = {
    "inspect": inspect_entries,
    "lm-eval": _lm_eval,
    "graded": _graded,
    "chat": _common,
    "text": _common,
}
FORMATS = ("auto", "chainwright", *READERS)
