"""Commands on iteration heads: reproduce iteration-heads."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from chainwright.cli._options import Overwrite, Quiet, Recompute, StudyFolder
from chainwright.cli._shared import Lines, clear_errors, out, plain

if TYPE_CHECKING:
    from chainwright.reproduce.iteration_heads.study import IterationHeads


@clear_errors
def iteration_heads(
    out_folder: StudyFolder = Path("runs/reproduce-iteration-heads"),
    profile: Annotated[str, typer.Option(help="'quick' (small models) or 'full' (the paper's sizes).")] = "quick",
    model: Annotated[str, typer.Option("--model", "-m", help="Whose heads are looked into.")] = "reasoner",
    overwrite: Overwrite = False,
    recompute: Recompute = False,
    quiet: Quiet = False,
) -> None:
    """Train small models on iterative tasks, look for such heads in a reasoner, and say what agrees with the paper."""
    from chainwright._files import atomic_file
    from chainwright.report.study import write_study_report
    from chainwright.reproduce.iteration_heads.claims import tables
    from chainwright.reproduce.iteration_heads.study import run_iteration_heads

    found = run_iteration_heads(
        out_folder,
        profile=profile,
        model=model,
        overwrite=overwrite,
        recompute=recompute,
        watch=None if quiet else Lines(),
    )
    path = write_study_report(out_folder)
    with atomic_file(out_folder / "tables.md") as draft:
        draft.write_text(tables(found), encoding="utf-8")
    _print(found)
    out.print(f"Tables: {out_folder / 'tables.md'}\nReport: {path}", soft_wrap=True, highlight=False)


def _print(found: IterationHeads) -> None:
    from chainwright.reproduce.iteration_heads.claims import claims, run_rows

    table = Table("finding", "published", "here", "agrees", title="Iteration heads", show_lines=True)
    for claim in claims(found):
        agrees = "" if claim.agrees is None else "yes" if claim.agrees else "no"
        table.add_row(*(plain(text) for text in (claim.finding, claim.published, claim.ours, agrees)))
    out.print(table)
    rows = run_rows(found)
    table = Table(*rows[0], title="Trainings")
    for row in rows:
        table.add_row(*("" if value is None else str(value) for value in row.values()))
    out.print(table)
