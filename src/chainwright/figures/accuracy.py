"""Right answers and right chains against hops."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

from chainwright.figures._panels import LEGEND, Row, in_order, panel_at, panels, ticks
from chainwright.figures.theme import BLUE, GREY, ORANGE, template
from chainwright.figures.words import between, counted, percent, safe, title_of

HIGH_CHANCE = 0.3
"""From which share of right answers by guessing a panel draws chance as a line of its own."""
_ROW_HEIGHT, _LONGEST_LABEL = 24, 44


def accuracy_by_hops(rows: Sequence[Row], *, chance: Mapping[str, float] | None = None, columns: int = 4) -> go.Figure:
    """Return shares of right chains and answers against hops, one panel per task, with 95% Wilson intervals.

    Chains are a line in a band; answers are diamonds with bars, drawn slightly apart, so that both can be seen
    where they are equal.

    Args:
        rows: `Accuracy.rows`.
        chance: Share of answers right by always giving the same one; drawn as a dotted line where it is high.
        columns: Panels side by side.
    """
    tasks = in_order(rows)
    fig = panels(tasks, columns)
    for i, task in enumerate(tasks):
        own = [{**row, "hops": row["hops"] or 0} for row in rows if row["task"] == task]
        at = panel_at(i, columns, len(tasks))
        _add_chains(fig, own, at, i == 0)
        _add_answers(fig, own, at, i == 0)
        level = (chance or {}).get(task, 0.0)
        if level >= HIGH_CHANCE:
            fig.add_hline(y=level, line={"color": GREY, "width": 2, "dash": "dot"}, layer="below", **at)
        shown = ticks([row["hops"] for row in own], columns)
        if len(shown) == 1:  # else the axis would end at the two marks, far apart
            fig.update_xaxes(range=[shown[0] - 0.5, shown[0] + 0.5], **at)
        fig.update_xaxes(tickvals=shown, ticktext=[str(h or "?") for h in shown], tickangle=0, showgrid=False, **at)
    fig.update_yaxes(range=[-0.04, 1.04], tickvals=[0, 0.25, 0.5, 0.75, 1], tickformat=".0%")
    return fig


def accuracy_by_label(rows: Sequence[Row], by_label: Sequence[Row]) -> go.Figure:
    """Return the share of right answers of each problem set and of each value of its labels, with 95% intervals.

    Args:
        rows: `Accuracy.rows` of the sets.
        by_label: `Accuracy.by_label`.
    """
    labels: list[str] = []
    shown: list[tuple[str, Row, bool]] = []
    for task in in_order(rows):
        own = [row for row in by_label if row["task"] == task]
        shown += [(f"<b>{safe(title_of(task))}</b>", row, True) for row in rows if row["task"] == task]
        for label in dict.fromkeys(row["label"] for row in own):
            shown += [(_name(label, str(r["value"])), r, False) for r in own if r["label"] == label]
    fig = go.Figure()
    for is_whole, colour, name in ((True, BLUE, "whole sets"), (False, ORANGE, "by label")):
        part = [(i, row) for i, (_, row, whole) in enumerate(shown) if whole is is_whole]
        if part:
            fig.add_trace(_across(part, colour, name))
    labels = [_short(label) for label, _, _ in shown]
    fig.update_yaxes(
        tickvals=list(range(len(labels))), ticktext=labels, range=[len(labels) - 0.5, -0.5], showgrid=False
    )
    fig.update_xaxes(range=[-0.02, 1.02], tickvals=[0, 0.25, 0.5, 0.75, 1], tickformat=".0%")
    margin = {"l": 8, "r": 12, "t": 44, "b": 36}
    fig.update_yaxes(automargin=True)
    fig.update_layout(template=template(), height=_ROW_HEIGHT * len(labels) + 80, legend=LEGEND, margin=margin)
    return fig


def _across(part: Sequence[tuple[int, Row]], colour: str, name: str) -> go.Scatter:
    """Return points with horizontal bars, one per row of a list."""
    rows = [row for _, row in part]
    bars = _bars(rows, "accuracy", [row["low"] for row in rows], [row["high"] for row in rows], colour)
    return go.Scatter(
        x=[row["accuracy"] for row in rows],
        y=[i for i, _ in part],
        mode="markers",
        marker={"size": 8, "color": colour},
        error_x=bars,
        name=name,
        text=[_hover(row) for row in rows],
        hoverinfo="text",
        cliponaxis=False,
    )


def _hover(row: Row) -> str:
    right = round(row["accuracy"] * row["n"])
    text = (
        f"{right} of {row['n']} right ({percent(row['accuracy'])})<br>95% interval: {between(row['low'], row['high'])}"
    )
    apart = {"not read": row.get("n_unread", 0), "cut": row.get("n_cut_answers", 0)}
    return text + "".join(f"<br>{count} {name}" for name, count in apart.items() if count)


def _name(label: str, value: str) -> str:
    """Return "level: 3", and "Level 3" for a value that says of what it is."""
    return safe(value if value.casefold().startswith(label.casefold()) else f"{label}: {value}")


def _short(label: str) -> str:
    return label if len(label) <= _LONGEST_LABEL else label[: _LONGEST_LABEL - 1] + "\u2026"


def _add_chains(fig: go.Figure, rows: Sequence[Row], at: Any, is_first: bool) -> None:
    rows = [row for row in rows if row["exact"] is not None]
    hops, low, high = ([row[key] for row in rows] for key in ("hops", "exact_low", "exact_high"))
    name = "whole chains"
    if len(rows) > 1:  # a band over one hop count has no width
        band = {"x": hops + hops[::-1], "y": high + low[::-1], "fill": "toself", "fillcolor": BLUE}
        quiet = {"opacity": 0.18, "line": {"width": 0}, "mode": "lines", "hoverinfo": "skip", "showlegend": False}
        fig.add_trace(go.Scatter(**band, **quiet, legendgroup=name), **at)
    fig.add_trace(
        go.Scatter(
            mode="lines+markers",
            marker={"size": 7, "color": BLUE},
            line={"color": BLUE, "width": 2},
            error_y=_bars(rows, "exact", low, high, BLUE) if len(rows) == 1 else None,
            **_shared(rows, hops, "exact", name, low, high, is_first),
        ),
        **at,
    )


def _add_answers(fig: go.Figure, rows: Sequence[Row], at: Any, is_first: bool) -> None:
    hops, low, high = ([row[key] for row in rows] for key in ("hops", "low", "high"))
    aside = 0.018 * (max(hops) - min(hops) or 1)
    fig.add_trace(
        go.Scatter(
            mode="markers",
            marker={"size": 8, "color": ORANGE, "symbol": "diamond-open", "line": {"width": 2}},
            error_y=_bars(rows, "accuracy", low, high, ORANGE),
            **_shared(rows, [h + aside for h in hops], "accuracy", "final answers", low, high, is_first),
        ),
        **at,
    )


def _bars(rows: Sequence[Row], key: str, low: list[float], high: list[float], colour: str) -> dict[str, Any]:
    value = [row[key] for row in rows]
    up, down = ([max(0.0, a - b) for a, b in zip(*ends, strict=True)] for ends in ((high, value), (value, low)))
    return {"array": up, "arrayminus": down, "color": colour, "thickness": 1.2, "width": 0}


def _shared(
    rows: Sequence[Row], x: list[float], key: str, name: str, low: list[float], high: list[float], is_first: bool
) -> dict[str, Any]:
    counts = [row.get("n_read", row["n"]) if key == "exact" else row["n"] for row in rows]
    text = [
        f"{name}: {round(row[key] * n)} of {n} right{_at(row)} ({percent(row[key])})<br>95% interval: {between(a, b)}"
        for row, n, a, b in zip(rows, counts, low, high, strict=True)
    ]
    return {
        "x": x,
        "y": [row[key] for row in rows],
        "name": name,
        "legendgroup": name,
        "showlegend": is_first,
        "text": text,
        "hoverinfo": "text",
        "cliponaxis": False,
    }


def _at(row: Row) -> str:
    return f" at {counted(row['hops'], 'hop')}" if row["hops"] else ""
