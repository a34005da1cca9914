"""The command `reproduce iteration-heads`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from chainwright._registry import register
from chainwright.cli._options import Adapter, ModelName, Overwrite, Quiet, Recompute, StudyFolder
from chainwright.cli._shared import out, plain, print_table, say
from chainwright.cli._studies import watch

if TYPE_CHECKING:
    from chainwright.reproduce.iteration_heads.study import IterationHeads


@register("command", "reproduce.iteration-heads")
def iteration_heads(
    out_folder: StudyFolder = Path("runs/reproduce-iteration-heads"),
    profile: Annotated[
        str, typer.Option("--profile", metavar="quick|full", help="Small models, or the paper's sizes.")
    ] = "quick",
    model: ModelName = "reasoner",
    adapter: Adapter = None,
    overwrite: Overwrite = False,
    recompute: Recompute = False,
    quiet: Quiet = False,
) -> None:
    """Train small models on iterative tasks, look for iteration heads in a reasoner, compare both with the paper."""
    from chainwright._files import atomic_file
    from chainwright.report.study import write_study_report
    from chainwright.reproduce.iteration_heads.claims import tables
    from chainwright.reproduce.iteration_heads.study import run_iteration_heads

    found = run_iteration_heads(
        out_folder,
        profile=profile,
        model=model,
        adapter=adapter,
        overwrite=overwrite,
        recompute=recompute,
        watch=watch(quiet),
    )
    path = write_study_report(out_folder)
    with atomic_file(out_folder / "tables.md") as draft:
        draft.write_text(tables(found), encoding="utf-8")
    _print(found)
    say(f"Tables: {out_folder / 'tables.md'}\nReport: {path}")


def _print(found: IterationHeads) -> None:
    from chainwright.reproduce.iteration_heads.claims import claims, run_rows

    table = Table("finding", "published", "here", "agrees", title="Iteration heads", show_lines=True)
    for claim in claims(found):
        agrees = "" if claim.agrees is None else "yes" if claim.agrees else "no"
        table.add_row(*(plain(text) for text in (claim.finding, claim.published, claim.ours, agrees)))
    out.print(table)
    print_table("Trainings", [{n: "" if v is None else v for n, v in row.items()} for row in run_rows(found)])
