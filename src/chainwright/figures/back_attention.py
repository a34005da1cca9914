"""Back attention: what each variant reaches, sweeps, where the module reads, the conflict before and after."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots
from torch import Tensor

from chainwright.figures._panels import LEGEND
from chainwright.figures.flow import depth_names
from chainwright.figures.theme import BLUE, GREY, ORANGE, TEAL, template
from chainwright.figures.words import safe


def fits(rows: Sequence[Mapping[str, Any]]) -> go.Figure:
    """Return the share of held-out compositions answered, a bar per variant, with a dot for each seed.

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
        hovertemplate="%{y}: %{x:.1%} of the single hops<extra></extra>", cliponaxis=False,
    )  # fmt: skip
    fig.update_xaxes(range=[0, 1.02], tickformat=".0%", dtick=0.25)
    fig.update_yaxes(autorange="reversed", showgrid=False)
    margin = {"t": 62, "l": 10, "r": 14, "b": 36}
    return fig.update_layout(height=110 + 26 * len(rows), template=template(), legend=LEGEND, margin=margin)


def sweep(points: Sequence[Mapping[str, Any]], title: str) -> go.Figure:
    """Return the share of held-out compositions and of single hops against a setting, with a dot for each seed.

    Args:
        points: With "at" (the setting), "held_out", "held_out by seed" and "one hop", in the order of the setting.
        title: What the setting is.
    """
    at = [str(point["at"]) for point in points]
    fig = go.Figure()
    for key, name, colour in (("held_out", "held-out compositions", BLUE), ("one hop", "single hops", ORANGE)):
        fig.add_scatter(
            x=at, y=[point[key] for point in points], mode="lines+markers", name=name, line={"color": colour},
            hovertemplate=f"{safe(title)} %{{x}}: %{{y:.1%}} of the {name}<extra></extra>", cliponaxis=False,
        )  # fmt: skip
    dots = [(str(point["at"]), value) for point in points for value in point.get("held_out by seed", [])]
    fig.add_scatter(
        x=[x for x, _ in dots], y=[value for _, value in dots], mode="markers", name="one seed",
        marker={"color": GREY, "size": 6}, hovertemplate="one seed: %{y:.1%}<extra></extra>", cliponaxis=False,
    )  # fmt: skip
    fig.update_xaxes(title=safe(title), type="category")
    fig.update_yaxes(range=[0, 1.02], tickformat=".0%")
    return fig.update_layout(
        height=320, template=template(), legend=LEGEND, margin={"t": 62, "l": 52, "r": 14, "b": 46}
    )


def readings(
    groups: Mapping[str, Sequence[Sequence[float]]],
    positions: Sequence[str],
    targets: Sequence[int],
    *,
    is_narrow: bool = False,
) -> go.Figure:
    """Return where a back attention reads at the last position, a map for each group of questions.

    Args:
        groups: Mean weight by depth and position, by name of the group.
        positions: Names of the positions.
        targets: The depths that are read.
        is_narrow: One map below the other, for narrow pages.
    """
    shape = (len(groups), 1) if is_narrow else (1, len(groups))
    panel, gap = 50 + 40 * len(targets), 62
    fig = make_subplots(
        *shape, subplot_titles=list(map(safe, groups)), shared_yaxes=not is_narrow, horizontal_spacing=0.06,
        vertical_spacing=gap / (panel * shape[0] + gap * (shape[0] - 1)) if shape[0] > 1 else 0,
    )  # fmt: skip
    for k, (group, rows) in enumerate(groups.items()):
        heat = go.Heatmap(
            z=[list(row) for row in rows],
            x=[safe(name) for name in positions],
            y=[f"depth {t}" for t in targets],
            coloraxis="coloraxis",
            xgap=1,
            ygap=1,
            texttemplate="%{z:.2f}" if len(positions) <= 8 else None,
            hovertemplate=f"{safe(group)}<br>%{{y}}, %{{x}}: weight %{{z:.3f}}<extra></extra>",
        )
        fig.add_trace(heat, k + 1 if is_narrow else 1, 1 if is_narrow else k + 1)
    fig.update_xaxes(showgrid=False)
    fig.update_yaxes(showgrid=False)
    bar = {"title": {"text": "weight"}, "thickness": 12, "outlinewidth": 0}
    axis = {"cmin": 0, "cmax": 1, "colorbar": bar}
    margin = {"t": 40, "l": 10, "r": 10, "b": 30}
    height = 70 + panel * shape[0] + gap * (shape[0] - 1)
    return fig.update_layout(height=height, template=template(), coloraxis=axis, margin=margin)


def position_curves(groups: Mapping[str, Tensor], positions: Sequence[str], *, is_narrow: bool = False) -> go.Figure:
    """Return one token's log-probability less another's by depth, a panel for each position.

    Args:
        groups: Mean over questions by name of the curve, each `[T, D]`, nats; at most four.
        positions: Names of the positions.
        is_narrow: Two panels a row, for narrow pages.
    """
    columns = min(2 if is_narrow else 4, len(positions))
    n_rows = -(-len(positions) // columns)
    n_depths = next(iter(groups.values())).shape[1]
    fig = make_subplots(n_rows, columns, subplot_titles=list(map(safe, positions)), shared_yaxes="all",
                        horizontal_spacing=0.04, vertical_spacing=0.22 if n_rows > 1 else 0)  # fmt: skip
    depths = depth_names(n_depths)
    for k in range(len(positions)):
        for (name, curve), colour in zip(groups.items(), (GREY, TEAL, ORANGE, BLUE), strict=False):
            fig.add_scatter(
                y=curve[k].tolist(), mode="lines+markers", name=safe(name), legendgroup=name, showlegend=k == 0,
                text=depths, line={"color": colour}, marker={"size": 4}, row=k // columns + 1, col=k % columns + 1,
                hovertemplate=f"<b>{safe(positions[k])}</b>, {safe(name)}<br>%{{text}}: %{{y:+.2f}} nats"
                "<extra></extra>",
            )  # fmt: skip
    n_layers = (n_depths - 1) // 2
    ticks = list(range(2, n_depths, 2 * max(1, n_layers // 4)))
    fig.update_xaxes(tickvals=[0, *ticks], ticktext=["emb.", *(str(t // 2 - 1) for t in ticks)])
    fig.update_xaxes(title="after layer", row=n_rows)
    fig.update_yaxes(zeroline=True, zerolinecolor=GREY)
    fig.update_yaxes(title="nats", col=1)
    margin = {"t": 70, "l": 52, "r": 12, "b": 46}
    return fig.update_layout(height=120 + 190 * n_rows, template=template(), legend=LEGEND, margin=margin)
