"""The value of a response's prefixes along its tokens, with the fall that is not made good."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

from chainwright.figures.theme import BLUE, GREY, ORANGE, template
from chainwright.figures.words import safe


def value_along(rows: Sequence[Mapping[str, Any]], marks: Mapping[str, Any], *, is_narrow: bool = False) -> go.Figure:
    """Return the share of continuations that end right against the number of tokens that they continue.

    Args:
        rows: One per measured prefix, shortest first: `position` (tokens of the response), `token` (its last one),
            `value`, `low` and `high`, `n`.
        marks: `ends` of the steps, and the `fall` as [low, high] or None, in tokens of the response.
        is_narrow: Whether the page is narrow.
    """
    fig = go.Figure()
    for end in marks["ends"]:
        fig.add_vline(x=end, line={"color": GREY, "width": 1, "dash": "dot"}, opacity=0.35)
    if marks["fall"] is not None:
        low, high = marks["fall"]
        fig.add_vrect(x0=low, x1=high, fillcolor=ORANGE, opacity=0.3, line_width=0)
        where = f"token {high}" if high - low == 1 else f"tokens {low + 1}-{high}"
        fig.add_annotation(
            x=high, y=1.06, yref="paper", text=f"falls at {where}", showarrow=False, font={"color": ORANGE}
        )
    values = [row["value"] for row in rows]
    fig.add_scatter(
        x=[row["position"] for row in rows],
        y=values,
        mode="lines+markers",
        line={"color": BLUE, "width": 2},
        marker={"size": 7},
        error_y={
            "type": "data",
            "symmetric": False,
            "array": [row["high"] - row["value"] for row in rows],
            "arrayminus": [row["value"] - row["low"] for row in rows],
            "thickness": 1,
            "width": 3,
        },
        text=[_said(row) for row in rows],
        hovertemplate="%{text}<extra></extra>",
        showlegend=False,
    )
    fig.update_xaxes(title="tokens of the response", rangemode="tozero", showgrid=False)
    fig.update_yaxes(title="share that ends right", range=[-0.04, 1.04])
    margin = {"l": 46, "r": 12, "t": 40, "b": 46}
    return fig.update_layout(height=280 if is_narrow else 320, margin=margin, template=template())


def _said(row: Mapping[str, Any]) -> str:
    last = f" up to {safe(repr(row['token']))}" if row["token"] else ", the question alone"
    spent = f"{row['n']} continuations" if row["n"] else "known without continuations"
    return f"{row['position']} tokens{last}<br>{row['value']:.2f} ({row['low']:.2f}-{row['high']:.2f}), {spent}"
