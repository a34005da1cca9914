"""The code blocks of the README and of the pages: which there are, which are run by the tests, and how.

A block is fenced and names its language. `python` and `bash` blocks of a page are run in order, in one namespace and
one folder; a block ```` ```text title="Output" ```` after one of them is what it prints, where `...` stands for
anything. A block that is not run says so, with the reason, in a comment above it that the site does not show:

    <!-- skip: next "needs a GPU" -->
    <!-- skip: next if(quick, reason="takes minutes") -->               run by `make test-all`
    <!-- skip: next if(not smollm2, reason="needs SmolLM2") -->         run by `make test-real`

Of a `bash` block each line is a command; those of `chainwright` run in this process. The commands of blocks that are
not run are still read by the command line's parser, so that every option that a page shows exists.
"""

from __future__ import annotations

import contextlib
import doctest
import io
import re
import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sybil import Document, Example

ROOT = Path(__file__).parent.parent
OUTPUT = 'text title="Output"'
REASONS = (
    "takes minutes",
    "takes an hour",
    "needs SmolLM2",
    "needs a GPU",
    "needs the Hub",
    "needs a cluster",
    "needs a model of yours",
    "needs a file of yours",
    "needs a server that runs",
    "installs packages",
    "part of a file",
    "builds from the repository",
)
"""The reasons that a block may have for not being run; one that does not fit needs a line here."""

_SKIP = re.compile(r'<!-- skip: next (?:if\([^,]+, reason=)?"([^"]+)"\)? -->\n\s*$')
_FENCE = re.compile(r"^([ \t]*)(`{3,})([^\n`]*)\n(.*?)^\1\2[ \t]*$", re.MULTILINE | re.DOTALL)
_FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        page: Where it stands.
        line: Its first line, from 1.
        language: What the fence says, such as `python` or `text title="Output"`.
        source: The text inside.
        reason: Why it is not run, or None.
    """

    page: Path
    line: int
    language: str
    source: str
    reason: str | None

    @property
    def is_code(self) -> bool:
        """Return whether it would be run if it gave no reason."""
        return self.language in ("python", "bash")


def pages() -> list[Path]:
    """Return the README and every page in `docs/`."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(page: Path) -> Iterator[Block]:
    """Yield the fenced blocks of a page."""
    text = page.read_text(encoding="utf-8")
    for fence in _FENCE.finditer(text):
        skip = _SKIP.search(text[: fence.start()])
        line = text.count("\n", 0, fence.start()) + 1
        yield Block(page, line, fence[3].strip(), fence[4], skip[1] if skip else None)


def overview() -> str:
    """Return a page that counts the blocks and lists those that are not run, each with its reason."""
    code = [block for page in pages() for block in blocks(page) if block.is_code]
    left = [block for block in code if block.reason]
    n_compared = sum(block.language == OUTPUT for page in pages() for block in blocks(page))
    rows = [f"| {b.page.relative_to(ROOT)} | {b.line} | {b.language} | {b.reason} |" for b in left]
    n_run = len(code) - len(left)
    words = (
        f"The README and the pages have {len(code)} blocks of Python and commands. The tests run {n_run} of them at "
        f"every change, and compare what {n_compared} of them print. The others give a reason in a comment above them; "
        "those that take minutes run in `make test-all`, those that need SmolLM2 in `make test-real`. That the options "
        "of all commands exist is always tested."
    )
    head = ["# Code blocks", "", words, "", "| page | line | language | not run, since it |", "|---|---|---|---|"]
    return "\n".join([*head, *rows])


def commands(source: str) -> list[list[str]]:
    """Return the words of each command of a `bash` block, without comments."""
    lines = source.replace("\\\n", " ").splitlines()
    found = [shlex.split(line, comments=True) for line in lines]
    return [list(takewhile(lambda word: word not in ("&", "|", ">"), words)) for words in found if words]


def document(page: Path, run_command: Callable[[list[str]], str], **names: Any) -> Document:
    """Return a page whose examples can be evaluated.

    Args:
        page: The page.
        run_command: Runs a command of a `bash` block and returns what it printed.
        names: What conditions of skipped blocks may name.
    """
    from sybil import Document
    from sybil.parsers.markdown import CodeBlockParser, SkipParser

    def run_bash(example: Example) -> None:
        example.namespace["_printed"] = "\n".join(run_command(words) for words in commands(example.parsed))

    parsers = (
        CodeBlockParser("python", _run_python),
        CodeBlockParser("bash", run_bash),
        CodeBlockParser(OUTPUT, _compare),
        SkipParser(),
    )
    found = Document.parse(str(page), *parsers)
    found.namespace.update(names, __name__="__main__")
    return found


def _run_python(example: Example) -> None:
    from sybil.evaluators.python import PythonEvaluator

    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        PythonEvaluator()(example)
    example.namespace["_printed"] = printed.getvalue()


def _compare(example: Example) -> None:
    said, printed = example.parsed, example.namespace["_printed"]
    if printed is not None and not doctest.OutputChecker().check_output(said, printed, _FLAGS):
        raise AssertionError(f"{example.path}:{example.line} says\n{said}\nbut what is printed is\n{printed}")
