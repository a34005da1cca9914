"""A table of a results page, taken from the `tables.md` that a study wrote.

    python website/take_table.py runs/x/tables.md 'Ways of decoding' tcr/smollm2 'chainwright reproduce tcr ...'
    python website/take_table.py runs/x/tables.md 'Step maps' step-saliency/smollm2 '...' --drop measure=reach --sort p

The table is the first below a heading or title line that begins with the given words. The file in
`docs/results/tables` says which columns are kept, by name; `--rename new=old` takes one from a column of another name.
Afterwards `python website/result_tables.py` writes the page.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

TABLES = Path(__file__).parent.parent / "docs" / "results" / "tables"


def table_below(text: str, title: str) -> tuple[list[str], list[list[str]]]:
    """Return columns and rows of the first table after the line that begins with a title.

    Raises:
        SystemExit: There is no such line, or no table after it.
    """
    lines = text.splitlines()
    begins = [i for i, line in enumerate(lines) if line.lstrip("#* ").startswith(title)]
    table = [i for i, line in enumerate(lines) if line.startswith("|") and begins and i > begins[0]]
    if not table:
        sys.exit(f"There is no table below a line that begins with {title!r}.")
    end = next((i for i in range(table[0], len(lines)) if not lines[i].startswith("|")), len(lines))
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[table[0] : end]]
    return cells[0], cells[2:]


def column(columns: list[str], name: str) -> int:
    """Return where a column is.

    Raises:
        SystemExit: It is missing.
    """
    if name not in columns:
        sys.exit(f"There is no column {name}; there are {', '.join(columns)}.")
    return columns.index(name)


def taken(columns: list[str], rows: list[list[str]], kept: list[str], renames: dict[str, str]) -> list[list[str]]:
    """Return the rows with the kept columns alone.

    Raises:
        SystemExit: A column is missing.
    """
    wanted = [column(columns, renames.get(name, name)) for name in kept]
    return [[row[i] for i in wanted] for row in rows]


def main() -> None:
    """Take one table, as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("title")
    parser.add_argument("table")
    parser.add_argument("command")
    parser.add_argument("--rename", action="append", default=[], metavar="NEW=OLD")
    parser.add_argument("--drop", metavar="COLUMN=VALUE", help="Leave out the rows that have this value there.")
    parser.add_argument("--sort", metavar="COLUMN", help="Rows in the order of this column's numbers.")
    parser.add_argument("--first", type=int, metavar="N", help="Only the first N rows.")
    asked = parser.parse_args()
    path = TABLES / f"{asked.table}.json"
    kept = json.loads(path.read_text(encoding="utf-8"))["columns"]
    columns, rows = table_below(asked.source.read_text(encoding="utf-8"), asked.title)
    if asked.drop is not None:
        name, _, value = asked.drop.partition("=")
        at = column(columns, name)
        rows = [row for row in rows if row[at] != value]
    if asked.sort is not None:
        at = column(columns, asked.sort)
        rows.sort(key=lambda row: float(row[at]))
    rows = taken(columns, rows[: asked.first], kept, dict(pair.split("=", 1) for pair in asked.rename))
    path.write_text(dumped(asked.command, kept, rows), encoding="utf-8")
    print(f"{path}: {len(rows)} rows")


def dumped(command: str, columns: list[str], rows: list[list[str]]) -> str:
    """Return the JSON of a table, a row to a line."""
    head = json.dumps({"command": command, "columns": columns}, ensure_ascii=False, indent=1)
    lines = ",\n".join(f"  {json.dumps(row, ensure_ascii=False)}" for row in rows)
    return f'{head[:-2]},\n "rows": [\n{lines}\n ]\n}}\n'


if __name__ == "__main__":
    main()
