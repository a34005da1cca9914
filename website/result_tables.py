"""The tables of the results pages, written into the pages from the files in `docs/results/tables`.

    python website/result_tables.py            writes the tables of every page again

A page says where a table goes with two comments; what is between them is replaced:

    <!-- table: tcr/all-360-problems -->
    <!-- end of table -->

The file of a table has its columns, its rows (cells as they are printed) and the command that printed them.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

RESULTS = Path(__file__).parent.parent / "docs" / "results"
_PLACE = re.compile(r"(<!-- table: ([\w./-]+) -->\n).*?(<!-- end of table -->)", re.DOTALL)
_TABLE = re.compile(r"(?<=\n\n)\|[^\n]*\|\n\|(?: ?-+ ?\|)+\n(?:\|[^\n]*\|\n)*")


def pages() -> list[Path]:
    """Return the pages that have tables from files."""
    return [page for page in sorted(RESULTS.glob("*.md")) if _PLACE.search(page.read_text(encoding="utf-8"))]


def filled(page: Path) -> str:
    """Return the text of a page with its tables written again."""
    text = page.read_text(encoding="utf-8")
    return _PLACE.sub(lambda place: f"{place[1]}{markdown(place[2])}{place[3]}", text)


def markdown(name: str) -> str:
    """Return a table of a file as Markdown."""
    table = json.loads((RESULTS / "tables" / f"{name}.json").read_text(encoding="utf-8"))
    lines = [table["columns"], ["---"] * len(table["columns"]), *table["rows"]]
    cells = ["|".join(line) if line[0] == "---" else " | ".join(line) for line in lines]
    return "".join(f"|{row}|\n" if row.startswith("---") else f"| {row} |\n" for row in cells)


def without_file(page: Path) -> list[str]:
    """Return the first lines of tables that do not come from a file."""
    return [found[0].partition("\n")[0] for found in _TABLE.finditer(_PLACE.sub("", page.read_text(encoding="utf-8")))]


if __name__ == "__main__":
    for page in pages():
        page.write_text(filled(page), encoding="utf-8")
        print(f"Wrote {page}")
