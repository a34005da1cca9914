"""The `chainwright` command: reads arguments, calls the package, prints. No logic of its own.

Each command has a file of its own, named as the command, which the registry finds (`_command`).
Exit codes: 0 done, 2 bad input (one sentence says what to do), 130 interrupted.
"""

from __future__ import annotations

from typing import Annotated

import typer

from chainwright._version import __version__
from chainwright.cli._command import Commands

app = typer.Typer(
    name="chainwright", cls=Commands, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False
)


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"chainwright {__version__}")
        raise typer.Exit


@app.callback()
def _chainwright(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Find out why an open language model's chain of thought breaks, and repair it while it decodes."""


def main() -> None:
    """Run the command line."""
    app()
