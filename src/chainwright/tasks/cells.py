"""Cells: a task at one hop count. Which of them are asked for, and their problems."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from chainwright._errors import BadInput, unknown_name
from chainwright.tasks import _catalogue as tasks
from chainwright.tasks._sampling import sample
from chainwright.tasks._script import Rendering
from chainwright.tasks.base import Problem


def fit_cells(task: str, hops: str | None, rendering: Rendering) -> dict[str, tuple[int, ...]]:
    """Return the hop counts to fit a repair on: those at which a model is sometimes right and sometimes wrong.

    Args:
        task: As for `choose_cells`.
        hops: As for `choose_cells`; None takes those that each task states for fitting.
        rendering: As for `choose_cells`.

    Raises:
        BadInput: An unknown task, or hops that are no whole numbers from 1.
    """
    cells = choose_cells(task, hops, rendering)
    return cells if hops is not None else {name: tasks.fit_hops(name, rendering) for name in cells}


def choose_cells(
    task: str, hops: str | None, rendering: Rendering, *, also: Sequence[str] = ()
) -> dict[str, tuple[int, ...]]:
    """Return the hop counts of each task that was asked for.

    Args:
        task: A task, several separated by commas, or "all".
        hops: "12", "4,8,12", "4-10" or a mix, the same for all tasks; or "parity=8;mdm=2,3", which names those of each;
            None takes the usual ones of each task for the rendering.
        rendering: Decides which hop counts are usual.
        also: Other names that the command takes, each on its own; named in the message.

    Raises:
        BadInput: An unknown task, one without usual hops where none were passed, hops that are no whole numbers from 1,
            or hops by task that leave one out or name another.
    """
    named = tasks.names() if task.strip().lower() == "all" else [part for part in task.split(",") if part.strip()]
    if not named:
        raise BadInput(f"No task was named; known: {', '.join(tasks.known())}, or 'all', which is the first seven.")
    if unknown := [name for name in named if also and name.strip().lower() not in tasks.known()]:
        raise unknown_name("task", unknown[0].strip(), [*tasks.known(), *also])
    names = [tasks.canonical(name.strip()) for name in named]
    if hops is not None and "=" in hops:
        return _by_task(names, hops)
    return {name: tasks.usual_hops(name, rendering) if hops is None else parse_hops(hops) for name in names}


def _by_task(names: Sequence[str], hops: str) -> dict[str, tuple[int, ...]]:
    """Return the hop counts of a text such as "parity=8;mdm=2,3", which has some for each of the tasks."""
    counts: dict[str, tuple[int, ...]] = {}
    for part in hops.split(";"):
        task, _, text = part.partition("=")
        name = tasks.canonical(task.strip())
        if name in counts:
            raise BadInput(f"The hops of {name} are named twice in {hops!r}; name each task once.")
        counts[name] = parse_hops(text)
    if missing := [name for name in names if name not in counts]:
        raise BadInput(f"{hops!r} names no hops for {missing[0]}; add some ('{missing[0]}=4'), or ask other tasks.")
    if others := [name for name in counts if name not in names]:
        raise BadInput(f"{hops!r} names hops for {others[0]}, which is not asked; asked: {', '.join(names)}.")
    return {name: counts[name] for name in names}


def parse_hops(text: str) -> tuple[int, ...]:
    """Return the hop counts that a text such as "4,8-10" names, in rising order.

    Raises:
        BadInput: The text has anything but whole numbers from 1, or a range that runs backwards.
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
        for problem in sample(task, h, n, seed, rendering=rendering)
    ]
