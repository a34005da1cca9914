"""Figures of steps: the step map with its layers, and step measures of right and wrong traces by layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots
from torch import Tensor

from chainwright.figures._panels import LEGEND
from chainwright.figures.theme import BLUE, GREY, ORANGE, template
from chainwright.figures.words import safe

DECADES = 4  # what is weaker than the largest entry by more than this is drawn as if it were that weak
"""How many decades of a step map are drawn apart; what is weaker than that is drawn as if it were just that weak."""
_TITLES = {
    "lock_in": "Lock-in: on itself and the step before",
    "reach": "Reach: on older steps and the question",
    "on_question": "On the question",
}
_SIDES = {"right": (BLUE, "solid", "circle"), "wrong": (ORANGE, "dash", "diamond")}


def log_map(values: Tensor) -> Tensor:
    """Return maps in decades, `DECADES` for their largest entry and at least 0; NaN where causality hides the pair.

    Args:
        values: `[L, S, S]`, not negative.
    """
    top = float(values.max()) or 1.0
    found = (values.double() / top).clamp(min=10.0**-DECADES).log10() + DECADES
    n = values.shape[-1]
    return found.masked_fill(values.new_ones(n, n).triu(1).bool(), float("nan"))


def segment_borders(segments: Sequence[str]) -> list[int]:
    """Return the first step of each segment but the first."""
    return [i for i in range(1, len(segments)) if segments[i] != segments[i - 1]]


def step_map(values: Tensor, segments: Sequence[str]) -> go.Figure:
    """Return step maps with a slider over layers; layer 0 is shown first.

    Args:
        values: `[L, S, S]`.
        segments: The segment of each step; borders are drawn where it changes.
    """
    logs, fig = log_map(values), go.Figure()
    names = [f"step {i} ({safe(name)})" for i, name in enumerate(segments)]
    for layer, square in enumerate(logs):
        fig.add_heatmap(
            z=[[None if v != v else round(v, 2) for v in row] for row in square.tolist()],
            text=[[f"{one} from {other}: {v:.3g}" for other, v in zip(names, row, strict=True)]
                  for one, row in zip(names, values[layer].tolist(), strict=True)],
            hovertemplate="%{text}<extra></extra>",
            hoverongaps=False,
            visible=layer == 0,
            coloraxis="coloraxis",
        )  # fmt: skip
    n = len(segments)
    for at in segment_borders(segments):
        line = {"color": GREY, "width": 1.5}
        fig.add_shape(type="line", x0=at - 0.5, x1=at - 0.5, y0=at - 0.5, y1=n - 0.5, line=line)
        fig.add_shape(type="line", x0=-0.5, x1=at - 0.5, y0=at - 0.5, y1=at - 0.5, line=line)
    slides = [
        {"label": str(layer), "method": "restyle", "args": ["visible", [i == layer for i in range(len(logs))]]}
        for layer in range(len(logs))
    ]
    ticks = list(range(DECADES + 1))
    bar = {"tickvals": ticks, "ticktext": [_share_of_largest(t) for t in ticks], "thickness": 12, "title": "influence"}
    fig.update_xaxes(title="draws on step", showgrid=False)
    fig.update_yaxes(title="step", autorange="reversed", showgrid=False)
    return fig.update_layout(
        height=560,
        template=template(),
        coloraxis={"cmin": 0, "cmax": DECADES, "colorbar": bar},
        sliders=[{"steps": slides, "active": 0, "currentvalue": {"prefix": "layer "}, "pad": {"t": 50}}],
    )


def _share_of_largest(decades: int) -> str:
    said = "largest" if decades == DECADES else f"1/{10 ** (DECADES - decades):,}"
    return said if decades else f"under {said}"


def step_curves(rows: Sequence[Mapping[str, Any]], *, columns: int = 3) -> go.Figure:
    """Return means of right and of wrong traces against layers with their intervals, one panel per measure.

    Args:
        rows: One per measure, layer and side ("right", "wrong"): `mean`, and `low` and `high`, which may be None.
        columns: Panels side by side.
    """
    names = list(dict.fromkeys(str(row["measure"]) for row in rows))
    n_columns = max(1, min(columns, len(names)))
    n_rows = max(1, ceil(len(names) / n_columns))
    titles = [_TITLES.get(name, safe(name)) for name in names]
    fig = make_subplots(
        n_rows,
        n_columns,
        subplot_titles=titles,
        horizontal_spacing=0.07,
        vertical_spacing=0.12 if n_rows > 1 else 0,
    )
    fig.update_annotations(font={"size": 13, "weight": 600})
    for i, name in enumerate(names):
        for side in _SIDES:
            own = [row for row in rows if row["measure"] == name and row["side"] == side]
            fig.add_trace(_curve(side, own, is_first=i == 0), row=i // n_columns + 1, col=i % n_columns + 1)
    fig.update_xaxes(title={"text": "layer", "standoff": 4}, dtick=_every(rows), range=_ends(rows))
    fig.update_yaxes(range=[-0.03, 1.03], tickformat=".0%")
    margin = {"l": 46, "r": 12, "t": 76, "b": 46}
    return fig.update_layout(template=template(), height=230 * n_rows + 120, legend=LEGEND, margin=margin)


def _every(rows: Sequence[Mapping[str, Any]]) -> int:
    """Return how far the ticks of the layers lie apart."""
    return max(1, ceil(_deepest(rows) / 8))


def _ends(rows: Sequence[Mapping[str, Any]]) -> list[float]:
    return [-0.3, _deepest(rows) + 0.3]


def _deepest(rows: Sequence[Mapping[str, Any]]) -> int:
    return max((int(row["layer"]) for row in rows), default=0)


def _curve(side: str, rows: Sequence[Mapping[str, Any]], *, is_first: bool) -> go.Scatter:
    colour, dash, symbol = _SIDES[side]
    ends = [[0.0 if row[end] is None else abs(row[end] - row["mean"]) for row in rows] for end in ("high", "low")]
    shift = 0.06 if side == "wrong" else -0.06
    return go.Scatter(
        x=[row["layer"] + shift for row in rows],
        y=[row["mean"] for row in rows],
        error_y={"type": "data", "array": ends[0], "arrayminus": ends[1], "thickness": 1.4, "width": 3},
        name=f"{side} traces",
        legendgroup=side,
        showlegend=is_first,
        mode="lines+markers",
        line={"color": colour, "dash": dash, "width": 2},
        marker={"symbol": symbol, "size": 7},
        text=[_said(row) for row in rows],
        hovertemplate="%{text}<extra></extra>",
    )


def _said(row: Mapping[str, Any]) -> str:
    between = "" if row["low"] is None else f" ({row['low']:.0%} to {row['high']:.0%})"
    return f"{row['side']}, layer {row['layer']}: {row['mean']:.0%}{between}, n {row['n']}"
