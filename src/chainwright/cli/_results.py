"""Recording what a command measured for the table of findings (`chainwright reproduce findings`)."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
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


def command_line(leave_out: Sequence[str] = ()) -> str:
    """Return the command that is running as it is typed, without some options and their values."""
    words, left = [], iter(sys.argv[1:])
    for word in left:
        if word in leave_out:
            next(left, None)
        elif word.partition("=")[0] not in leave_out:
            words.append(word)
    return shlex.join(["chainwright", *words])
