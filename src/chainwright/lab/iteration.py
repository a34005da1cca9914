"""The laboratory of iteration heads: a small transformer that learns iterative tasks while its circuit is watched.

1. Training draws fresh sequences every step (`iteration_data`), each batch a pure function of (seed, step).
2. The loss counts what follows the end of the input. AdamW, warm-up, constant rate, linear decay.
3. At every checkpoint the model is measured on held-out sequences of every length: exact sequences, attention of every
   head. Weights, measures and what a killed run needs to go on are written then.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from transformers import PreTrainedModel

from chainwright._errors import BadInput
from chainwright._files import atomic_folder, clear_disk_errors, current_folder, write_json
from chainwright._progress import Bar, progress_bar
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
from chainwright.lab.optim import load_optimizer, save_optimizer
from chainwright.lab.training import begin, learning_rate
from chainwright.models.capture import capture
from chainwright.models.load import check_device, provenance, quiet

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
        config=json.loads(json.dumps(asdict(config))),
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
            far; `training`, what a killed run needs to go on.
        device: Where to train.
        resume: Go on from `folder/training` if it is there.
        keep_checkpoints: Keep the weights of every checkpoint and not of the last alone.
        on_checkpoint: Called with the measures so far at every checkpoint.
        progress: Show a progress bar.

    Returns:
        The measures of every checkpoint.

    Raises:
        BadInput: `folder` holds a training of another config or something else, is there already and `resume` is off,
            what a killed run left is damaged, the disk is full, there is no such device, or the recipe does not fit
            its model.
    """
    place = check_device(device)
    sets, model = held_out_sets(config), new_iteration_model(config)
    step = begin(config, folder, folder / "training", resume)
    accelerator = _accelerator(place)
    optimizer = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad],
        lr=config.lr,
        betas=config.betas,
        weight_decay=config.weight_decay,
    )
    model, optimizer = accelerator.prepare(model, optimizer)
    trainer = _Trainer(config, accelerator, model, optimizer, folder, sets, keep_checkpoints, on_checkpoint)
    found = trainer.run(step, progress)
    _save_model(model, config, folder)
    return found


def _accelerator(place: torch.device) -> Accelerator:
    accelerator = Accelerator(cpu=place.type == "cpu")
    if accelerator.num_processes > 1:
        raise BadInput(
            f"The laboratory trains in one process; it was started in {accelerator.num_processes}. Start it without a "
            "launcher."
        )
    if accelerator.device.type != place.type:
        raise BadInput(
            f"Accelerate chose {accelerator.device.type} earlier in this process, so {place.type} cannot be used now; "
            "start a new process."
        )
    return accelerator


def _save_model(model: PreTrainedModel, config: IterationConfig, folder: Path) -> None:
    with clear_disk_errors(folder), quiet():
        model.save_pretrained(folder)
        iteration_tokenizer(config, config.n_positions or config.most_tokens).save_pretrained(folder)


@dataclass
class _Trainer:
    config: IterationConfig
    accelerator: Accelerator
    model: PreTrainedModel
    optimizer: torch.optim.Optimizer
    folder: Path
    sets: list[list[Sequences]]
    keep_checkpoints: bool
    on_checkpoint: OnCheckpoint | None
    found: Emergence | None = None

    def run(self, step: int, progress: bool) -> Emergence:
        """Train from `step` to the end, measuring on the way, and return the measures."""
        with progress_bar("training", self.config.n_steps, shown=progress, completed=step) as bar:
            if step or (self.folder / "training").exists():
                self._load(step)
            else:
                self._checkpoint(0, float("nan"))
            self._steps(step, bar)
        assert self.found is not None
        return self.found

    def _steps(self, step: int, bar: Bar) -> None:
        loader = self.accelerator.prepare(DataLoader(IterationData(self.config, step), batch_size=None, shuffle=False))
        losses: list[Tensor] = []
        for input_ids, labels in loader:
            losses.append(self._step(step, input_ids, labels))
            step += 1
            if step % self.config.measure_every and step < self.config.n_steps:
                continue
            mean = float(torch.stack(losses).mean())
            self._checkpoint(step, mean)
            losses = []
            assert self.found is not None
            bar.move_to(step, f"loss {mean:.3f}, exact {float(self.found.accuracy[-1].mean()):.3f}")

    def _step(self, step: int, input_ids: Tensor, labels: Tensor) -> Tensor:
        self.model.train()
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.config, step)
        mask = torch.ones_like(input_ids)  # padding stands on the right, where nothing that counts sees it
        logits: Tensor = self.model(input_ids=input_ids, attention_mask=mask, use_cache=False).logits
        counted = labels[:, 1:] != IGNORED
        loss = nn.functional.cross_entropy(logits[:, :-1][counted], labels[:, 1:][counted])
        self.accelerator.backward(loss)
        self.accelerator.clip_grad_norm_(self.model.parameters(), self.config.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.detach()

    def _checkpoint(self, step: int, loss: float) -> None:
        """Measure, and write measures, weights and the state to go on from, the state last."""
        self.model.eval()
        self.found = joined(self.found, measure(self.model, self.config, self.sets, step, loss))
        self.found.save(self.folder / "emergence", overwrite=True)
        if self.keep_checkpoints:
            _save_model(self.model, self.config, self.folder / "checkpoints" / f"step-{step:06d}")
        with atomic_folder(self.folder / "training") as draft:
            save_optimizer(draft / "state.safetensors", self.model, self.optimizer)
            write_json(draft / "progress.json", {"step": step})
        if self.on_checkpoint is not None:
            self.on_checkpoint(self.found)

    def _load(self, step: int) -> None:
        state = current_folder(self.folder / "training")
        if step:  # before the first step there are no moments, and the weights follow from the seed
            load_optimizer(state / "state.safetensors", self.model, self.optimizer)
        self.found = up_to(Emergence.load(self.folder / "emergence"), step)
