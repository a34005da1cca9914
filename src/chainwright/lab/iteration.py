"""The laboratory of iteration heads: a small transformer that learns iterative tasks while its circuit is watched.

1. Training draws fresh sequences every step (`iteration_data`), each batch a pure function of (seed, step).
2. The loss counts what follows the end of the input. AdamW, warm-up, constant rate, linear decay.
3. At every checkpoint the model is measured on held-out sequences of every length: exact sequences, attention of every
   head. Weights, measures and the state that a killed run resumes from are written then.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from transformers import PreTrainedModel

from chainwright._errors import BadInput
from chainwright._files import clear_disk_errors
from chainwright._progress import progress_bar
from chainwright.diagnose.iteration.emergence import Emergence, circuit_measures
from chainwright.lab.iteration_data import (
    IGNORED,
    TASKS,
    Sequences,
    held_out,
    iteration_tokenizer,
    training_batch,
)
from chainwright.lab.iteration_model import IterationConfig, new_iteration_model
from chainwright.lab.training import Training
from chainwright.models.capture import capture
from chainwright.models.hf_errors import quiet
from chainwright.models.load import provenance

OnCheckpoint = Callable[[Emergence], None]


class IterationData(Dataset[tuple[Tensor, Tensor]]):
    """Batches from a first step on, each a pure function of (seed, step)."""

    def __init__(self, config: IterationConfig, first: int = 0):
        self.config = config
        self.first = first

    def __len__(self) -> int:
        """Return the number of batches up to the end of training."""
        return self.config.n_steps - self.first

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Return the token ids and labels of a batch."""
        if index >= len(self):
            raise IndexError(index)
        config, lengths = self.config, (self.config.min_length, self.config.max_length)
        drawn = training_batch(config, config.tasks, lengths, config.batch_size, f"{config.seed}/{self.first + index}")
        return drawn.input_ids, drawn.labels


def held_out_sets(config: IterationConfig) -> list[list[Sequences]]:
    """Return the held-out sequences of every task and of every length that has some."""
    lengths = range(config.min_length, config.max_length + 1)
    tasks = [name for name in TASKS if name in config.tasks]
    drawn = [[held_out(config, name, n, config.n_held_out) for n in lengths] for name in tasks]
    filled = [i for i in range(len(lengths)) if all(len(row[i].input_ids) for row in drawn)]
    if not filled:
        raise BadInput(
            f"No length from {config.min_length} to {config.max_length} has a held-out sequence of every task with "
            f"held_out_share={config.held_out_share}; raise one of them."
        )
    return [[row[i] for i in filled] for row in drawn]


def measure(
    model: PreTrainedModel, config: IterationConfig, sets: list[list[Sequences]], step: int, loss: float
) -> Emergence:
    """Return the accuracy and circuit of a model on held-out sequences, as the finding of one checkpoint."""
    seen = [[_measured(model, config, one) for one in row] for row in sets]
    return Emergence(
        steps=torch.tensor([step]),
        loss=torch.tensor([loss]),
        tasks=[TASKS[int(row[0].tasks[0])] for row in sets],
        lengths=[int(one.lengths[0]) for one in sets[0]],
        accuracy=torch.tensor([[exact for exact, *_ in row] for row in seen])[None],
        token_accuracy=torch.tensor([[right for _, right, *_ in row] for row in seen])[None],
        measures=torch.stack([torch.stack([found for _, _, found, _ in row]) for row in seen])[None],
        maps=torch.stack([row[-1][3] for row in seen])[None],
        n_sequences=torch.tensor([[len(one.input_ids) for one in row] for row in sets]),
        config=config.record(),
        provenance={**provenance(model), "model": "iteration"},
    )


def _measured(
    model: PreTrainedModel, config: IterationConfig, sequences: Sequences
) -> tuple[float, float, Tensor, Tensor]:
    """Return exact share, share of right states, measures `[2, 3, L, H]` and mean attention `[L, H, T, T]`."""
    read = capture(model, sequences.input_ids.to(model.device), attention=True)
    assert read.attention is not None
    predicted, wanted = read.logits[:, :-1].argmax(-1).cpu(), sequences.labels[:, 1:]
    counted = wanted != IGNORED
    right = (predicted == wanted) | ~counted
    is_state = counted & (wanted != 1)
    exact, states = float(right.all(-1).double().mean()), float(right[is_state].double().mean())
    attention = read.attention.cpu()
    if config.chain_of_thought:
        found = circuit_measures(attention, int(sequences.lengths[0])).stacked()
    else:
        found = torch.full((2, 3, len(attention), attention.shape[2]), float("nan"))
    return exact, states, found, attention.mean(1)


