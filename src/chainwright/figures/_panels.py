"""Frames that several figures share: small panels, one per task, and lists with one heading per task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from chainwright.figures.theme import template
from chainwright.figures.words import safe, title_of

Row = Mapping[str, Any]

LEGEND = {"orientation": "h", "x": 0, "xref": "container", "y": 1, "yref": "container", "yanchor": "top"}
_PANEL_HEIGHT, _PANEL_GAP, _ROW_HEIGHT = 150, 84, 25
_LONG = 18


def in_order(rows: Sequence[Row]) -> list[str]:
    """Return the tasks of some rows in the order in which they come."""
    return list(dict.fromkeys(str(row["task"]) for row in rows))


def panels(tasks: Sequence[str], columns: int) -> go.Figure:
    """Return an empty figure with a titled panel a task, all with the same y axis."""
    n_columns = max(1, min(columns, len(tasks)))
    n_rows = max(1, ceil(len(tasks) / n_columns))
    drawn = _PANEL_HEIGHT * n_rows + _PANEL_GAP * (n_rows - 1)
    fig = make_subplots(
        n_rows,
        n_columns,
        shared_yaxes=True,
        subplot_titles=[safe(title_of(task)) for task in tasks],
        horizontal_spacing=0.04 if n_columns > 2 else 0.07,
        vertical_spacing=_PANEL_GAP / drawn if n_rows > 1 else 0.0,
    )
    fig.update_annotations(font={"size": 13.5, "weight": 600})
    fig.update_xaxes(title={"text": "hops", "standoff": 4})
    top = 62 if n_columns > 2 else 84  # narrow pages need two lines for the legend
    margin = {"l": 46, "r": 12, "t": top, "b": 46}
    fig.update_layout(template=template(), height=drawn + top + 46, legend=LEGEND, margin=margin)
    return fig


def panel_at(i: int, columns: int, n: int) -> dict[str, int]:
    """Return the row and column of one of `n` panels."""
    wide = max(1, min(columns, n))
    return {"row": i // wide + 1, "col": i % wide + 1}


def ticks(hops: Sequence[int], columns: int) -> list[int]:
    """Return the hop counts whose labels have room, the most hops always among them."""
    room = (0.09 if columns > 2 else 0.17) * (max(hops) - min(hops))
    kept: list[int] = []
    for count in sorted(hops, reverse=True):
        if not kept or kept[-1] - count >= room:
            kept.append(count)
    return kept[::-1]


def list_rows(rows: Sequence[Row], *, is_narrow: bool = False) -> tuple[dict[tuple[str, str], int], list[str]]:
    """Return the place of each (task, type) in a list with one heading per task, and the labels of the list.

    For narrow pages long types are written in two lines.
    """
    at: dict[tuple[str, str], int] = {}
    labels: list[str] = []
    for task in in_order(rows):
        labels.append(f"<b>{safe(title_of(task))}</b>")
        for row in rows:
            if row["task"] == task:
                at[task, row["error_type"]] = len(labels)
                kind = safe(row["error_type"])
                if is_narrow and len(kind) > _LONG:
                    kind = "<br>".join(kind.rsplit(" ", 1))
                labels.append(f"<b>{kind}</b> ◆" if row["is_key"] else kind)
    return at, labels


def list_layout(fig: go.Figure, labels: list[str], *, room_right: int = 12, top: int = 40) -> go.Figure:
    """Lay a figure out as a list, with a line for each label."""
    n = len(labels)
    fig.update_yaxes(
        tickvals=list(range(n)), ticktext=labels, range=[n - 0.4, -0.8], showgrid=False, ticklabelstandoff=6
    )
    margin = {"l": 10, "r": room_right, "t": top, "b": 46}
    fig.update_layout(template=template(), height=_ROW_HEIGHT * n + top + 56, legend=LEGEND, margin=margin)
    return fig


def beside(fig: go.Figure, at: Mapping[int, str], title: str, pixels: int, *, title_at: float = -0.1) -> None:
    """Write a text to the right of some lines of a list, as a column with a title."""
    shared = {"showarrow": False, "xref": "paper", "x": 1, "xanchor": "left", "xshift": 8, "font": {"size": 12}}
    lines = [(title_at, f"<i>{title}</i>"), *at.items()]
    notes = [
        {"text": text, "y": place, "yref": "y", "width": pixels, "align": "left", **shared} for place, text in lines
    ]
    fig.update_layout(annotations=[*fig.layout.annotations, *notes])  # at once: one by one takes quadratic time
