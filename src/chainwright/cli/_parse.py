"""What the words on a command line mean: seeds, layers, settings, places to write."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar, get_args

from chainwright._errors import BadInput, unknown_name
from chainwright.diagnose.flow.attribution import SpanMode
from chainwright.tasks.knowledge import Order

Config = TypeVar("Config", bound=Any)


def parse_seeds(text: str) -> tuple[int, ...]:
    """Return the seeds that a text such as "11,12" names.

    Raises:
        BadInput: It names something else than different whole numbers.
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(re.fullmatch(r"-?\d+", part) for part in parts) or len(set(parts)) < len(parts):
        raise BadInput(f"Seeds must be different whole numbers with commas, such as '11,12,13'; got {text!r}.")
    return tuple(int(part) for part in parts)


def parse_layers(text: str, option: str) -> tuple[int, ...]:
    """Return the layers that a text such as "0,1" or "-2" names for an option.

    Raises:
        BadInput: It names something else than different whole numbers.
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(re.fullmatch(r"-?\d+", part) for part in parts) or len(set(parts)) < len(parts):
        raise BadInput(f"{option} takes different whole numbers with commas, such as '0' or '4,5'; got {text!r}.")
    return tuple(int(part) for part in parts)


def span_mode(text: str | None) -> SpanMode | None:
    """Return what to do with a target of several tokens.

    Raises:
        BadInput: Neither "first" nor "sum".
    """
    if text is not None and text not in get_args(SpanMode):
        raise BadInput(f"--span must be 'first' (follow the first token) or 'sum' (add up all of them); got {text!r}.")
    return text  # type: ignore[return-value]


def world_order(text: str) -> Order:
    """Return a wording of the questions of a made-up world.

    Raises:
        BadInput: An unknown one.
    """
    if text not in get_args(Order):
        raise unknown_name("order", text, get_args(Order))
    return text  # type: ignore[return-value]


def check_free(path: Path | None, overwrite: bool) -> None:
    """Raise BadInput if a file to be written is there already, before any work is done."""
    if path is not None and path.exists() and not overwrite:
        raise BadInput(f"{path} exists; pass --overwrite to replace it, or choose another name.")


def changed(config: Config, settings: Sequence[str]) -> Config:
    """Return a config dataclass with some settings changed, each given as "name=value".

    Raises:
        BadInput: A text without "=", an unknown name, or a value of another type than the default's.
    """
    names = getattr(type(config), "model_fields", None) or [field.name for field in fields(config)]
    known = {name: getattr(config, name) for name in names}
    new: dict[str, Any] = {}
    for text in settings:
        name, equals, value = text.partition("=")
        if not equals:
            raise BadInput(f"A setting is given as name=value, such as n_tokens=4000000; got {text!r}.")
        if name not in known:
            raise unknown_name("setting", name, known)
        new[name] = _value(name, value, known[name])
    changed_config: Config = type(config)(**known | new)
    return changed_config


def _value(name: str, text: str, default: Any) -> Any:
    kind = type(default)
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        value = text
    also = {float: int, tuple: list}.get(kind, kind)  # how JSON writes such a value
    if not isinstance(value, (kind, also)) or isinstance(value, bool) != isinstance(default, bool):
        raise BadInput(f"Setting {name} must be of type {kind.__name__}, such as {default!r}; got {text!r}.")
    return kind(value)
