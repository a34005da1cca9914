"""Recording what a command measured for the table of findings (`chainwright reproduce findings`)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from chainwright.cli._shared import say

ResultsFolder = Annotated[
    Path | None,
    typer.Option("--results", help="Also record what was measured for the table of findings in this folder."),
]


def write_result(folder: Path | None, **fields: Any) -> None:
    """Write a record, as `chainwright.reproduce.findings.Result` describes it; without a folder nothing is done."""
    from chainwright.reproduce.findings import Result, save_result

    if folder is not None:
        say(f"Result: {save_result(folder, Result(**fields))}")
