"""Logit flow and back attention: maps over positions and layers, stages by layer, sweeps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots
from torch import Tensor

from chainwright.figures.theme import BLUE, GREY, ORANGE, TEAL, VIOLET, template
from chainwright.figures.words import safe

_KINDS = ("attention", "FFN")
_STAGES = {
    "A": ("A: FFN at the entity", BLUE),
    "B": ("B: attention at the entity", TEAL),
    "C": ("C: FFN at relation and end", VIOLET),
    "D": ("D: attention at relation and end, and what is written", ORANGE),
}


def flow_map(flow: Tensor, token_strs: Sequence[str]) -> go.Figure:
    """Return two maps, attention and FFN, of the credit at each position and layer.

    Args:
        flow: Credit by step, position, layer and kind, `[S, T, L, 2]`; steps are added up.
        token_strs: The tokens, one a position; positions are numbered where there are none.
    """
    cells = flow.sum(0)
    n_tokens, n_layers = cells.shape[:2]
    labels = [f"{i} {safe(token_strs[i])}" if token_strs else str(i) for i in range(n_tokens)]
    top = float(cells.abs().max()) or 1.0
    fig = make_subplots(1, 2, subplot_titles=_KINDS, shared_yaxes=True, horizontal_spacing=0.06)
    for k, kind in enumerate(_KINDS):
        heat = go.Heatmap(
            z=cells[:, :, k].T.tolist(),
            x=labels,
            y=list(range(n_layers)),
            coloraxis="coloraxis",
            hovertemplate=f"{kind}, layer %{{y}}, %{{x}}: %{{z:+.3f}} nats<extra></extra>",
        )
        fig.add_trace(heat, 1, k + 1)
    fig.update_yaxes(title="layer", dtick=max(1, n_layers // 8), row=1, col=1)
    axis = {"cmin": -top, "cmax": top, "colorbar": {"title": "nats", "thickness": 12}}
    return fig.update_layout(height=120 + 26 * max(n_layers, 6), template=template(), coloraxis=axis)


def stages(credit: Tensor) -> go.Figure:
    """Return the credit of the four stages by layer, `[4, L]`, as lines."""
    fig = go.Figure()
    for (name, colour), row in zip(_STAGES.values(), credit.tolist(), strict=True):
        hover = f"{name}, layer %{{x}}: %{{y:.3f}} nats<extra></extra>"
        fig.add_scatter(y=row, mode="lines+markers", name=name, line={"color": colour}, hovertemplate=hover)
    fig.update_xaxes(title="layer", dtick=max(1, credit.shape[1] // 8))
    fig.update_yaxes(title="credit (nats)")
    return fig.update_layout(height=340, template=template())


def fits(rows: Sequence[Mapping[str, Any]]) -> go.Figure:
    """Return the share of held-out compositions answered, a bar for each way of mending, with a dot for each seed.

    Args:
        rows: With "variant", "held_out", "held_out by seed" and "one hop".
    """
    names = [safe(row["variant"]) for row in rows]
    fig = go.Figure()
    hover = "%{y}: %{x:.1%} of the held-out compositions<extra></extra>"
    fig.add_bar(
        y=names, x=[row["held_out"] for row in rows], orientation="h", name="held-out compositions",
        marker={"color": BLUE}, hovertemplate=hover,
    )  # fmt: skip
    dots = [(safe(row["variant"]), value) for row in rows for value in row.get("held_out by seed", [])]
    fig.add_scatter(
        y=[name for name, _ in dots], x=[value for _, value in dots], mode="markers", name="one seed",
        marker={"color": GREY, "size": 6}, hovertemplate=hover,
    )  # fmt: skip
    fig.add_scatter(
        y=names, x=[row["one hop"] for row in rows], mode="markers", name="single hops",
        marker={"color": ORANGE, "symbol": "diamond", "size": 8},
        hovertemplate="%{y}: %{x:.1%} of the single hops<extra></extra>",
    )  # fmt: skip
    fig.update_xaxes(range=[0, 1.02], tickformat=".0%")
    fig.update_yaxes(autorange="reversed")
    return fig.update_layout(height=110 + 28 * len(rows), template=template())


def readings(right: Sequence[Sequence[float]], positions: Sequence[str], targets: Sequence[int]) -> go.Figure:
    """Return where a back attention reads at the last position: mean weight by depth and position."""
    heat = go.Heatmap(
        z=[list(row) for row in right],
        x=[safe(name) for name in positions],
        y=[f"depth {t}" for t in targets],
        zmin=0,
        zmax=1,
        coloraxis="coloraxis",
        hovertemplate="%{y}, %{x}: %{z:.3f}<extra></extra>",
    )
    axis = {"cmin": 0, "cmax": 1, "colorbar": {"title": "weight", "thickness": 12}}
    return go.Figure(heat).update_layout(height=120 + 40 * len(targets), template=template(), coloraxis=axis)
