"""The command `study diff`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from chainwright._registry import register
from chainwright.cli._shared import out, print_table, say

if TYPE_CHECKING:
    from chainwright.studies.diagnosis.diff import CellDifference, StudyDifference


@register("command", "study.diff")
def diff(
    a: Annotated[Path, typer.Argument(help="Folder of a finished diagnosis.")],
    b: Annotated[Path, typer.Argument(help="Folder of another one.")],
) -> None:
    """Compare two diagnoses: settings, accuracy with intervals, first errors, heads."""
    from chainwright.studies.diagnosis.diff import difference

    found = difference(a, b)
    say(f"A: {a}\nB: {b}")
    for line in found.settings or ["The same settings and model."]:
        say(line)
    for measure in ("answers", "chains"):
        _print_cells(found, measure)
    errors = [{"task": row.task, "type": row.error_type, "A": row.a, "B": row.b} for row in found.errors]
    print_table("First errors, share of a task's errors", errors)
    for line in found.heads:
        say(line)


def _print_cells(found: StudyDifference, measure: str) -> None:
    table = Table("task", "hops", "A", "95%", "B", "95%", "B - A", "95%", title=f"Right {measure}")
    table.add_column("problems", no_wrap=True)
    for cell in found.cells:
        if cell.measure == measure:
            table.add_row(*_cells(cell))
    out.print(table)


def _cells(cell: CellDifference) -> list[str]:
    return [
        cell.task,
        str(cell.hops),
        *_share(cell.a, cell.a_low, cell.a_high),
        *_share(cell.b, cell.b_low, cell.b_high),
        *_share(cell.difference, cell.low, cell.high, "+"),
        cell.problems,
    ]


def _share(value: float | None, low: float | None, high: float | None, sign: str = "") -> list[str]:
    """Return a share and its interval as two cells; both are empty where the cell has no such share."""
    if value is None or low is None or high is None:
        return ["", ""]
    return [f"{value:{sign}.2f}", f"{low:{sign}.2f} to {high:{sign}.2f}"]
