"""What the recipes share: the learning rate, the folder that a training goes on in, and its progress bar."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from chainwright._errors import BadInput
from chainwright._files import is_draft, read_json, remove_leftovers, write_json


class Schedule(Protocol):
    """The settings that the learning rate of a step depends on."""

    @property
    def lr(self) -> float:
        """Highest learning rate."""

    @property
    def n_steps(self) -> int:
        """Optimizer steps."""

    @property
    def n_warmup(self) -> int:
        """Steps over which it rises."""

    @property
    def decay_share(self) -> float:
        """Share of the steps over which it falls to zero."""


def learning_rate(config: Schedule, step: int) -> float:
    """Return the learning rate of a step: linear warm-up, constant, linear decay to zero after the last step."""
    warm = min(1.0, (step + 1) / max(1, config.n_warmup))
    decay = min(1.0, max(0, config.n_steps - step) / max(1.0, config.decay_share * config.n_steps))
    return config.lr * min(warm, decay)


def begin(config: Any, folder: Path, state_folder: Path, resume: bool) -> int:
    """Return the step to begin with, after checking that the folder belongs to this recipe.

    Raises:
        BadInput: The folder holds something else, another recipe, or a training that was not asked to go on.
    """
    known = folder / "recipe.json"
    recipe = json.loads(json.dumps(asdict(config)))
    if not known.exists():
        if folder.exists() and not (folder.is_dir() and all(is_draft(path, known.name) for path in folder.iterdir())):
            raise BadInput(f"{folder} exists and holds no training; choose an empty or new folder.")
        write_json(known, recipe)
        return 0
    if not resume:
        raise BadInput(f"{folder} already holds a training; pass --resume to go on with it, or another folder.")
    if (old := read_json(known)) != recipe:
        changed = sorted(k for k in recipe if old.get(k) != recipe[k])
        raise BadInput(f"{folder} was begun with another recipe; these settings differ: {', '.join(changed)}.")
    remove_leftovers(folder)
    progress = state_folder / "progress.json"
    return int(read_json(progress)["step"]) if progress.exists() else 0


def progress_bar(progress: bool, *shown: str) -> Progress:
    """Return a bar over steps with further columns, such as "loss {task.fields[loss]:.3f}"."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total} steps"),
    )
    return Progress(*columns, *map(TextColumn, shown), TimeRemainingColumn(), disable=not progress)
