"""Right answers and right chains against hops."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

from chainwright.figures._panels import Row, in_order, panel_at, panels, ticks
from chainwright.figures.theme import BLUE, GREY, ORANGE
from chainwright.figures.words import between, counted, percent

HIGH_CHANCE = 0.3


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
