"""The command `tasks`."""

from __future__ import annotations

from typing import Annotated

import typer

from chainwright._registry import register
from chainwright.cli._options import Seed
from chainwright.cli._shared import out, print_table


@register("command", "tasks")
def tasks(
    task: Annotated[str | None, typer.Argument(help="A task of which to show a problem.")] = None,
    hops: Annotated[int, typer.Option("--hops", help="Hop count of the problem.")] = 3,
    seed: Seed = 0,
    rendering: Annotated[
        str, typer.Option("--rendering", metavar="short|natural", help="Wording of the problem.")
    ] = "short",
) -> None:
    """List the tasks, or show a problem of one task with its gold chain and slots."""
    from chainwright import tasks as known

    if task is None:
        rows = [(name, known.title(name), ", ".join(known.error_types(name))) for name in known.known()]
        print_table("Tasks", [dict(zip(("name", "title", "error types"), row, strict=True)) for row in rows])
        return
    (problem,) = known.sample(task, hops, 1, seed, rendering=rendering)  # type: ignore[arg-type]
    for title, text in (("prompt", problem.prompt), ("gold chain", problem.chain)):
        out.rule(title)
        out.print(text, markup=False, highlight=False)
    slots = [{"hop": s.hop, "slot": s.value, "a wrong value is": s.error_type} for s in problem.slots]
    print_table("Slots", slots)
