"""Single values of records: answers as text, questions, options, labels; a value that does not fit is a `BadField`."""

from __future__ import annotations

import ast
import json
import math
import re
import string
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from chainwright.tasks.base import Label

LETTERS = string.ascii_uppercase
_LONGEST_LABEL = 80
_ANSWER_KEYS = ("value", "text", "answer", "ground_truth", "content", "number", "final_answer")
_OPTION = re.compile(r"^\s*[(\[]?([A-Za-z])[)\].:]\s*")


class BadField(ValueError):
    """A field that does not fit; the message continues "record 3 of x.jsonl: "."""


def is_missing(value: Any) -> bool:
    """Return whether a value says nothing: null, NaN, an empty text or list."""
    if isinstance(value, float) and math.isnan(value):
        return True
    return value is None or (isinstance(value, str) and not value.strip()) or value == [] or value == {}


def field(fields: Mapping[str, Any], name: str) -> Any:
    """Return a field, also one inside another as "reward_model.ground_truth"; raises if it is not there or is empty."""
    value: Any = fields
    for part in [name] if name in fields else name.split("."):
        if not isinstance(value, Mapping) or part not in value:
            raise BadField(f"lacks the field {name!r} (it has {', '.join(map(str, fields)) or 'none'})")
        value = value[part]
    if is_missing(value):
        raise BadField(f"the field {name!r} is empty")
    return value


def has(fields: Mapping[str, Any], name: str) -> bool:
    """Return whether a field is there and not empty."""
    try:
        field(fields, name)
    except BadField:
        return False
    return True


def as_answer(value: Any, name: str) -> str:
    """Return an answer as text: 42.0 as "42", true as "yes", the value in a list of one or in a table."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        if not math.isfinite(value):
            raise BadField(f"the field {name!r} is {value}, which is no answer")
        return str(int(value)) if value.is_integer() and abs(value) < 1e15 else repr(value)
    if isinstance(value, Mapping):
        key = next((key for key in _ANSWER_KEYS if has(value, key)), None)
        if key is None:
            raise BadField(f"the field {name!r} is a table without an answer (it has {', '.join(map(str, value))})")
        return as_answer(value[key], f"{name}.{key}")
    if isinstance(value, (list, tuple)):
        if len(value) == 1:
            return as_answer(value[0], name)
        if value and all(isinstance(item, (int, float)) and not isinstance(item, bool) for item in value):
            return ", ".join(as_answer(item, name) for item in value)
        raise BadField(f"the field {name!r} is a list of {len(value)} answers; one is needed")
    if is_missing(value):
        raise BadField(f"the field {name!r} is empty")
    return str(value).strip()


def as_question(value: Any, name: str) -> str:
    """Return a question: a text, or the only message of a conversation."""
    if isinstance(value, str):
        return value.replace("\r\n", "\n").strip()
    if isinstance(value, (list, tuple)) and all(isinstance(item, Mapping) and "content" in item for item in value):
        users = [item for item in value if item.get("role") in ("user", "human", None)]
        if len(value) == len(users) == 1 and isinstance(users[0]["content"], str):
            return str(users[0]["content"]).replace("\r\n", "\n").strip()
        raise BadField(f"the field {name!r} is a conversation of {len(value)} messages; only one of the user is read")
    raise BadField(f"the field {name!r} is no text")


def as_choices(value: Any, name: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the options of a question, and the names that the record has for them ("A", "1", ...)."""
    if isinstance(value, str):
        value = _parsed(value, name)
    if isinstance(value, Mapping):
        texts, names = value.get("text"), value.get("label", value.get("labels"))
        if texts is None:
            texts, names = list(value.values()), list(value)
    else:
        texts, names = value, None
        if isinstance(value, (list, tuple)) and value and all(isinstance(item, Mapping) for item in value):
            texts = [item.get("text", item.get("content")) for item in value]
            names = [item.get("label", item.get("key", item.get("id"))) for item in value]
    if not isinstance(texts, (list, tuple)) or not 2 <= len(texts) <= len(LETTERS) or any(map(is_missing, texts)):
        raise BadField(f"the field {name!r} is no list of 2 to {len(LETTERS)} options")
    plain = [as_answer(text, name) for text in texts]
    if names is None or len(names) != len(plain) or any(map(is_missing, names)):
        names = LETTERS[: len(plain)]
    return _without_letters(plain), tuple(str(each).strip() for each in names)


def _parsed(text: str, name: str) -> Any:
    """Return the list that a cell of a table writes down."""
    for parse in (json.loads, ast.literal_eval):
        try:
            return parse(text)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            continue
    lines = [line for line in re.split(r"\n|(?=\s[(\[]?[B-Z][)\].:]\s)", text) if line.strip()]
    if len(lines) > 1 and [m[1].upper() for line in lines if (m := _OPTION.match(line))] == list(LETTERS[: len(lines)]):
        return lines
    raise BadField(f"the field {name!r} is no list of options")


def _without_letters(texts: Sequence[str]) -> tuple[str, ...]:
    """Return options without the letters that they begin with, if all do and in order."""
    matches = [_OPTION.match(text) for text in texts]
    in_order = [
        match is not None and match[1].upper() == letter for match, letter in zip(matches, LETTERS, strict=False)
    ]
    if not all(in_order):
        return tuple(text.strip() for text in texts)
    return tuple(_OPTION.sub("", text, count=1).strip() for text in texts)


def as_index(value: Any, choices: Sequence[str], names: Sequence[str], name: str) -> int:
    """Return which option an answer names: by letter or name, by position from 0, or by its text."""
    if isinstance(value, bool):
        raise BadField(f"the field {name!r} is true or false, and names no option")
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, int) and str(value) not in names:
        if 0 <= value < len(choices):
            return value
        raise BadField(f"the field {name!r} is {value}, and there are {len(choices)} options (the first is 0)")
    text = as_answer(value, name)
    bare = text.strip("()[]. :")
    for way in (list(names), [each.upper() for each in names], list(LETTERS[: len(choices)])):
        if bare in way or bare.upper() in way:
            return way.index(bare if bare in way else bare.upper())
    same = [i for i, choice in enumerate(choices) if choice.casefold() == text.casefold()]
    if len(same) == 1:
        return same[0]
    if len(same) > 1:
        raise BadField(f"the field {name!r} is the text of {len(same)} options, {text!r}")
    if bare.isdecimal() and int(bare) < len(choices):
        return int(bare)
    raise BadField(f"the field {name!r} is {text!r}, which is none of the {len(choices)} options")


def labels(fields: Mapping[str, Any], used: Iterable[str]) -> dict[str, Label]:
    """Return every short value of a record that is not used otherwise, by its name in lower case."""
    taken = set(used)
    out: dict[str, Label] = {}
    for name, value in fields.items():
        if name in taken or is_missing(value):
            continue
        if isinstance(value, list) and len(value) == 1:  # a list that could have had more, such as of equations
            (value,) = value
        if isinstance(value, bool):
            out[name.lower()] = "true" if value else "false"
        elif isinstance(value, (int, float)):
            if math.isfinite(value):
                out[name.lower()] = value
        elif isinstance(value, str) and len(value.strip()) <= _LONGEST_LABEL and "\n" not in value.strip():
            out[name.lower()] = value.strip()
    return out
