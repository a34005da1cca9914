"""The command `report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from chainwright._registry import register
from chainwright.cli._options import Folder
from chainwright.cli._studies import print_summary


@register("command", "report")
def report(
    folder: Folder,
    out_file: Annotated[
        Path | None, typer.Option("--out", "-o", help="File to write (default: report.html in the folder).")
    ] = None,
) -> None:
    """Write the HTML report of a finished study again."""
    from chainwright.report.study import summary_of, write_study_report
    from chainwright.studies import Study

    path = write_study_report(folder, out_file)
    print_summary(summary_of(Study.open(folder)), path)
