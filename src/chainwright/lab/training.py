"""The training loop of all small models: steps of AdamW that can be killed at any moment and resumed to the same bytes.

1. `begin` checks that the folder is new or holds a training of the same recipe.
2. `Training` takes one optimizer step per loss. Losses come from an iterator that computes each on demand, a pure
   function of the step's number and the weights.
3. Checkpoints lie in `folder/training`: weights and AdamW's moments. They are replaced as a whole, so that a kill
   leaves the old one or the new one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from chainwright._errors import BadInput
from chainwright._files import atomic_folder, clear_disk_errors, is_draft, read_json, remove_leftovers, write_json
from chainwright._progress import progress_bar
from chainwright.lab.optim import load_optimizer, save_optimizer
from chainwright.lab.recipe import Recipe, learning_rate
from chainwright.models.load import check_device

M = TypeVar("M", bound=nn.Module)

_SECONDS_BETWEEN_CHECKPOINTS = 60.0


def begin(recipe: Mapping[str, Any], folder: Path, resume: bool) -> int:
    """Return the step to begin with, after checking that the folder belongs to this recipe.

    Args:
        recipe: The recipe as plain JSON values.
        folder: Where the training is or will be.
        resume: Accept a training that was begun.

    Raises:
        BadInput: The folder holds something else, another recipe, or a training without `resume`.
    """
    known = folder / "recipe.json"
    if not known.exists():
        if folder.exists() and not (folder.is_dir() and all(is_draft(path, known.name) for path in folder.iterdir())):
            raise BadInput(f"{folder} exists and holds no training; choose an empty or new folder.")
        write_json(known, recipe)
        return 0
    if not resume:
        raise BadInput(f"{folder} already holds a training; pass --resume to resume it, or choose another folder.")
    if (old := read_json(known)) != recipe:
        changed = sorted(k for k in recipe if old.get(k) != recipe[k])
        raise BadInput(f"{folder} was begun with another recipe; these settings differ: {', '.join(changed)}.")
    remove_leftovers(folder)
    progress = folder / "training" / "progress.json"
    return int(read_json(progress)["step"]) if progress.exists() else 0


class Training(Generic[M]):
    """A model in training, with its optimizer and its checkpoint.

    Args:
        config: The recipe, which has `n_steps`.
        model: What is trained: an untrained model, or an adapter.
        folder: Where the training is or will be.
        device: Where to train.
        resume: Continue from the checkpoint in `folder/training` if there is one.

    Attributes:
        step: Steps taken so far.
        was_begun: Whether a checkpoint was there.

    Raises:
        BadInput: As `begin`; the checkpoint is damaged; or there is no such device.
    """

    def __init__(self, config: Any, model: M, folder: Path, *, device: str, resume: bool):
        place = check_device(device)
        self.config, self.state = config, folder / "training"
        self.step = begin(config.record(), folder, resume)
        self.was_begun = (self.state / "progress.json").exists()
        self.model: M = model.to(place)
        trained = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=config.lr, betas=config.betas, weight_decay=config.weight_decay)
        if self.step:  # before the first step there are no moments, and the weights follow from the seed
            load_optimizer(self.state / "state.safetensors", self.model, self.optimizer)

    def run(self, losses: Iterator[Tensor], n_at_once: int = 1) -> Iterator[float]:
        """Take all steps that are left, and yield the mean loss after every `n_at_once` of them and after the last.

        Between two yields no checkpoint may be written: a resumed training begins with a whole group of steps.
        """
        while taken := [self._take(loss) for loss in islice(losses, n_at_once)]:
            yield float(torch.stack(taken).mean())

    def _take(self, loss: Tensor) -> Tensor:
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.config, self.step)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        return loss.detach()

    def save(self, **recorded: Any) -> None:
        """Replace the checkpoint; `recorded` is written beside the number of the step."""
        with atomic_folder(self.state) as draft:
            save_optimizer(draft / "state.safetensors", self.model, self.optimizer)
            write_json(draft / "progress.json", {"step": self.step, **recorded})


def train_recipe(
    config: Recipe,
    folder: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    losses: Callable[[int], Iterator[Tensor]],
    *,
    device: str,
    resume: bool,
    progress: bool,
    n_at_once: int = 1,
    log_every: int = 50,
    seconds_between_checkpoints: float | None = None,
) -> Path:
    """Train a model and write the checkpoint, tokenizer and recipe to `folder`.

    Args:
        config: The recipe.
        folder: Where to write; `folder/training` holds the checkpoint that a killed run resumes from, and the losses.
        model: The untrained model.
        tokenizer: Its tokenizer.
        losses: Takes the first step that is left, returns an iterator over the losses from there to the last step.
        device: Where to train.
        resume: Continue from the checkpoint if there is one.
        progress: Show a progress bar.
        n_at_once: Steps between which no checkpoint is written.
        log_every: Steps between two entries of the log.
        seconds_between_checkpoints: How much work a kill can cost; None is a minute.

    Raises:
        BadInput: As `Training`.
    """
    training = Training(config, model, folder, device=device, resume=resume)
    seconds = _SECONDS_BETWEEN_CHECKPOINTS if seconds_between_checkpoints is None else seconds_between_checkpoints
    _run_logged(training, losses(training.step), n_at_once, log_every, seconds, progress)
    with clear_disk_errors(folder):
        model.to("cpu").eval().save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return folder


def _run_logged(
    training: Training[PreTrainedModel],
    losses: Iterator[Tensor],
    n_at_once: int,
    log_every: int,
    seconds: float,
    progress: bool,
) -> None:
    """Train to the end, with the loss in the log and a checkpoint every so many seconds and at the end."""
    n_steps, saved = training.config.n_steps, time.monotonic()
    log = read_json(training.state / "progress.json")["log"] if training.step else []
    with progress_bar("training", n_steps, shown=progress, completed=training.step) as bar:
        for loss in training.run(losses, n_at_once):
            is_last = training.step == n_steps
            if training.step % log_every == 0 or is_last:
                rate = learning_rate(training.config, training.step)
                log.append({"step": training.step, "loss": round(loss, 5), "lr": rate})
                bar.move_to(training.step, f"loss {loss:.3f}")
            if is_last or time.monotonic() - saved > seconds:
                training.save(log=log)
                saved = time.monotonic()
