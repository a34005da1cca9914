"""The command `facts`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from chainwright._registry import register
from chainwright.cli._command import Values
from chainwright.cli._options import ModelName, Overwrite, Quiet
from chainwright.cli._shared import print_table, say
from chainwright.cli._source import SOURCE, load


@register("command", "facts")
def facts(
    model: ModelName = "smollm2",
    show: Annotated[bool, typer.Option("--show", help="Also print every question with what the model says.")] = False,
    out_folder: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder for the finding: every question and answer.")
    ] = None,
    source: Values = SOURCE,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Ask a pretrained model for real facts, one by one and two in a row, and count what it answers."""
    from chainwright.cli import _parse
    from chainwright.diagnose.flow.facts import fact_answers

    if out_folder is not None:
        _parse.check_free(out_folder, overwrite)
    loaded = load(model, source)
    found = fact_answers(loaded.model, loaded.tokenizer, progress=not quiet)
    if show:
        columns = ("prompt", "answer", "said", "outcome", "are_known")
        rows = [{**row, "said": " ".join(row["said"].split())} for row in found.answers]
        print_table("Answers", [{name: row[name] for name in columns} for row in rows])
    print_table(f"Real facts, {model}", found.rows())
    say(found.summary())
    if out_folder is not None:
        found.save(out_folder, overwrite=overwrite)
        say(f"Answers: {out_folder}")
