"""The code blocks of the README and the pages run, and print what the pages say; those that do not run say why."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from unittest import SkipTest

import pytest
import typer
from typer.testing import CliRunner

import code_blocks
from chainwright import _registry
from chainwright.cli import app
from chainwright.models.fetch import local_file

pytest.importorskip("sybil")
PAGES = code_blocks.pages()
BLOCKS = [block for page in PAGES for block in code_blocks.blocks(page)]


def _name(page: Path) -> str:
    return str(page.relative_to(code_blocks.ROOT))


def _run(words: list[str]) -> str:
    """Run a command in this process and return what it printed."""
    assert words[0] == "chainwright", f"{words[0]} is not run by the tests: mark the block with a reason"
    result = CliRunner().invoke(app, words[1:], env={"COLUMNS": "110"})
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, f"{' '.join(words)}\n{result.output}"
    return result.stdout


def _run_page(page: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, *, quick: bool, smollm2: bool) -> Counter[str]:
    (folder / "examples").symlink_to(code_blocks.ROOT / "examples")
    monkeypatch.setattr(_registry, "_live", dict(_registry._live))  # what a page registers ends with it
    monkeypatch.chdir(folder)
    document = code_blocks.document(page, _run, quick=quick, smollm2=smollm2)
    outcomes: Counter[str] = Counter()
    for example in document.examples():
        try:
            example.evaluate()
            outcomes["run"] += 1
        except SkipTest:
            document.namespace["_printed"] = None
            outcomes["skipped"] += 1
    return outcomes


@pytest.mark.parametrize("page", [p for p in PAGES if any(b.is_code for b in code_blocks.blocks(p))], ids=_name)
def test_blocks_run_and_print_what_the_page_says(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outcomes = _run_page(page, tmp_path, monkeypatch, quick=True, smollm2=False)
    assert outcomes["skipped"] == sum(b.is_code and b.reason is not None for b in code_blocks.blocks(page))


@pytest.mark.slow
@pytest.mark.parametrize("page", sorted({b.page for b in BLOCKS if b.reason == "takes minutes"}), ids=_name)
def test_blocks_that_take_minutes_run_too(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _run_page(page, tmp_path, monkeypatch, quick=False, smollm2=False)


@pytest.mark.real
@pytest.mark.skipif(local_file("smollm2") is None, reason="smollm2 was not fetched; run make smollm2")
@pytest.mark.parametrize("page", sorted({b.page for b in BLOCKS if b.reason == "needs SmolLM2"}), ids=_name)
def test_blocks_with_smollm2_run_too(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _run_page(page, tmp_path, monkeypatch, quick=True, smollm2=True)


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_every_command_has_options_that_exist(page: Path) -> None:
    """Also in blocks that are not run: they are parsed, and nothing is called."""
    root = typer.main.get_command(app)
    for block in code_blocks.blocks(page):
        for words in code_blocks.commands(block.source) if block.language == "bash" else ():
            if words[0] != "chainwright" or words[1:] == ["--version"]:
                continue
            command, context = root, root.make_context("chainwright", list(words[1:]))
            while hasattr(command, "resolve_command") and (left := [*context._protected_args, *context.args]):
                name, command, rest = command.resolve_command(context, left)
                assert command is not None, f"{_name(page)}:{block.line}: {words}"
                context = command.make_context(name, rest, parent=context)


def test_every_block_names_its_language() -> None:
    bare = [f"{_name(b.page)}:{b.line}" for b in BLOCKS if not b.language]
    assert not bare, "name the language of these blocks (text for anything that is no code)"


def test_every_reason_is_a_known_one_and_most_blocks_run() -> None:
    code = [block for block in BLOCKS if block.is_code]
    unknown = [f"{_name(b.page)}:{b.line}: {b.reason}" for b in code if b.reason not in (None, *code_blocks.REASONS)]
    assert not unknown, "code_blocks.REASONS lists the reasons"
    assert sum(block.reason is None for block in code) > 45


def test_no_command_stands_in_an_indented_block() -> None:
    """An indented block has no language, so nothing would run it."""
    for page in PAGES:
        for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
            assert not line.startswith(("    chainwright ", "    pip ", "    make ")), f"{_name(page)}:{number}"


@pytest.mark.parametrize(
    ("said", "printed", "passes"), [("a ... c\n", "a b\nc\n", True), ("a b\n", "a c\n", False), ("a\n", "", False)]
)
def test_a_page_that_says_something_else_fails(tmp_path: Path, said: str, printed: str, passes: bool) -> None:
    page = tmp_path / "page.md"
    page.write_text(f'```python\nprint({printed!r})\n```\n\n```text title="Output"\n{said}```\n')
    document = code_blocks.document(page, _run)
    code, output = document.examples()
    code.evaluate()
    if passes:
        output.evaluate()
    else:
        with pytest.raises(AssertionError, match="but what is printed is"):
            output.evaluate()
