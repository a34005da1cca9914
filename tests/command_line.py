"""Running a command in this process."""

from __future__ import annotations

import re

from typer.testing import CliRunner

from chainwright.cli import app

runner = CliRunner()


def call(*args: object) -> tuple[int, str]:
    """Run a command in this process; return its exit code and all that it printed, on one line."""
    result = runner.invoke(app, [str(a) for a in args], env={"COLUMNS": "200"})
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, re.sub(r"\s+", " ", result.output)
