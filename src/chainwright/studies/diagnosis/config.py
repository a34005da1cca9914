"""The settings of a diagnosis: the only place where their defaults stand."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, get_args

from chainwright import tasks
from chainwright._errors import BadInput, unknown_name

INSTRUMENTS = ("accuracy", "errors", "heads", "steps")
USUAL = ("accuracy", "errors", "heads")


def _is_whole(least: int | None = None) -> Callable[[Any], bool]:
    return lambda value: type(value) is int and (least is None or value >= least)


def _is_list(is_item: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, (list, tuple)) and all(is_item(item) for item in value)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _or_none(is_right: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or is_right(value)


def _are_hops(value: Any) -> bool:
    return isinstance(value, Mapping) and all(
        isinstance(k, str) and _is_list(_is_whole(1))(v) for k, v in value.items()
    )


def _are_different(is_items: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: is_items(value) and len(value) == len(set(value)) > 0


# setting -> (what it must be, the same in words)
_RULES: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "model": (_is_text, "a name, a folder or a Hub id"),
    "hops": (_are_hops, "lists of whole numbers from 1, by task"),
    "n": (_is_whole(1), "a whole number from 1"),
    "seeds": (_are_different(_is_list(_is_whole())), "a list of different whole numbers"),
    "instruments": (_are_different(_is_list(_is_text)), f"a list of some of {', '.join(INSTRUMENTS)}"),
    "rendering": (_is_text, "a text"),
    "n_contexts": (_is_whole(1), "a whole number from 1"),
    "min_errors": (_is_whole(1), "a whole number from 1"),
    "max_types": (_is_whole(0), "a whole number from 0"),
    "n_maps": (_is_whole(1), "a whole number from 1"),
    "repair": (_or_none(_is_text), "a name, a folder or a Hub id, or left out"),
    "temperature": (lambda v: type(v) in (int, float) and 0 <= v < float("inf"), "0 (greedy) or a positive number"),
    "max_new_tokens": (_or_none(_is_whole(1)), "a whole number from 1, or left out"),
    "batch_size": (_or_none(_is_whole(1)), "a whole number from 1, or left out"),
    "dtype": (_or_none(_is_text), "a text such as 'float32', or left out"),
    "revision": (_or_none(_is_text), "a text, or left out"),
}


@dataclass(frozen=True)
class DiagnoseConfig:
    """Everything that a diagnosis depends on besides the model's weights.

    Attributes:
        model: Name, folder or Hub id, as it was asked for.
        hops: The hop counts of each task.
        n: Problems a (task, hops) cell and seed.
        seeds: Each draws a sample of its own.
        instruments: What is measured: "accuracy", "errors" (first errors and entropies), "heads" (needs errors),
            "steps" (step maps; not usual).
        rendering: "short" for models trained by Chainwright, "natural" for instruction models.
        n_contexts: Contexts a set when heads are located.
        min_errors: A key error type with fewer known first errors is not searched for heads.
        max_types: Key error types a task that are searched.
        n_maps: Right traces and wrong ones, each, that step maps are made of in a cell, for "steps".
        repair: Name, folder or Hub id of a repair that every problem is answered with again; None for no such.
        temperature: 0 is greedy.
        max_new_tokens: Longest response; None allows half as many again as the gold chain has, plus 16.
        batch_size: Rows decoded together; None chooses by length.
        dtype: Number type of the model; None takes that of the checkpoint.
        revision: Branch, tag or commit on the Hub.

    Raises:
        BadInput: No hops, an unknown task or instrument, or a value that is too small or of a wrong type.
    """

    model: str
    hops: Mapping[str, Sequence[int]]
    n: int = 40
    seeds: Sequence[int] = (0,)
    instruments: Sequence[str] = USUAL
    rendering: tasks.Rendering = "short"
    n_contexts: int = 16
    min_errors: int = 5
    max_types: int = 2
    n_maps: int = 8
    repair: str | None = None
    temperature: float = 0.0
    max_new_tokens: int | None = None
    batch_size: int | None = None
    dtype: str | None = None
    revision: str | None = None

    def __post_init__(self) -> None:
        """Refuse what could not be run, before anything is."""
        for name, (is_right, words) in _RULES.items():
            if not is_right(getattr(self, name)):
                raise BadInput(f"{name} must be {words}; got {getattr(self, name)!r}.")
        object.__setattr__(self, "seeds", tuple(self.seeds))
        object.__setattr__(self, "instruments", tuple(self.instruments))
        if unknown := [task for task in self.hops if task not in tasks.known()]:
            raise unknown_name("task", unknown[0], tasks.known())
        if not self.cells():
            raise BadInput("No hops were asked for; a diagnosis needs at least one hop count of one task.")
        if self.rendering not in get_args(tasks.Rendering):
            raise unknown_name("rendering", self.rendering, get_args(tasks.Rendering))
        if unknown := [name for name in self.instruments if name not in INSTRUMENTS]:
            raise unknown_name("instrument", unknown[0], INSTRUMENTS)
        if "heads" in self.instruments and "errors" not in self.instruments:
            raise BadInput("The instrument 'heads' looks at first errors; add 'errors' to the instruments.")

    def record(self) -> dict[str, Any]:
        """Return the config as plain JSON values."""
        plain: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return plain

    def cells(self) -> list[tuple[str, int]]:
        """Return every (task, hops), tasks in their usual order."""
        return [(task, int(h)) for task in tasks.known() if task in self.hops for h in sorted(set(self.hops[task]))]
