"""Parsing what is written on a command line: lists of numbers, settings, files to write."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, get_args

from chainwright._config import Config
from chainwright._errors import BadInput, unknown_name

if TYPE_CHECKING:
    from chainwright.diagnose.flow.attribution import SpanMode
    from chainwright.tasks.knowledge import Order

C = TypeVar("C", bound=Config)


def parse_numbers(text: str, option: str) -> tuple[int, ...]:
    """Return the whole numbers that a text such as "11,12" or "-2" lists for an option.

    Raises:
        BadInput: It lists something other than different whole numbers.
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(re.fullmatch(r"-?\d+", part) for part in parts) or len(set(parts)) < len(parts):
        raise BadInput(
            f"{option} takes different whole numbers separated by commas, such as '0' or '11,12,13'; got {text!r}."
        )
    return tuple(int(part) for part in parts)


def span_mode(text: str | None) -> SpanMode | None:
    """Return how a target of several tokens is followed.

    Raises:
        BadInput: Neither "first" nor "sum".
    """
    from chainwright.diagnose.flow.attribution import SpanMode

    if text is not None and text not in get_args(SpanMode):
        raise BadInput(f"--span must be 'first' (follow the first token) or 'sum' (add up all of them); got {text!r}.")
    return text  # type: ignore[return-value]


def world_order(text: str) -> Order:
    """Return the wording of a made-up world's questions.

    Raises:
        BadInput: An unknown wording.
    """
    from chainwright.tasks.knowledge import Order

    if text not in get_args(Order):
        raise unknown_name("order", text, get_args(Order))
    return text  # type: ignore[return-value]


def check_free(path: Path | None, overwrite: bool) -> None:
    """Raise BadInput, before any work is done, if a file to be written exists already."""
    if path is not None and path.exists() and not overwrite:
        raise BadInput(f"{path} exists; pass --overwrite to replace it, or choose another name.")


def check_trace_file(path: Path | None, overwrite: bool) -> None:
    """Raise BadInput, before any work is done, if traces cannot be written to a file of that name."""
    if path is not None and path.suffix != ".parquet":
        raise BadInput(f"--out writes traces as Parquet, so its name must end with .parquet; got {path}.")
    check_free(path, overwrite)


def changed(config: C, settings: Sequence[str]) -> C:
    """Return a config with some settings changed, each as "name=value"; values are read as JSON, otherwise as text.

    Raises:
        BadInput: A text without "=", an unknown name, or a value that the config refuses.
    """
    new: dict[str, Any] = {}
    for text in settings:
        name, equals, value = text.partition("=")
        if not equals:
            raise BadInput(f"--set takes name=value, such as n_steps=100; got {text!r}.")
        if name not in type(config).model_fields:
            raise unknown_name("setting", name, type(config).model_fields)
        new[name] = _value(value)
    return config.replace(**new)


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text
