"""The command `compare`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from chainwright._registry import register
from chainwright.cli._command import Values
from chainwright.cli._options import Overwrite, RemoteCode
from chainwright.cli._problems import PROBLEM_SET, problem_source
from chainwright.cli._shared import print_table, say

if TYPE_CHECKING:
    from chainwright.evaluation.comparison import Comparison
    from chainwright.evaluation.flips import Flips


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
            "--model",
            "-m",
            help="Model whose tokenizer wrote the traces (default: the one they name), or is to read texts.",
        ),
    ] = None,
    problems: Values = PROBLEM_SET,
    trust_labels: Annotated[
        bool,
        typer.Option("--trust-labels", help="Use the files' own judgements where they have some, in place of ours."),
    ] = False,
    trust_remote_code: RemoteCode = False,
    overwrite: Overwrite = False,
) -> None:
    """Print what each way of decoding gains over the first one, paired by problem."""
    from chainwright.cli import _parse
    from chainwright.cli._trace_files import need_tokenizer, read_ways, tokenizer_of
    from chainwright.evaluation import comparison
    from chainwright.evaluation.flips import flips
    from chainwright.models.load import load_tokenizer
    from chainwright.report.lines import by_cell, by_task

    _parse.check_free(out_file, overwrite)
    source = None if problems["source"] is None else problem_source(problems)
    asked = None if source is None else source.load().problems
    reads = model is not None and (need_tokenizer(ways) or asked is not None)
    tokenizer = load_tokenizer(model, trust_remote_code=trust_remote_code) if reads and model is not None else None
    traces = read_ways(ways, tokenizer, asked, problems["checker"], trust_labels=trust_labels)
    changed = None
    if out_file is not None:
        changed = flips(traces, tokenizer_of(traces, model, trust_remote_code=trust_remote_code))
    found = comparison.compare(traces)
    n = found.overall(found.baseline)["n"]
    has_chains = any(row["exact"] is not None for row in found.rows)
    what = "problems, gains in whole chains" if has_chains else "responses, gains in answers"
    _print(f"All {n} {what} over {found.baseline}", found.by_way())
    if not has_chains:
        _report(found, changed, out_file)
        return
    if len({row["task"] for row in found.cells}) > 1:
        _print("By task", by_task(found))
    _print("Whole chains right", by_cell(found))
    _report(found, changed, out_file)


def _report(found: Comparison, changed: Flips | None, out_file: Path | None) -> None:
    from chainwright.report import write_report

    if changed is not None and out_file is not None:
        write_report([found, changed], out_file)
        say(f"Report: {out_file}")


def _print(title: str, rows: list[dict[str, Any]]) -> None:
    from chainwright._tables import cell

    print_table(title, [{name: cell(value) for name, value in row.items()} for row in rows])
