"""Recording what a command measured for the table of findings (`chainwright reproduce findings`)."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from chainwright.cli._command import ASKED
from chainwright.cli._shared import say

PLACES, _SILENT = ("--results", "--out", "-o", "--ship"), ("--quiet", "-q", "--overwrite", "--recompute")
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


def claim_row(claim: Mapping[str, Any]) -> dict[str, object]:
    """Return what a study found of a published finding, as a row of a printed table."""
    interval = f"{claim['low']:.3g} to {claim['high']:.3g}" if "low" in claim else ""
    return {
        "finding": claim["finding"],
        "value": claim["shown"],
        "95% interval": interval,
        "n": f"{claim['n']} {claim['n_what']}",
        "note": claim.get("note", ""),
    }


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

    Options that only say how much is printed or whether files are replaced are never in it, and of a path from the root
    only its last part is.
    """
    words, left = [], iter(ASKED.get())
    for word in left:
        if word in leave_out:
            next(left, None)
        elif word.partition("=")[0] not in leave_out and word not in _SILENT:
            words.append(Path(word).name if Path(word).is_absolute() else word)
    return shlex.join(["chainwright", *words])
