"""The pages have the order that readers rely on, and the tables of the results come from their files."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

import result_tables
import take_table

DOCS = Path(__file__).parent.parent / "docs"
METHODS = [page for page in sorted((DOCS / "methods").glob("*.md")) if page.name != "index.md"]
_ORDER = (
    r"What (it|they) (measures?|does)",
    r"How to read (it|them)",
    r"When (it|they) misleads?",
    "Source",
    "Departures",
)


@pytest.mark.parametrize("page", METHODS, ids=lambda page: page.stem)
def test_a_method_page_says_first_what_it_measures_how_to_read_it_and_when_it_misleads(page: Path) -> None:
    titles = re.findall(r"^## (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(titles) >= len(_ORDER)
    for title, expected in zip(titles, _ORDER, strict=False):
        assert re.fullmatch(expected, title), f"{page.name}: {title!r} stands where {expected!r} was expected"


def test_every_method_page_has_code_of_its_own() -> None:
    assert len(METHODS) >= 11
    for page in METHODS:
        assert "```python" in page.read_text(encoding="utf-8"), page.name


@pytest.mark.parametrize("page", result_tables.pages(), ids=lambda page: page.stem)
def test_the_tables_of_a_page_are_those_of_its_files(page: Path) -> None:
    assert result_tables.filled(page) == page.read_text(encoding="utf-8"), "run python website/result_tables.py"
    assert result_tables.without_file(page) == []


def test_every_table_says_its_command_and_stands_on_a_page() -> None:
    files = sorted((DOCS / "results" / "tables").rglob("*.json"))
    text = "".join(page.read_text(encoding="utf-8") for page in result_tables.pages())
    assert len(files) > 40
    for file in files:
        table = json.loads(file.read_text(encoding="utf-8"))
        assert table["command"].startswith(("chainwright ", "python benchmarks/")), file
        assert all(len(row) == len(table["columns"]) for row in table["rows"]), file
        assert f"<!-- table: {file.parent.name}/{file.stem} -->" in text, file


def test_a_table_is_taken_from_what_a_study_wrote() -> None:
    wanted = "| a | b |\n|---|---|\n| 1 | 2 |\n| 3 | 4 |\n"
    text = f"# A study\n\n| a |\n|---|\n| 0 |\n\n**Step maps of 2 pairs**\n\n{wanted}\nEnd\n"
    columns, rows = take_table.table_below(text, "Step maps")
    assert (columns, rows) == (["a", "b"], [["1", "2"], ["3", "4"]])
    assert take_table.taken(columns, rows, ["c", "a"], {"c": "b"}) == [["2", "1"], ["4", "3"]]
    with pytest.raises(SystemExit, match="no column d; there are a, b"):
        take_table.taken(columns, rows, ["d"], {})
    with pytest.raises(SystemExit, match="no table below a line that begins with 'Other'"):
        take_table.table_below(text, "Other")


def test_a_table_is_written_as_the_files_are() -> None:
    for path in sorted(take_table.TABLES.rglob("*.json")):
        text = path.read_text(encoding="utf-8")
        table = json.loads(text)
        assert take_table.dumped(table["command"], table["columns"], table["rows"]) == text, path
