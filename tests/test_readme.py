"""The README's code runs and prints what it says, and its commands exist."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from chainwright.cli import app

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_code_prints_what_the_readme_says() -> None:
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    said = re.search(r"prints\n\n```text\n(.*?)```", README, re.DOTALL)
    assert said is not None
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, "README.md", "exec"), {})
    assert printed.getvalue().split() == said[1].split()


def test_every_command_exists() -> None:
    commands = set(re.findall(r"(?:`|^    )chainwright ([\w-]+)", README, re.M))
    assert commands == {
        "diagnose", "tasks", "generate", "evaluate", "models", "report", "reproduce", "study", "train", "fit", "flow",
        "compare", "problems", "pivots", "facts", "lm-eval", "serve",
    }  # fmt: skip
    for command in commands:
        assert CliRunner().invoke(app, [command, "--help"]).exit_code == 0


def test_every_link_leads_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert (Path(__file__).parent.parent / target).exists(), target
