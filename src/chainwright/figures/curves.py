"""Lines over depth, and tables for what has no figure of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go
from torch import Tensor

from chainwright.figures.theme import BLUE, GREY, template
from chainwright.figures.words import safe

_MOST_ROWS = 200


def lens_by_depth(logprob: Tensor, points: Sequence[str]) -> go.Figure:
    """Return the log-probability of each context's token against depth, thin, and their mean, thick.

    Args:
        logprob: `[N, P]`, nats.
        points: What each of the P columns is.
    """
    fig = go.Figure()
    at = list(range(len(points)))
    if len(logprob) > 1:
        for i, row in enumerate(logprob.tolist()):
            quiet = {"line": {"color": GREY, "width": 1}, "opacity": 0.5, "showlegend": i == 0}
            hover = f"context {i}, %{{text}}: %{{y:.3f}} nats<extra></extra>"
            fig.add_scatter(x=at, y=row, name="one context", text=list(points), hovertemplate=hover, **quiet)
    fig.add_scatter(
        x=at,
        y=logprob.mean(0).tolist(),
        mode="lines+markers",
        name=f"mean of {len(logprob)}",
        line={"color": BLUE, "width": 2.5},
        text=list(points),
        hovertemplate="mean, %{text}: %{y:.3f} nats<extra></extra>",
    )
    step = max(1, len(points) // 12)
    fig.update_xaxes(title="depth", tickvals=at[::step], ticktext=list(points)[::step])
    fig.update_yaxes(title="log-probability (nats)")
    return fig.update_layout(height=360, template=template())


def table_of(columns: Mapping[str, Sequence[Any]]) -> go.Figure:
    """Return a table as a figure, of its first 200 rows at most.

    Args:
        columns: The values of each column.
    """
    cells = [[_said(value) for value in list(values)[:_MOST_ROWS]] for values in columns.values()]
    header = {"values": [f"<b>{safe(name)}</b>" for name in columns], "align": "left"}
    fig = go.Figure(go.Table(header=header, cells={"values": cells, "align": "left"}))
    n_rows = len(cells[0]) if cells else 0
    return fig.update_layout(
        height=90 + 22 * min(n_rows, 24), margin={"l": 8, "r": 8, "t": 8, "b": 8}, template=template()
    )


def _said(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else safe(str(value))
