"""Train the small models that come with Chainwright."""

from __future__ import annotations

import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer

from chainwright._registry import register
from chainwright.cli import _parse
from chainwright.cli._options import Changes, CheckpointFolder, Quiet, Resume, TrainingDevice, TrainingSeed
from chainwright.cli._shared import say


def _training(name: str, config: str, train: str, help_text: str, *, hint: str | None = None) -> Callable[..., None]:
    """Return a command that trains one of the small models.

    Args:
        name: What the model is called in messages; its last word names the default folder.
        config: Its recipe, as "module:class"; imported when the command runs.
        train: The function that trains it, as "module:function".
        help_text: The command's help.
        hint: Printed in the end, with `{folder}`.
    """

    def command(
        out_folder: CheckpointFolder = Path("runs") / name,
        changes: Changes = None,
        seed: TrainingSeed = 0,
        device: TrainingDevice = "cpu",
        resume: Resume = False,
        quiet: Quiet = False,
    ) -> None:
        recipe = _parse.changed(_load(config)(seed=seed), changes or [])
        _train(name, train, recipe, out_folder, hint, device=device, resume=resume, progress=not quiet)

    command.__doc__ = help_text
    return command


def _train(name: str, train: str, recipe: Any, folder: Path, hint: str | None = None, **settings: Any) -> None:
    start = time.monotonic()
    _load(train)(recipe, folder, **settings)
    say(f"Wrote the {name} model to {folder} after {time.monotonic() - start:.0f} seconds")
    if hint is not None:
        say(f"Measure its accuracy: {hint.format(folder=folder)}")


def _load(place: str) -> Any:
    module, _, name = place.partition(":")
    return getattr(import_module(module), name)


WORLD = register("command", "train.world")(
    _training(
        "world",
        "chainwright.lab:KnowledgeConfig",
        "chainwright.lab:train_knowledge",
        "Train a small model that knows single facts of a made-up world but fails two-hop questions.",
    )
)
COMPASS = register("command", "train.compass")(
    _training(
        "compass",
        "chainwright.lab:CompassConfig",
        "chainwright.lab:train_compass",
        "Train the compass model, which loses sight of its question in long chains: four minutes on one free core.",
        hint="chainwright evaluate --model {folder} --task compass --hops 10,20,30",
    )
)
HOPS = register("command", "train.smollm2-hops")(
    _training(
        "smollm2-hops",
        "chainwright.lab:HopsConfig",
        "chainwright.lab:train_hops",
        "Train an adapter on SmolLM2-135M that writes chains of the seven tasks in English: 20 minutes of a core.",
        hint="chainwright evaluate --model smollm2 --adapter {folder}/adapter",
    )
)
MATH = register("command", "train.smollm2-math")(
    _training(
        "smollm2-math",
        "chainwright.lab:MathConfig",
        "chainwright.lab:train_math",
        "Train an adapter on SmolLM2-135M that solves the word problems of your own files (--set data=[...]).",
        hint="chainwright evaluate --model smollm2 --adapter {folder}/adapter --problems FILE",
    )
)


@register("command", "train.reasoner")
def reasoner(
    out_folder: CheckpointFolder = Path("runs/reasoner"),
    changes: Changes = None,
    seed: TrainingSeed = 0,
    device: TrainingDevice = "cpu",
    n_workers: Annotated[int, typer.Option("--workers", help="Processes that draw samples.")] = 0,
    resume: Resume = False,
    quiet: Quiet = False,
) -> None:
    """Train the bundled reasoner from scratch on 24 million tokens: about 45 minutes on two free cores."""
    recipe = _parse.changed(_load("chainwright.lab:ReasonerConfig")(seed=seed), changes or [])
    _train(
        "reasoner", "chainwright.lab:train_reasoner", recipe, out_folder, "chainwright evaluate --model {folder}",
        device=device, resume=resume, n_workers=n_workers, progress=not quiet,
    )  # fmt: skip


@register("command", "train.iteration")
def iteration(
    out_folder: Annotated[Path, typer.Option("--out", "-o", help="Folder for checkpoints and measures.")] = Path(
        "runs/iteration"
    ),
    task: Annotated[
        str, typer.Option("--task", "-t", help="copy, parity or polynomial, several separated by commas.")
    ] = "polynomial",
    changes: Changes = None,
    seed: TrainingSeed = 0,
    device: TrainingDevice = "cpu",
    resume: Resume = False,
    quiet: Quiet = False,
) -> None:
    """Train a small model on an iterative task and watch its circuit form: a minute on one free core."""
    from chainwright.lab import IterationConfig, train_iteration

    names = [name.strip().lower() for name in task.split(",") if name.strip()]
    recipe = _parse.changed(IterationConfig(tasks=dict.fromkeys(names, 1.0), seed=seed), changes or [])
    emergence = train_iteration(recipe, out_folder, device=device, resume=resume, progress=not quiet)
    say(emergence.summary())
    say(f"Wrote the model, its checkpoints and its measures to {out_folder}")


@register("command", "train.arithmetic")
def arithmetic(
    out_folder: CheckpointFolder = Path("runs/arithmetic"),
    changes: Changes = None,
    seed: TrainingSeed = 0,
    device: TrainingDevice = "cpu",
    resume: Resume = False,
    quiet: Quiet = False,
) -> None:
    """Train a small model that answers expressions of three one-digit operands at once: five minutes on one core."""
    from chainwright.lab.arithmetic import ArithmeticConfig, accuracies, wrong_by_signs
    from chainwright.models import load_model

    recipe = _parse.changed(ArithmeticConfig(seed=seed), changes or [])
    _train(
        "arithmetic", "chainwright.lab:train_arithmetic", recipe, out_folder,
        device=device, resume=resume, progress=not quiet,
    )  # fmt: skip
    loaded = load_model(str(out_folder), device="cpu")
    answers = accuracies(loaded.model, loaded.tokenizer, recipe)
    for name, right in answers.items():
        say(f"{name}: {sum(right)} of {len(right)} right ({sum(right) / len(right):.3f})")
    wrong = wrong_by_signs(recipe, answers["three, held out"])
    say(f"Held out, wrong per signs: {', '.join(f'{signs} {k} of {n}' for signs, (k, n) in wrong.items())}")
