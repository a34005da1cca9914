"""What any record of any file says, before it is made into tokens: a question, a response, and what is known of them.

A record is a JSON object. Its fields have many names; those that mean the same are listed here once, the plainest
first. `named` looks a value up, and `Fields` lets a user say which field holds what.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from chainwright._errors import BadInput, BadTrace, unknown_name

Record = Mapping[str, Any]
Label = str | int | float

PROMPT_KEYS = ("prompt",)  # read by the model exactly so
QUESTION_KEYS = ("question", "problem", "query", "instruction", "input", "inputs")
RESPONSE_KEYS = (
    "model_output", "model_response", "prediction", "generated_text", "generation", "generations", "response",
    "responses", "completion", "completions", "choices", "outputs", "output", "output_text", "solution",
)  # fmt: skip
REASONING_KEYS = ("reasoning_content", "reasoning", "thinking")
ANSWER_KEYS = ("answer", "target", "ground_truth", "gold_answer", "gold", "reference_answer", "expected_answer")
JUDGEMENT_KEYS = ("is_correct", "correct", "is_right", "passed", "exact_match")
ID_KEYS = ("id", "problem_id", "question_id", "unique_id", "custom_id", "doc_id")
MODEL_KEYS = ("model", "model_name", "generator")
SAMPLE_KEYS = ("sample", "sample_id", "sample_index", "epoch")
ROLES: Mapping[str, Sequence[str]] = {
    "prompt": PROMPT_KEYS,
    "question": QUESTION_KEYS,
    "response": RESPONSE_KEYS,
    "reasoning": REASONING_KEYS,
    "answer": ANSWER_KEYS,
    "is_correct": JUDGEMENT_KEYS,
    "id": ID_KEYS,
    "model": MODEL_KEYS,
    "sample": SAMPLE_KEYS,
}
_HALF = re.compile("[\ud800-\udfff]")
_WORDS = {"true": True, "false": False, "1": True, "0": False}


@dataclass(frozen=True)
class Entry:
    """One question with one response.

    Attributes:
        response: The response as text, without the reasoning that came in a field of its own.
        question: The bare question, if there is one.
        prompt: The text that the model read, if the record has it.
        turns: The messages before the response, if it is a chat.
        reasoning: Reasoning that came in a field of its own.
        prompt_ids, response_ids: Token ids, where the record has them.
        stopped: Whether the response came to its end.
        label: What the record says about whether the answer is right.
        answer: The gold answer.
        id: What the record calls its problem.
        model: Who wrote the response.
        sample: The number of the response among those to the same question; None if it is not said.
        labels: What else is known of the problem, such as its level.
        unread: Fields that were not read.
    """

    response: str
    question: str | None = None
    prompt: str | None = None
    turns: Sequence[Mapping[str, Any]] = ()
    reasoning: str = ""
    prompt_ids: Sequence[int] | None = None
    response_ids: Sequence[int] | None = None
    stopped: bool = True
    label: bool | None = None
    answer: Label | None = None
    id: Label | None = None
    model: str = ""
    sample: int | None = None
    labels: Mapping[str, Label] = field(default_factory=dict)
    unread: Sequence[str] = ()


def named(record: Record, keys: Sequence[str]) -> tuple[str, Any] | None:
    """Return the first of some fields that a record has, with its value; null counts only if there is no other."""
    there = [key for key in keys if key in record]
    key = next((key for key in there if record[key] is not None), there[0] if there else None)
    return None if key is None else (key, record[key])


def text_of(key: str, value: Any) -> str:
    """Return the text that a field holds.

    Raises:
        BadTrace: It holds no text, or half of a character.
    """
    if not isinstance(value, str):
        raise BadTrace(f"{key!r} is {type(value).__name__}, not text")
    if _HALF.search(value):
        raise BadTrace(f"{key!r} holds half of a surrogate pair, which is no character")
    return value


def judgement(record: Record, keys: Sequence[str] = JUDGEMENT_KEYS) -> bool | None:
    """Return what a record says about whether its answer is right.

    Raises:
        BadTrace: It is neither true nor false, or two fields contradict each other.
    """
    values = {key: record[key] for key in keys if record.get(key) is not None}
    judgements = set()
    for key, value in values.items():
        plain = _WORDS.get(value.strip().lower(), value) if isinstance(value, str) else value
        is_share = key == "exact_match" and isinstance(value, float) and value in (0.0, 1.0)
        if not (is_share or isinstance(plain, (bool, int))) or plain not in (0, 1):
            raise BadTrace(f"{key!r} is {value!r}, not true or false (or 1 or 0)")
        judgements.add(bool(plain))
    if len(judgements) > 1:
        raise BadTrace(f"{listed(record, keys)} contradict each other")
    return next(iter(judgements), None)


def reasoning_of(record: Record) -> str:
    """Return the reasoning that a record or message has in a field of its own; "" if there is none.

    Raises:
        BadTrace: It is no text, or several fields hold different texts.
    """
    texts = {text_of(key, record[key]) for key in REASONING_KEYS if record.get(key) is not None}
    texts.discard("")
    if len(texts) > 1:
        raise BadTrace(f"{listed(record, REASONING_KEYS)} hold different texts, so it is unclear what was thought")
    return next(iter(texts), "")


def label_of(record: Record, keys: Sequence[str]) -> Label | None:
    """Return the text or number under the first of some fields, None if there is none.

    Raises:
        BadTrace: It is neither.
    """
    hit = named(record, keys)
    if hit is None or hit[1] is None:
        return None
    if isinstance(hit[1], bool) or not isinstance(hit[1], (str, int, float)):
        raise BadTrace(f"{hit[0]!r} is neither text nor a number")
    return hit[1]


def ids_of(value: Any) -> list[int] | None:
    """Return token ids if a value is a list of them."""
    is_row = isinstance(value, (list, tuple)) and all(type(item) is int and item >= 0 for item in value)
    return list(value) if is_row and value else None


def listed(record: Record, keys: Sequence[str]) -> str:
    """Return the names of those fields that a record has, such as "'correct' and 'is_correct'"."""
    return " and ".join(repr(key) for key in keys if record.get(key) is not None)


def check_fields(fields: Mapping[str, str]) -> None:
    """Raise BadInput unless every key of `fields` is something that a field can hold."""
    if unknown := [role for role in fields if role not in ROLES]:
        raise unknown_name("part of a trace", unknown[0], ROLES)
    if empty := [role for role, name in fields.items() if not name]:
        raise BadInput(f"The field of {empty[0]!r} has no name; write {empty[0]}=NAME.")


def with_fields(record: Record, fields: Mapping[str, str]) -> Record:
    """Return a record in which the user's choice of fields goes by the plain names; "a.b" is field b of field a.

    Raises:
        BadTrace: The record lacks one of these fields.
    """
    if not fields:
        return record
    chosen = {role: _followed(record, name, role) for role, name in fields.items()}
    others = {key for role in fields for key in ROLES[role]} | {name.partition(".")[0] for name in fields.values()}
    if "response" in fields:
        others |= {"messages", "conversations"}
    return {key: value for key, value in record.items() if key not in others} | chosen


def _followed(record: Record, name: str, role: str) -> Any:
    value: Any = record
    if name in record:
        return record[name]
    for part in name.split("."):
        if isinstance(value, (list, tuple)) and part.isdecimal() and int(part) < len(value):
            value = value[int(part)]
        elif isinstance(value, Mapping) and part in value:
            value = value[part]
        else:
            raise BadTrace(f"there is no field {name!r}, which was to be the {role}")
    return value
