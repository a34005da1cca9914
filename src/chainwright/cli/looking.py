"""Commands that show what there is: models and tasks."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.table import Table

from chainwright import tasks
from chainwright.cli._options import Seed
from chainwright.cli._shared import clear_errors, out


@clear_errors
def models(name: Annotated[str | None, typer.Argument(help="A model to look into.")] = None) -> None:
    """List the bundled models, or show the anatomy of one model."""
    from chainwright.models import anatomy, bundled_models, load_model

    if name is None:
        table = Table("name", "layers", "heads", "d_model", "parameters", title="Bundled models")
        for known in bundled_models():
            parts = anatomy(load_model(known, device="cpu").model)
            n = sum(p.numel() for p in parts.model.parameters())
            table.add_row(known, str(parts.n_layers), str(parts.n_heads), str(parts.d_model), f"{n:,}")
        out.print(table)
        return
    parts = anatomy(load_model(name).model)
    table = Table("part", "found", title=name)
    for label, found in parts.describe().items():
        table.add_row(label, found)
    out.print(table)


@clear_errors
def tasks_command(
    task: Annotated[str | None, typer.Argument(help="A task to see an example of.")] = None,
    hops: Annotated[int, typer.Option(help="Hops of the example.")] = 3,
    seed: Seed = 0,
    rendering: Annotated[str, typer.Option(help="'short' or 'natural'.")] = "short",
) -> None:
    """List the tasks, or show a problem of one with its gold chain and slots."""
    if task is None:
        table = Table("name", "title", "error types", title="Tasks")
        for name in tasks.known():
            table.add_row(name, tasks.title(name), ", ".join(tasks.error_types(name)))
        out.print(table)
        return
    (problem,) = tasks.sample(task, hops, 1, seed, rendering=rendering)  # type: ignore[arg-type]
    out.rule("prompt")
    out.print(problem.prompt, markup=False, highlight=False)
    out.rule("gold chain")
    out.print(problem.chain, markup=False, highlight=False)
    table = Table("hop", "slot", "a wrong value is", title="Slots")
    for slot in problem.slots:
        table.add_row(str(slot.hop), slot.value, slot.error_type)
    out.print(table)
