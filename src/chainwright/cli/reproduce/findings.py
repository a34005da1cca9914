"""The command `reproduce findings`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from chainwright._registry import register
from chainwright.cli._shared import say


@register("command", "reproduce.findings")
def findings(
    results: Annotated[Path, typer.Option("--results", help="Folder of records for the table of findings.")] = Path(
        "docs/results"
    ),
    out_file: Annotated[Path, typer.Option("--out", "-o", help="The page that is written.")] = Path("docs/findings.md"),
) -> None:
    """Write the table of the published findings and what was measured of each here."""
    from chainwright._files import atomic_file
    from chainwright.reproduce.findings import FINDINGS, findings_page, read_results
    from chainwright.reproduce.findings.page import tally

    found = read_results(results)
    page = findings_page(found)
    with atomic_file(out_file) as draft:
        draft.write_text(page, encoding="utf-8")
    for line in tally(found):
        say(line)
    say(f"{len(FINDINGS)} findings, {len(found)} results: {out_file}")
