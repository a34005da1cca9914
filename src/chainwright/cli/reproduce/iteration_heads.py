"""The command `reproduce iteration-heads`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from chainwright._registry import register
from chainwright.cli import _parse
from chainwright.cli._options import Adapter, Changes, Dtype, ModelName, Overwrite, Quiet, Recompute, StudyFolder
from chainwright.cli._results import ResultsFolder, command_line, write_result
from chainwright.cli._shared import out, plain, print_table, say
from chainwright.cli._studies import watch

if TYPE_CHECKING:
    from chainwright.reproduce.iteration_heads.study import IterationHeads


@register("command", "reproduce.iteration-heads")
def iteration_heads(
    out_folder: StudyFolder = Path("runs/reproduce-iteration-heads"),
    profile: Annotated[
        str,
        typer.Option(
            "--profile",
            metavar="quick|full|none",
            help="Train small models, or the paper's sizes, or nothing: then only the heads of --model are looked at.",
        ),
    ] = "quick",
    model: ModelName = "reasoner",
    adapter: Adapter = None,
    dtype: Dtype = None,
    changes: Changes = None,
    overwrite: Overwrite = False,
    recompute: Recompute = False,
    results: ResultsFolder = None,
    quiet: Quiet = False,
) -> None:
    """Train small models on iterative tasks, look for iteration heads in a model, compare both with the paper."""
    from chainwright._files import atomic_file
    from chainwright.report.study import write_study_report
    from chainwright.reproduce.iteration_heads.claims import tables
    from chainwright.reproduce.iteration_heads.records import records_of
    from chainwright.reproduce.iteration_heads.study import probe_for, run_iteration_heads

    found = run_iteration_heads(
        out_folder,
        profile=profile,
        probe=_parse.changed(probe_for(model, adapter), changes or []),
        dtype=dtype,
        overwrite=overwrite,
        recompute=recompute,
        watch=watch(quiet),
    )
    path = write_study_report(out_folder)
    with atomic_file(out_folder / "tables.md") as draft:
        draft.write_text(tables(found), encoding="utf-8")
    _print(found)
    for fields in records_of(found, command_line()) if results is not None else []:
        write_result(results, **fields)
    say(f"Tables: {out_folder / 'tables.md'}\nReport: {path}")


def _print(found: IterationHeads) -> None:
    from chainwright.reproduce.iteration_heads.claims import claims, run_rows

    table = Table("finding", "published", "here", "agrees", title="Iteration heads", show_lines=True)
    for claim in claims(found):
        agrees = "" if claim.agrees is None else "yes" if claim.agrees else "no"
        table.add_row(*(plain(text) for text in (claim.finding, claim.published, claim.ours, agrees)))
    out.print(table)
    print_table("Trainings", [{n: "" if v is None else v for n, v in row.items()} for row in run_rows(found)])
