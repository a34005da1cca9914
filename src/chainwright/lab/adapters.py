"""Training an adapter on a pretrained model: what the recipes of all adapters share.

1. The base is loaded in bfloat16, or in float32 where bfloat16 would be emulated, and frozen; `Adapter` trains LoRA on
   its linear layers.
2. A recipe draws the batch of a step as a pure function of (seed, step), so that a killed training resumes with the
   batches that it would have had.
3. The learning rate rises, is constant and falls over the last share of the steps. A training can start from an
   adapter's weights with a fresh optimizer (`start`), such as to continue what was shipped, or for a last decline.
4. With every checkpoint `folder/adapter` becomes an adapter that `load_model(base, adapter=...)` reads, with its
   recipe: settings and tokens of this training and of those it started from, and its learning curve: how many of the
   fresh problems of each tenth of the steps were right as a whole before they were trained on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

import torch
import transformers
from pydantic import Field
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from chainwright._errors import BadInput
from chainwright._files import atomic_folder, read_json, write_json
from chainwright._progress import progress_bar
from chainwright._version import __version__
from chainwright.lab.chains import Row, chain_loss
from chainwright.lab.lora import Adapter
from chainwright.lab.recipe import Betas, Count, Optimization, Positive, Rate, Steps, Warmup, WeightDecay
from chainwright.lab.training import Training
from chainwright.models.fetch import fetchable_models, package_of
from chainwright.models.half_precision import multiplies_bfloat16
from chainwright.models.load import load_model

_N_PARTS = 10  # of a training, for each of which the recipe says what was right


class AdapterRecipe(Optimization):
    """The base, the size of LoRA, and how AdamW trains it."""

    base: str = Field(default="smollm2", description="Model that the adapter belongs on.")
    start: str = Field(default="", description="Folder of an adapter to start from; empty for a fresh one.")
    rank: Count = Field(default=16, description="Rank of LoRA.")
    alpha: Positive = Field(default=32.0, description="Scale of LoRA, times the rank.")
    n_steps: Steps = 2000
    lr: Rate = 1e-3
    betas: Betas = (0.9, 0.99)
    weight_decay: WeightDecay = 0.0
    n_warmup: Warmup = 20

    @property
    def shots(self) -> int:
        """Return how many demonstrations come before most of the questions that are trained on."""
        return 0

    def settings(self) -> dict[str, Any]:
        """Return what an adapter's recipe says of a training: no folder of the machine that it ran on."""
        return {name: value for name, value in self.record().items() if name not in ("base", "start")}


class Step(NamedTuple):
    """What one step trains on: rows of one kind, such as a task and a hop count."""

    kind: str
    rows: list[Row]


class Entry(NamedTuple):
    """What the log keeps of a step: its kind, loss, rows, rows that were right as a whole, and tokens of chains."""

    kind: str
    loss: float
    n_rows: int
    n_right: int
    n_tokens: int


Draw = Callable[[PreTrainedTokenizerBase, int], Step]


class TrainOptions(TypedDict, total=False):
    """How a training runs: the keyword arguments of `train_adapter`, with its defaults."""

    device: str
    resume: bool
    progress: bool
    seconds_between_checkpoints: float


