"""Commands on back attention: reproduce back-attention."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from chainwright.cli._options import Overwrite, Quiet, Recompute, StudyFolder
from chainwright.cli._shared import Lines, clear_errors, out, plain


@clear_errors
def back_attention(
    out_folder: StudyFolder = Path("runs/reproduce-back-attention"),
    model: Annotated[str, typer.Option("--model", "-m", help="A model that 'train world' made.")] = "world",
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", help="A setting of the study, such as n_steps=100; may be given several times."),
    ] = None,
    overwrite: Overwrite = False,
    recompute: Recompute = False,
    quiet: Quiet = False,
) -> None:
    """Mend two-hop questions and train arithmetic with back attention and its controls; goes on where it stopped."""
    from chainwright.cli import _parse
    from chainwright.report.study import write_study_report
    from chainwright.reproduce.back_attention.study import ReproduceBackAttentionConfig, run_back_attention

    config = _parse.changed(ReproduceBackAttentionConfig(model=model), changes or [])
    found = run_back_attention(
        config, out_folder, overwrite=overwrite, recompute=recompute, watch=None if quiet else Lines()
    )
    path = write_study_report(out_folder)
    columns = [c for c in found.rows[0] if c != "held_out by seed"]
    _print(Table(*columns, title="Two hops, frozen model"), [[row.get(c, "") for c in columns] for row in found.rows])
    for title, rows in (
        ("Answers to held-out compositions", found.failures),
        ("Arithmetic from scratch", found.scratch),
        ("Cost on a random model of 8 layers", found.cost),
    ):
        if rows:
            _print(Table(*rows[0], title=title), [list(row.values()) for row in rows])
    out.print(f"Report: {path}", soft_wrap=True, highlight=False)


def _print(table: Table, rows: list[list[object]]) -> None:
    for row in rows:
        table.add_row(*(plain(f"{value:.3f}" if isinstance(value, float) else str(value)) for value in row))
    out.print(table)
