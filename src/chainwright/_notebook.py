"""How values show themselves in a notebook: plain HTML that takes its colours from the page, all text escaped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

N_ROWS, _N_COLUMNS, _LONGEST = 8, 12, 60
_MARK = "background: rgba(220, 80, 40, 0.25); border-bottom: 2px solid rgb(220, 80, 40)"


def block(title: str, *parts: str) -> str:
    """Return HTML with a title and the parts below it, each of which is HTML."""
    return f"<div><p><strong>{escape(title)}</strong></p>{''.join(parts)}</div>"


def text(words: str) -> str:
    """Return words as HTML that keeps their lines."""
    return f'<pre style="white-space: pre-wrap">{escape(words)}</pre>'


def marked(words: str, start: int, end: int, label: str) -> str:
    """Return words as HTML with one span of characters marked, and what it is as its tooltip."""
    inside = f'<mark style="{_MARK}; color: inherit" title="{escape(label)}">{escape(words[start:end])}</mark>'
    return f'<pre style="white-space: pre-wrap">{escape(words[:start])}{inside}{escape(words[end:])}</pre>'


def table(columns: Mapping[str, Sequence[Any]], n_rows: int) -> str:
    """Return the first rows of columns as a table, and how many there are in all.

    Args:
        columns: Values by the names of the columns; at most `N_ROWS` of each are shown.
        n_rows: The number of rows of the whole table.
    """
    names = list(columns)[:_N_COLUMNS]
    if not n_rows or not names:
        return ""
    head = "".join(f"<th>{escape(name)}</th>" for name in names)
    rows = zip(*(columns[name][:N_ROWS] for name in names), strict=True)
    body = "".join("<tr>" + "".join(f"<td>{_cell(value)}</td>" for value in row) + "</tr>" for row in rows)
    left = [f"{n_rows - N_ROWS:,} more rows"] * (n_rows > N_ROWS)
    left += [f"{len(columns) - _N_COLUMNS} more columns"] * (len(columns) > _N_COLUMNS)
    more = f"<p>{' and '.join(left)} (<code>to_frame()</code> has all)</p>" if left else ""
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{more}"


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    words = f"{value:.3g}" if isinstance(value, float) else str(value)
    return escape(words if len(words) <= _LONGEST else words[: _LONGEST - 1] + "…")
