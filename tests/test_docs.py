"""The pages in docs/: links lead somewhere and imports exist. That their code runs is in test_code_blocks."""

import re
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
_FENCE = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_IMPORT = re.compile(r"^[ \t]*from chainwright[\w.]* import (?:\([^)]+\)|[^(\n]+)", re.MULTILINE)
_LINK = re.compile(r"\]\(([^)\s]+)\)")


def _code(page: Path) -> list[str]:
    return _FENCE.findall(page.read_text(encoding="utf-8"))


def _anchors(page: Path) -> set[str]:
    titles = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files_and_headings(page: Path) -> None:
    for link in _LINK.findall(re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)):
        if link.startswith(("http://", "https://")):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        if "api" in name.split("/"):
            continue  # pages that are made when the site is built, which checks the link
        assert target.exists(), f"{page.name}: {link}"
        if anchor and target.suffix == ".md":
            assert anchor in _anchors(target), f"{page.name}: {link}"


@pytest.mark.parametrize("page", [page for page in PAGES if _code(page)], ids=lambda page: page.name)
def test_imports_in_code_exist(page: Path) -> None:
    # by pattern and not parsed: a page may show a fragment of a file
    for statement in _IMPORT.findall("\n".join(_code(page))):
        exec(textwrap.dedent(statement), {})


def test_messages_that_name_a_heading_name_one_that_exists() -> None:
    """`see("remote-code")` in the package is a heading of docs/refused.md."""
    source = "".join(file.read_text(encoding="utf-8") for file in (ROOT / "src").rglob("*.py"))
    named = set(re.findall(r"see\(['\"]([\w-]+)['\"]\)", source))
    assert len(named) >= 5 and named <= _anchors(ROOT / "docs" / "refused.md")
