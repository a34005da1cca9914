"""Rows of named values under titles: what a study measured besides the findings that have a class of their own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from chainwright._finding import Finding
from chainwright._registry import register

Rows = list[dict[str, Any]]


@register("finding", "Tables")
@dataclass(frozen=True, kw_only=True)
class Tables(Finding):
    """Tables by title.

    Attributes:
        title: What they have in common.
        tables: The rows of each, all rows of a table with the same keys.
        notes: Sentences that belong to them.
    """

    title: str
    tables: Mapping[str, Rows]
    notes: Sequence[str] = field(default_factory=tuple)

    def summary(self) -> str:
        """Return how many rows each table has, and the notes."""
        sizes = ", ".join(f"{self.short(name)} ({len(rows)})" for name, rows in self.tables.items())
        return "\n".join([f"{self.title}: {sizes or 'no tables'}", *self.notes])

    def short(self, name: str) -> str:
        """Return the name of a table without what `title` says already."""
        return name.removeprefix(f"{self.title}: ")

    def to_frame(self) -> pa.Table:
        """Return the rows of all tables, each with its `table`; values are texts."""
        rows = [
            {"table": name, **{key: None if value is None else str(value) for key, value in row.items()}}
            for name, rows in self.tables.items()
            for row in rows
        ]
        columns = dict.fromkeys(key for row in rows for key in row)
        return pa.table({key: pa.array([row.get(key) for row in rows], pa.string()) for key in columns})

    def lines(self) -> Iterator[str]:
        """Yield the tables as Markdown, line by line."""
        for name, rows in self.tables.items():
            yield from titled(name, rows)
        yield from self.notes


def titled(title: str, rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yield a table under its title as Markdown; one without rows says so."""
    yield from (f"### {title}", "", *(table(rows) if rows else ["None."]), "")


def table(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return rows as the lines of a Markdown table, the columns being those of the first row."""
    rows = list(rows)
    columns = list(rows[0])
    body = ["| " + " | ".join(cell(row.get(c)) for c in columns) + " |" for row in rows]
    return ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns), *body]


def numeric_columns(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return the columns in which some row has a number, which are aligned to the right."""
    found = [name for row in rows for name, value in row.items() if isinstance(value, int | float)]
    return list(dict.fromkeys(found))


def cell(value: Any) -> str:
    """Return a value as a table shows it: numbers with three decimals, "-" for None."""
    if value is None:
        return "-"
    return f"{value:.3f}" if isinstance(value, float) else str(value)
