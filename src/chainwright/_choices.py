"""What the words on a command line choose: tasks and hops, the rendering, files to read and to write."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, TypeVar, get_args

from transformers import PreTrainedTokenizerBase

from chainwright import tasks
from chainwright._errors import BadInput, unknown_name
from chainwright.diagnose.logit_flow import SpanMode
from chainwright.models.load import bundled_models
from chainwright.tasks import Problem, Rendering
from chainwright.tasks.knowledge import Order
from chainwright.traces import JsonlTraces, Trace, read_jsonl, read_traces

Config = TypeVar("Config", bound=Any)

# Below, at and beyond the training range of the bundled reasoner: the last cells of a row are those that fail.
REASONER_HOPS: Mapping[str, tuple[int, ...]] = {
    "parity": (6, 10, 12, 13, 14),
    "mdm": (1, 2, 3, 4),
    "llc": (4, 7, 8, 9, 10),
    "clf": (6, 10, 12, 13, 14),
    "moas": (6, 10, 11, 12, 13),
    "nums": (5, 8, 9, 10, 11),
    "objc": (5, 8, 9, 10, 11),
}

_COMPASS_HOPS = (8, 16, 24, 32)

# The hop counts that the TCR paper reports for models of 7B and more (arXiv 2601.21214, section 2).
PAPER_HOPS: Mapping[str, tuple[int, ...]] = {
    "parity": (10, 20, 30, 40, 50),
    "mdm": (2, 3, 4, 5, 6),
    "llc": (2, 4, 6, 8, 10),
    "clf": (10, 20, 30),
    "moas": (10, 20, 30, 40, 50),
    "nums": (5, 10, 15, 20),
    "objc": (10, 20, 30, 40, 50),
}


def fit_cells(task: str, hops: str | None, rendering: Rendering) -> dict[str, tuple[int, ...]]:
    """Return the hop counts to fit a repair on: those at which a model is sometimes right and sometimes wrong.

    Args:
        task: As for `choose_cells`.
        hops: As for `choose_cells`; None takes the middle to upper ones of the usual.
        rendering: As for `choose_cells`.

    Raises:
        BadInput: An unknown task, or hops that are no whole numbers from 1.
    """
    cells = choose_cells(task, hops, rendering)
    if hops is not None:
        return cells
    # the short rendering's last cell of MDM is never right
    is_short = rendering == "short"
    return {name: counts[1:3] if is_short and name == "mdm" else counts[-3:] for name, counts in cells.items()}


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


def choose_cells(
    task: str, hops: str | None, rendering: Rendering, *, also: Sequence[str] = ()
) -> dict[str, tuple[int, ...]]:
    """Return the hop counts of each task that was asked for.

    Args:
        task: A task, several separated by commas, or "all".
        hops: "12", "4,8,12", "4-10" or a mix; None takes the usual ones for the rendering.
        rendering: Decides which hop counts are usual.
        also: Other names that the command knows, alone, for the message.

    Raises:
        BadInput: An unknown task, or hops that are no whole numbers from 1.
    """
    asked = tasks.names() if task.strip().lower() == "all" else [part for part in task.split(",") if part.strip()]
    if not asked:
        raise BadInput(f"No task was named; known: {', '.join(tasks.known())}, or 'all', which is the first seven.")
    usual = REASONER_HOPS if rendering == "short" else PAPER_HOPS
    if unknown := [name for name in asked if also and name.strip().lower() not in tasks.names()]:
        raise unknown_name("task", unknown[0].strip(), [*tasks.names(), *also])
    names = [tasks.canonical(name.strip()) for name in asked]
    return {name: usual.get(name, _COMPASS_HOPS) if hops is None else parse_hops(hops) for name in names}


def parse_hops(text: str) -> tuple[int, ...]:
    """Return the hop counts that a text such as "4,8-10" names, in rising order.

    Raises:
        BadInput: It names something else than whole numbers from 1, or a range that runs backwards.
    """
    counts: set[int] = set()
    for part in text.split(","):
        match = re.fullmatch(r"\s*(-?\d+)\s*(?:-\s*(\d+)\s*)?", part)
        first = int(match[1]) if match else 0
        last = int(match[2]) if match and match[2] else first
        if first < 1 or last < first:
            raise BadInput(f"Hops must be whole numbers from 1, such as '12', '4,8,12' or '4-10'; got {text!r}.")
        counts.update(range(first, last + 1))
    return tuple(sorted(counts))


def sample_cells(cells: Mapping[str, Sequence[int]], n: int, seed: int, rendering: Rendering) -> list[Problem]:
    """Return `n` problems of each cell, cell by cell.

    Raises:
        BadInput: `n` is below 1, or a task cannot have that many hops.
    """
    if n < 1:
        raise BadInput(f"-n must be at least 1 problem; got {n}.")
    return [
        problem
        for task, hops in cells.items()
        for h in hops
        for problem in tasks.sample(task, h, n, seed, rendering=rendering)
    ]


def rendering_for(asked: str, model: str) -> Rendering:
    """Return the rendering to use: as asked, or for "auto" the one that the model was made for.

    A bundled model, or a folder with the `recipe.json` that Chainwright's training writes, reads the short rendering.
    """
    if asked == "auto":
        is_ours = model in bundled_models() or (Path(model) / "recipe.json").is_file()
        return "short" if is_ours else "natural"
    if asked not in get_args(Rendering):
        raise BadInput(f"--rendering must be auto, {' or '.join(get_args(Rendering))}; got {asked!r}.")
    return asked  # type: ignore[return-value]


def check_free(path: Path | None, overwrite: bool) -> None:
    """Raise BadInput if a file to be written is there already, before any work is done."""
    if path is not None and path.exists() and not overwrite:
        raise BadInput(f"{path} exists; pass --overwrite to replace it, or choose another name.")


def read_file(path: Path, tokenizer: PreTrainedTokenizerBase, *, skip_bad: bool) -> JsonlTraces:
    """Return the traces of a Parquet or JSONL file, with the lines that were skipped.

    Raises:
        BadInput: No such file, or a file of neither kind.
        BadTrace: Broken lines without `skip_bad`, or a damaged file.
    """
    if not path.is_file():
        raise BadInput(f"There is no file {path}; give traces as .parquet or .jsonl.")
    if path.suffix == ".parquet":
        return JsonlTraces(read_traces(path), [])
    if path.suffix in (".jsonl", ".json", ".ndjson"):
        return read_jsonl(path, tokenizer, skip_bad=skip_bad)
    raise BadInput(f"{path} is neither .parquet nor .jsonl; those are the kinds of trace file that can be read.")


def are_judged(traces: Sequence[Trace]) -> bool:
    """Say whether every trace has its problem, so that chains and answers can be judged."""
    return bool(traces) and all(trace.problem is not None for trace in traces)


def changed(config: Config, settings: Sequence[str]) -> Config:
    """Return a config dataclass with some settings changed, each given as "name=value".

    Raises:
        BadInput: A text without "=", an unknown name, or a value of another type than the default's.
    """
    known = {field.name: getattr(config, field.name) for field in fields(config)}
    new: dict[str, Any] = {}
    for text in settings:
        name, equals, value = text.partition("=")
        if not equals:
            raise BadInput(f"A setting is given as name=value, such as n_tokens=4000000; got {text!r}.")
        if name not in known:
            raise unknown_name("setting", name, known)
        new[name] = _value(name, value, known[name])
    return replace(config, **new)


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
