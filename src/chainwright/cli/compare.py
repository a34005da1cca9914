"""The command `compare`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from chainwright._registry import register
from chainwright.cli._options import Overwrite, RemoteCode
from chainwright.cli._shared import print_table, say


@register("command", "compare")
def compare(
    ways: Annotated[
        list[str],
        typer.Argument(
            help="Trace files of the same problems, such as none=a.parquet tcr=b.parquet; the first is the baseline."
        ),
    ],
    out_file: Annotated[
        Path | None, typer.Option("--out", "-o", help="Also write an HTML report that shows the chains side by side.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model", "-m", help="With --out: model whose tokenizer wrote the traces (default: the one they name)."
        ),
    ] = None,
    trust_remote_code: RemoteCode = False,
    overwrite: Overwrite = False,
) -> None:
    """Print what each way of decoding gains over the first one, paired by problem."""
    from chainwright.cli import _parse
    from chainwright.cli._trace_files import read_ways, tokenizer_of
    from chainwright.evaluation import comparison
    from chainwright.evaluation.flips import flips
    from chainwright.report import write_report
    from chainwright.report.lines import by_cell, by_task

    _parse.check_free(out_file, overwrite)
    traces = read_ways(ways)
    changed = None
    if out_file is not None:
        changed = flips(traces, tokenizer_of(traces, model, trust_remote_code=trust_remote_code))
    found = comparison.compare(traces)
    n = found.overall(found.baseline)["n"]
    _print(f"All {n} problems, gains in whole chains over {found.baseline}", found.by_way())
    if len({row["task"] for row in found.cells}) > 1:
        _print("By task", by_task(found))
    _print("Whole chains right", by_cell(found))
    if changed is not None and out_file is not None:
        write_report([found, changed], out_file)
        say(f"Report: {out_file}")


def _print(title: str, rows: list[dict[str, Any]]) -> None:
    from chainwright._tables import cell

    print_table(title, [{name: cell(value) for name, value in row.items()} for row in rows])
