"""What the recipes share: the learning rate, the training itself, the folder that it goes on in, its progress bar."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from chainwright._errors import BadInput
from chainwright._files import atomic_folder, clear_disk_errors, is_draft, read_json, remove_leftovers, write_json
from chainwright._progress import progress_bar
from chainwright.lab.optim import load_optimizer, save_optimizer
from chainwright.models.load import check_device

_SECONDS_BETWEEN_CHECKPOINTS = 60.0


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


class Recipe(Schedule, Protocol):
    """The settings of a training by AdamW."""

    @property
    def betas(self) -> tuple[float, float]:
        """Decay of both moments."""

    @property
    def weight_decay(self) -> float:
        """Decay of the weights."""

    @property
    def clip(self) -> float:
        """Longest gradient."""


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


def run_steps(
    take: Callable[[int], float],
    n_steps: int,
    first: int,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    state: Path,
    *,
    progress: bool,
) -> None:
    """Take the steps of a training from `first` on, with a checkpoint in `state` every minute and at the end.

    Args:
        take: Takes the step of a number and returns its loss.
        n_steps: Steps in all.
        first: Steps that a run before has taken.
        model: What is trained.
        optimizer: Over the model's parameters.
        state: Folder of the checkpoint, with the losses in `progress.json`.
        progress: Show a progress bar.
    """
    saved = time.monotonic()
    log = read_json(state / "progress.json")["log"] if first else []
    with progress_bar("training", n_steps, shown=progress, completed=first) as bar:
        for step in range(first, n_steps):
            loss = take(step)
            if (step + 1) % 50 == 0 or step + 1 == n_steps:
                log.append({"step": step + 1, "loss": round(loss, 5)})
                bar.move_to(step + 1, f"loss {loss:.3f}")
            if time.monotonic() - saved > _SECONDS_BETWEEN_CHECKPOINTS or step + 1 == n_steps:
                saved = time.monotonic()
                with atomic_folder(state) as draft:
                    save_optimizer(draft / "state.safetensors", model, optimizer)
                    write_json(draft / "progress.json", {"step": step + 1, "log": log})


def train_recipe(
    config: Recipe,
    folder: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    loss: Callable[[int], Tensor],
    *,
    device: str,
    resume: bool,
    progress: bool,
) -> Path:
    """Train a model and write the checkpoint, tokenizer and recipe to `folder`.

    Args:
        config: The recipe.
        folder: Where to write; `folder/training` holds what a killed run needs to go on.
        model: An untrained model.
        tokenizer: Its tokenizer.
        loss: Returns the loss of a step, a pure function of its number and the weights.
        device: Where to train.
        resume: Go on from `folder/training` if it is there.
        progress: Show a progress bar.

    Raises:
        BadInput: As `begin`; or there is no such device.
    """
    place = check_device(device)
    state = folder / "training"
    first = begin(config, folder, state, resume)
    model.to(place)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=config.lr, betas=config.betas, weight_decay=config.weight_decay
    )
    if first:
        load_optimizer(state / "state.safetensors", model, optimizer)

    def take(step: int) -> float:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(config, step)
        found = loss(step)
        found.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), config.clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(found.detach())

    run_steps(take, config.n_steps, first, model, optimizer, state, progress=progress)
    with clear_disk_errors(folder):
        model.to("cpu").eval().save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return folder
