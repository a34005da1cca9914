"""Commands that train the small models which come with Chainwright."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from chainwright.cli._options import CheckpointFolder, Quiet, Resume, Seed, TrainingDevice
from chainwright.cli._shared import clear_errors, out


@clear_errors
def reasoner(
    out_folder: CheckpointFolder = Path("runs/reasoner"),
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", help="A setting of the recipe, such as n_tokens=4000000; may be given several times."),
    ] = None,
    seed: Seed = 0,
    device: TrainingDevice = "cpu",
    n_workers: Annotated[int, typer.Option("--workers", help="Processes that draw samples.")] = 0,
    resume: Resume = False,
    quiet: Quiet = False,
) -> None:
    """Train the bundled reasoner from scratch: 24 million tokens, about 45 minutes on two free cores."""
    from chainwright.cli import _parse
    from chainwright.lab import ReasonerConfig, train_reasoner

    config = _parse.changed(ReasonerConfig(seed=seed), changes or [])
    start = time.monotonic()
    folder = train_reasoner(config, out_folder, device=device, resume=resume, n_workers=n_workers, progress=not quiet)
    out.print(f"Wrote the reasoner to {folder} after {time.monotonic() - start:.0f} seconds", soft_wrap=True)
    out.print(f"See how good it is: chainwright evaluate --model {folder}", soft_wrap=True)


@clear_errors
def iteration(
    out_folder: Annotated[Path, typer.Option("--out", "-o", help="Folder for checkpoints and measures.")] = Path(
        "runs/iteration"
    ),
    task: Annotated[str, typer.Option("--task", "-t", help="copy, parity or polynomial; several with commas.")] = (
        "polynomial"
    ),
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", help="A setting of the recipe, such as max_length=16; may be given several times."),
    ] = None,
    seed: Seed = 0,
    device: TrainingDevice = "cpu",
    resume: Resume = False,
    quiet: Quiet = False,
) -> None:
    """Train a small model on an iterative task and watch its circuit form: a minute on one free core."""
    from chainwright.cli import _parse
    from chainwright.lab import IterationConfig, train_iteration

    names = [name.strip().lower() for name in task.split(",") if name.strip()]
    config = _parse.changed(IterationConfig(tasks=dict.fromkeys(names, 1.0), seed=seed), changes or [])
    found = train_iteration(config, out_folder, device=device, resume=resume, progress=not quiet)
    out.print(found.summary(), markup=False, highlight=False, soft_wrap=True)
    out.print(f"Wrote the model, its checkpoints and its measures to {out_folder}", soft_wrap=True)


@clear_errors
def world(
    out_folder: CheckpointFolder = Path("runs/world"),
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", help="A setting of the recipe, such as known_share=0.5; may be given several times."),
    ] = None,
    seed: Seed = 0,
    device: TrainingDevice = "cpu",
    resume: Resume = False,
    quiet: Quiet = False,
) -> None:
    """Train a small model of a made-up world that knows single facts and fails two-hop questions."""
    from chainwright.cli import _parse
    from chainwright.lab import KnowledgeConfig, train_knowledge

    config = _parse.changed(KnowledgeConfig(seed=seed), changes or [])
    start = time.monotonic()
    folder = train_knowledge(config, out_folder, device=device, resume=resume, progress=not quiet)
    out.print(f"Wrote the model of a made-up world to {folder} after {time.monotonic() - start:.0f} seconds")


@clear_errors
def arithmetic(
    out_folder: CheckpointFolder = Path("runs/arithmetic"),
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", help="A setting of the recipe, such as n_steps=1000; may be given several times."),
    ] = None,
    seed: Seed = 0,
    device: TrainingDevice = "cpu",
    resume: Resume = False,
    quiet: Quiet = False,
) -> None:
    """Train a small model that answers one-digit expressions of three operands at once; five minutes on a core."""
    from chainwright.cli import _parse
    from chainwright.lab import ArithmeticConfig, train_arithmetic
    from chainwright.lab.arithmetic import accuracies, wrong_by_signs
    from chainwright.models import load_model

    config = _parse.changed(ArithmeticConfig(seed=seed), changes or [])
    start = time.monotonic()
    folder = train_arithmetic(config, out_folder, device=device, resume=resume, progress=not quiet)
    out.print(f"Wrote the model to {folder} after {time.monotonic() - start:.0f} seconds", soft_wrap=True)
    loaded = load_model(str(folder), device="cpu")
    found = accuracies(loaded.model, loaded.tokenizer, config)
    for name, right in found.items():
        out.print(f"{name}: {sum(right)} of {len(right)} right ({sum(right) / len(right):.3f})", highlight=False)
    wrong = wrong_by_signs(config, found["three, held out"])
    said = ", ".join(f"{signs} {k} of {n}" for signs, (k, n) in wrong.items())
    out.print(f"held out, wrong by signs: {said}", highlight=False, soft_wrap=True)


@clear_errors
def compass(
    out_folder: CheckpointFolder = Path("runs/compass"),
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", help="A setting of the recipe, such as n_steps=4000; may be given several times."),
    ] = None,
    seed: Seed = 0,
    device: TrainingDevice = "cpu",
    resume: Resume = False,
    quiet: Quiet = False,
) -> None:
    """Train the compass model, which loses sight of its question in long chains: four minutes on one free core."""
    from chainwright.cli import _parse
    from chainwright.lab import CompassConfig, train_compass

    config = _parse.changed(CompassConfig(seed=seed), changes or [])
    start = time.monotonic()
    folder = train_compass(config, out_folder, device=device, resume=resume, progress=not quiet)
    out.print(f"Wrote the compass model to {folder} after {time.monotonic() - start:.0f} seconds", soft_wrap=True)
    out.print(
        f"See how good it is: chainwright evaluate --model {folder} --task compass --hops 10,20,30", soft_wrap=True
    )
