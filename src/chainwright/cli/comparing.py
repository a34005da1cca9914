"""The command that compares trace files: compare."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from chainwright.cli._options import Overwrite, RemoteCode
from chainwright.cli._shared import clear_errors, out, plain


@clear_errors
def compare(
    ways: Annotated[
        list[str],
        typer.Argument(
            help="Trace files of the same problems, as none=a.parquet tcr=b.parquet; the first is compared with."
        ),
    ],
    out_file: Annotated[
        Path | None, typer.Option("--out", "-o", help="Also write a report (HTML), with the chains side by side.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model", "-m", help="With --out: whose tokenizer wrote the traces; left out: the model they name."
        ),
    ] = None,
    trust_remote_code: RemoteCode = False,
    overwrite: Overwrite = False,
) -> None:
    """Print what ways of decoding gain over the first one, paired by problem."""
    from chainwright.cli import _parse
    from chainwright.cli._trace_files import read_ways, tokenizer_of
    from chainwright.evaluation import comparison
    from chainwright.evaluation.flips import flips
    from chainwright.report import write_report
    from chainwright.report.lines import by_cell, by_task

    _parse.check_free(out_file, overwrite)
    traces = read_ways(ways)
    moved = None
    if out_file is not None:
        moved = flips(traces, tokenizer_of(traces, model, trust_remote_code=trust_remote_code))
    found = comparison.compare(traces)
    n = found.overall(found.baseline)["n"]
    _print(f"All {n} problems, gains in whole chains over {found.baseline}", found.by_way())
    if len({row["task"] for row in found.cells}) > 1:
        _print("By task", by_task(found))
    _print("Whole chains right", by_cell(found))
    if moved is not None and out_file is not None:
        write_report([found, moved], out_file)
        out.print(f"Report: {out_file}", soft_wrap=True, highlight=False)


def _print(title: str, rows: list[dict[str, Any]]) -> None:
    from chainwright._tables import cell

    table = Table(*(plain(name) for name in rows[0]), title=plain(title))
    for row in rows:
        table.add_row(*(plain(cell(value)) for value in row.values()))
    out.print(table)
