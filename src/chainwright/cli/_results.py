"""Recording what a command measured for the table of findings (`chainwright reproduce findings`)."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from chainwright.cli._shared import say

PLACES, _SILENT = ("--results", "--out", "-o"), ("--quiet", "-q", "--overwrite", "--recompute")
ResultsFolder = Annotated[
    Path | None,
    typer.Option("--results", help="Folder of records for the table of findings."),
]

Finished = Annotated[
    bool, typer.Option("--finished", help="Compute nothing more; print (and record) the tables of what is finished.")
]


def write_result(folder: Path | None, **fields: Any) -> None:
    """Write a record, as `chainwright.reproduce.findings.Result` describes it; without a folder nothing is done."""
    from chainwright.reproduce.findings import Result, save_result

    if folder is not None:
        say(f"Result: {save_result(folder, Result(**fields))}")


def write_diagnosis(folder: Path | None, study: Path) -> None:
    """Record what a finished diagnosis shows of the findings on errors; without a folder nothing is done."""
    from chainwright.reproduce.findings.diagnosed import diagnosed_results
    from chainwright.reproduce.findings.results import save_result
    from chainwright.studies.diagnosis import open_diagnosis

    if folder is not None:
        for result in diagnosed_results(open_diagnosis(study), command_line()):
            say(f"Result: {save_result(folder, result)}")


def command_line(leave_out: Sequence[str] = PLACES) -> str:
    """Return the command that is running as it is typed, without some options and their values.

    Options that only say how much is printed or whether files are replaced are never in it.
    """
    words, left = [], iter(sys.argv[1:])
    for word in left:
        if word in leave_out:
            next(left, None)
        elif word.partition("=")[0] not in leave_out and word not in _SILENT:
            words.append(word)
    return shlex.join(["chainwright", *words])