def joined(before: Emergence | None, new: Emergence) -> Emergence:
    """Return the finding with the checkpoints of both."""
    if before is None:
        return new
    over = ("steps", "loss", "accuracy", "token_accuracy", "measures", "maps")
    together = {name: torch.cat([getattr(before, name), getattr(new, name)]) for name in over}
    return Emergence(**{**vars(new), **together})


def up_to(found: Emergence, step: int) -> Emergence:
    """Return the checkpoints of a finding up to a step."""
    keep = found.steps <= step
    over = ("steps", "loss", "accuracy", "token_accuracy", "measures", "maps")
    return Emergence(**{**vars(found), **{name: getattr(found, name)[keep] for name in over}})


def train_iteration(
    config: IterationConfig,
    folder: Path,
    *,
    device: str = "cpu",
    resume: bool = False,
    keep_checkpoints: bool = True,
    on_checkpoint: OnCheckpoint | None = None,
    progress: bool = True,
) -> Emergence:
    """Train a small model on iterative tasks, and write it, its checkpoints and its measures to `folder`.

    Args:
        config: The recipe.
        folder: Where to write: the model; `checkpoints/step-...`, each a model of its own; `emergence`, the measures so
            far; `training`, the state that a killed run resumes from.
        device: Where to train.
        resume: Resume from `folder/training` if it is there.
        keep_checkpoints: Keep the weights of every checkpoint, not only of the last.
        on_checkpoint: Called with the measures so far at every checkpoint.
        progress: Show a progress bar.

    Returns:
        The measures of every checkpoint.

    Raises:
        BadInput: `folder` holds a training of another config or something else, is there already and `resume` is off,
            its checkpoint is damaged, the disk is full, there is no such device, or the recipe does not fit
            its model.
    """
    sets, model = held_out_sets(config), new_iteration_model(config)
    training = Training(config, model, folder, device=device, resume=resume)
    found = _Watched(config, training, folder, sets, keep_checkpoints, on_checkpoint).run(progress)
    _save_model(training.model, config, folder)
    return found


def _save_model(model: PreTrainedModel, config: IterationConfig, folder: Path) -> None:
    with clear_disk_errors(folder), quiet():
        model.save_pretrained(folder)
        iteration_tokenizer(config, config.n_positions or config.most_tokens).save_pretrained(folder)


@dataclass
class _Watched:
    """A training that is measured at every checkpoint."""

    config: IterationConfig
    training: Training[PreTrainedModel]
    folder: Path
    sets: list[list[Sequences]]
    keep_checkpoints: bool
    on_checkpoint: OnCheckpoint | None
    found: Emergence | None = None

    def run(self, progress: bool) -> Emergence:
        """Train to the end, measuring on the way, and return the measures."""
        training = self.training
        with progress_bar("training", self.config.n_steps, shown=progress, completed=training.step) as bar:
            if training.was_begun:
                # a run killed between its measures and its state has measured one checkpoint too many
                self.found = up_to(Emergence.load(self.folder / "emergence"), training.step)
            else:
                self._checkpoint(float("nan"))
            for loss in training.run(self._losses(training.step), self.config.measure_every):
                found = self._checkpoint(loss)
                bar.move_to(training.step, f"loss {loss:.3f}, exact {float(found.accuracy[-1].mean()):.3f}")
        assert self.found is not None
        return self.found

    def _losses(self, first: int) -> Iterator[Tensor]:
        model = self.training.model
        for input_ids, labels in DataLoader(IterationData(self.config, first), batch_size=None, shuffle=False):
            model.train()
            yield _loss(model, input_ids.to(model.device), labels.to(model.device))

    def _checkpoint(self, loss: float) -> Emergence:
        """Measure; write the measures, the weights and, last, the state that a killed run resumes from."""
        training = self.training
        training.model.eval()
        self.found = joined(self.found, measure(training.model, self.config, self.sets, training.step, loss))
        self.found.save(self.folder / "emergence", overwrite=True)
        if self.keep_checkpoints:
            _save_model(training.model, self.config, self.folder / "checkpoints" / f"step-{training.step:06d}")
        training.save()
        if self.on_checkpoint is not None:
            self.on_checkpoint(self.found)
        return self.found


def _loss(model: PreTrainedModel, input_ids: Tensor, labels: Tensor) -> Tensor:
    mask = torch.ones_like(input_ids)  # padding is on the right, where nothing that counts sees it
    logits: Tensor = model(input_ids=input_ids, attention_mask=mask, use_cache=False).logits
    counted = labels[:, 1:] != IGNORED
    return nn.functional.cross_entropy(logits[:, :-1][counted], labels[:, 1:][counted])