def train_adapter(
    config: AdapterRecipe,
    folder: Path,
    draw: Draw,
    *,
    device: str = "cpu",
    resume: bool = False,
    progress: bool = True,
    seconds_between_checkpoints: float = 240.0,
) -> Path:
    """Train an adapter, write it to `folder/adapter`, and return that folder.

    Args:
        config: The recipe.
        folder: Where to write; `folder/training` holds the checkpoint that a killed run resumes from.
        draw: Takes the tokenizer and a step, returns its batch.
        device: Where to train.
        resume: Continue from the checkpoint if there is one.
        progress: Show a progress bar.
        seconds_between_checkpoints: How much work a kill can cost.

    Raises:
        BadInput: As `load_model`, `Training` and `Adapter.load`.
    """
    dtype = torch.bfloat16 if multiplies_bfloat16(device) else torch.float32
    model, tokenizer = load_model(config.base, device=device, dtype=dtype)
    adapter, stages = new_adapter(config, model)
    training = Training(config, adapter, folder, device=device, resume=resume)
    log = [Entry(*entry) for entry in read_json(training.state / "progress.json")["log"]] if training.step else []
    saved = time.monotonic()
    with progress_bar("training", config.n_steps, shown=progress, completed=training.step) as bar:
        for loss in training.run(_losses(model, tokenizer, draw, range(training.step, config.n_steps), log)):
            bar.move_to(training.step, f"loss {loss:.3f}")
            if training.step == config.n_steps or time.monotonic() - saved > seconds_between_checkpoints:
                training.save(log=log)
                with atomic_folder(folder / "adapter") as draft:
                    adapter.save(draft, config.base)
                    write_json(draft / "recipe.json", _recipe(config, [*stages, _stage(config, log, dtype)], log))
                saved = time.monotonic()
    return folder / "adapter"


def new_adapter(config: AdapterRecipe, model: PreTrainedModel) -> tuple[Adapter, list[dict[str, Any]]]:
    """Return the adapter that a training begins with, and the trainings that it comes from.

    Raises:
        BadInput: The adapter to start from cannot be read, has no recipe, or belongs on another base.
    """
    adapter = Adapter(model, rank=config.rank, alpha=config.alpha, seed=config.seed)
    if not config.start:
        return adapter, []
    start = Path(config.start)
    if not (start / "recipe.json").is_file():
        raise BadInput(f"start={start} is no folder of an adapter with a recipe.json; give one that a training wrote.")
    recipe = read_json(start / "recipe.json")
    if recipe["base"] != config.base:
        raise BadInput(f"The adapter in {start} belongs on {recipe['base']}, not on {config.base}; set base to it.")
    adapter.load(start)
    return adapter, list(recipe["trainings"])


def _losses(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, draw: Draw, steps: range, log: list[Entry]
) -> Iterator[Tensor]:
    for number in steps:
        step = draw(tokenizer, number)
        loss, is_right, n_tokens = chain_loss(model, step.rows)
        log.append(Entry(step.kind, round(float(loss.detach()), 4), len(is_right), sum(is_right), n_tokens))
        yield loss


def right_by_kind(log: list[Entry]) -> dict[str, tuple[int, int]]:
    """Return the rows that were right, of how many, for each kind: fresh problems, before they were trained on."""
    counts = {kind: (0, 0) for kind in sorted({entry.kind for entry in log})}
    for entry in log:
        n_right, n_rows = counts[entry.kind]
        counts[entry.kind] = n_right + entry.n_right, n_rows + entry.n_rows
    return counts


def _stage(config: AdapterRecipe, log: list[Entry], dtype: torch.dtype) -> dict[str, Any]:
    """Return one training's settings, how far it came, and what it ran on."""
    versions = {"chainwright": __version__, "torch": torch.__version__, "transformers": transformers.__version__}
    return {
        "settings": config.settings(),
        "steps": len(log),
        "problems": sum(entry.n_rows for entry in log),
        "chain_tokens": sum(entry.n_tokens for entry in log),
        "dtype": str(dtype).removeprefix("torch."),
        "environment": versions,
    }


def _recipe(config: AdapterRecipe, trainings: list[dict[str, Any]], log: list[Entry]) -> dict[str, Any]:
    sha256 = package_of(config.base).sha256 if config.base in fetchable_models() else ""
    made = {"base": config.base, "base_sha256": sha256, "shots": config.shots}
    return made | {"trainings": trainings, "curve": curve_of(log)}


def curve_of(log: list[Entry]) -> list[dict[str, Any]]:
    """Return the steps of each tenth of a training, from 1, with the rows that were right and all rows by kind."""
    size = max(1, -(-len(log) // _N_PARTS))
    return [
        {"steps": [start + 1, start + len(part)], "right": right_by_kind(part)}
        for start in range(0, len(log), size)
        if (part := log[start : start + size])
    ]
