"""Figures of iteration heads: how a circuit forms, what it looks at, how tasks help each other, which heads do it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil
from typing import Any, NamedTuple

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from chainwright.figures.theme import BLUE, ORANGE, TEAL, template
from chainwright.figures.words import head_name, safe, title_of

_TOP = 8  # heads a ranking shows
_LEGEND = {"orientation": "h", "x": 0, "xref": "container", "y": 1, "yref": "container", "yanchor": "top"}
_CURVES = {
    "exact": ("exact sequences", BLUE),
    "end_of_input": ("end-of-input head", ORANGE),
    "diagonal": ("diagonal head", TEAL),
}


class Run(NamedTuple):
    """One training: what is drawn of it against steps, by name; gaps are None."""

    label: str
    steps: Sequence[int]
    curves: Mapping[str, Sequence[float | None]]


class HeatMap(NamedTuple):
    """Attention of one head, a square of numbers for each checkpoint, and the place of the entries that count."""

    title: str
    values: Sequence[Sequence[Sequence[float]]]


class Ranked(NamedTuple):
    """The heads of one panel, best first: (layer, head), score, mean and standard deviation when shuffled."""

    title: str
    heads: Sequence[tuple[int, int]]
    score: Sequence[float]
    null_mean: Sequence[float]
    null_sd: Sequence[float]


def emergence_curves(groups: Mapping[str, Sequence[Run]], *, columns: int = 3) -> go.Figure:
    """Return accuracy and both head scores against steps: one panel per group, one thin line per training.

    Args:
        groups: Trainings by what the panel is called.
        columns: Panels side by side.
    """
    fig = _panels(list(groups), columns, "training steps")
    for i, runs in enumerate(groups.values()):
        at = _at(i, columns)
        for run in runs:
            for name, (said, colour) in _CURVES.items():
                if name in run.curves:
                    _line(fig, run, name, said, colour, at, is_first=i == 0 and run is runs[0])
    return fig


def transfer_curves(after: Sequence[Run], scratch: Sequence[Run], task: str) -> go.Figure:
    """Return the exact share against steps on a task: after another task, and from scratch."""
    fig = go.Figure()
    for name, runs, colour in (("after another task", after, BLUE), ("from scratch", scratch, ORANGE)):
        for run in runs:
            _line(fig, run, "exact", name, colour, {}, is_first=run is runs[0])
    fig.update_xaxes(title=f"steps on {safe(task)}")
    fig.update_yaxes(title="exact sequences", range=[-0.03, 1.03], tickformat=".0%")
    return fig.update_layout(height=360, template=template(), legend=_LEGEND, margin={"t": 48, "b": 46})


def exact_by_length(lines: Mapping[str, tuple[Sequence[int], Sequence[float]]]) -> go.Figure:
    """Return the exact share against length, one line per training.

    Args:
        lines: Lengths and exact shares by what the line is called.
    """
    fig = go.Figure()
    for i, (name, (lengths, exact)) in enumerate(lines.items()):
        fig.add_scatter(
            x=list(lengths),
            y=list(exact),
            name=safe(name),
            mode="lines+markers",
            line={"dash": "dot" if i % 2 else "solid"},
            hovertemplate=f"{safe(name)}, length %{{x}}: %{{y:.0%}}<extra></extra>",
        )
    fig.update_xaxes(title="length of the input")
    fig.update_yaxes(title="exact sequences", range=[-0.03, 1.03], tickformat=".0%")
    return fig.update_layout(height=400, template=template(), legend=_LEGEND, margin={"t": 84, "b": 46})


def circuit_maps(
    maps: Sequence[HeatMap], steps: Sequence[int], tokens: Sequence[str], *, columns: int = 2
) -> go.Figure:
    """Return attention maps side by side, with a slider over checkpoints; the last one is shown first.

    Args:
        maps: One per head.
        steps: Training steps of the checkpoints.
        tokens: The token at each position.
        columns: Maps side by side.
    """
    n_columns = min(columns, len(maps))
    n_rows = ceil(len(maps) / n_columns)
    fig = make_subplots(n_rows, n_columns, subplot_titles=[safe(one.title) for one in maps], horizontal_spacing=0.1)
    places = list(range(len(tokens)))
    for c in range(len(steps)):
        for i, one in enumerate(maps):
            fig.add_heatmap(
                z=one.values[c],
                x=places,
                y=places,
                coloraxis="coloraxis",
                visible=c == len(steps) - 1,
                hovertemplate="from %{y} to %{x}: %{z:.2f}<extra></extra>",
                row=i // n_columns + 1,
                col=i % n_columns + 1,
            )
    fig.update_xaxes(title="looks at", tickangle=0, **_ticks(tokens, 8 if n_columns > 1 else 12))
    fig.update_yaxes(title="position", autorange="reversed", **_ticks(tokens, 14))
    colours = {"cmin": 0, "cmax": 1, "colorbar": {"title": "attention", "thickness": 12}}
    slider = {"steps": _slides(len(maps), steps), "active": len(steps) - 1, "currentvalue": {"prefix": "step "}}
    return fig.update_layout(
        height=(430 if n_columns > 1 else 360) * n_rows + 90,
        template=template(),
        coloraxis=colours,
        sliders=[{**slider, "pad": {"t": 56}}],
    )


def head_ranking(panels: Sequence[Ranked], *, columns: int = 4) -> go.Figure:
    """Return the best heads of each panel as bars, with what shuffled steps give as a mark with two deviations."""
    fig = _panels([one.title for one in panels], columns, "attention", height=210)
    for i, one in enumerate(panels):
        names = [head_name(head) for head in one.heads[:_TOP]]
        shared: dict[str, Any] = {"y": names, "legendgroup": "", **_at(i, columns)}
        fig.add_bar(
            x=list(one.score[:_TOP]),
            orientation="h",
            name="score",
            showlegend=i == 0,
            marker={"color": TEAL},
            hovertemplate="%{y}: %{x:.2f}<extra></extra>",
            **shared,
        )
        fig.add_scatter(
            x=list(one.null_mean[:_TOP]),
            error_x={"type": "data", "array": [2 * sd for sd in one.null_sd[:_TOP]], "color": ORANGE},
            mode="markers",
            marker={"color": ORANGE, "symbol": "line-ns-open", "size": 11, "line": {"width": 2}},
            name="steps shuffled",
            showlegend=i == 0,
            hovertemplate="%{y}, steps shuffled: %{x:.2f}<extra></extra>",
            **shared,
        )
    fig.update_xaxes(range=[0, 1.02])
    return fig.update_yaxes(autorange="reversed", range=None, tickformat=None, type="category")


def _ticks(tokens: Sequence[str], room: int) -> dict[str, Any]:
    """Return labels for as many positions as there is room for."""
    every = max(1, ceil(len(tokens) / room))
    shown = range(0, len(tokens), every)
    return {"tickvals": list(shown), "ticktext": [safe(tokens[i]) for i in shown], "showgrid": False}


def _slides(n_maps: int, steps: Sequence[int]) -> list[dict[str, Any]]:
    """Return one step of the slider for each checkpoint, which shows its maps and hides all others."""
    return [
        {
            "label": str(step),
            "method": "restyle",
            "args": ["visible", [at == c for at in range(len(steps)) for _ in range(n_maps)]],
        }
        for c, step in enumerate(steps)
    ]


def _panels(titles: Sequence[str], columns: int, x_title: str, *, height: int = 220) -> go.Figure:
    n_columns = max(1, min(columns, len(titles)))
    n_rows = max(1, ceil(len(titles) / n_columns))
    gap = 84
    drawn = height * n_rows + gap * (n_rows - 1)
    fig = make_subplots(
        n_rows,
        n_columns,
        subplot_titles=[safe(title_of(title)) for title in titles],
        horizontal_spacing=0.08,
        vertical_spacing=gap / drawn if n_rows > 1 else 0.0,
    )
    fig.update_annotations(font={"size": 13.5, "weight": 600})
    fig.update_xaxes(title={"text": x_title, "standoff": 4})
    fig.update_yaxes(range=[-0.03, 1.03], tickformat=".0%")
    margin = {"l": 46, "r": 12, "t": 84, "b": 46}
    return fig.update_layout(template=template(), height=drawn + 130, legend=_LEGEND, margin=margin)


def _at(i: int, columns: int) -> dict[str, int]:
    return {"row": i // columns + 1, "col": i % columns + 1}


def _line(fig: go.Figure, run: Run, name: str, said: str, colour: str, at: Any, *, is_first: bool) -> None:
    fig.add_trace(
        go.Scatter(
            x=list(run.steps),
            y=list(run.curves[name]),
            name=said,
            legendgroup=said,
            showlegend=is_first,
            mode="lines",
            line={"color": colour, "width": 1.8},
            opacity=0.85,
            hovertemplate=f"{safe(run.label)}, {said}, step %{{x}}: %{{y:.2f}}<extra></extra>",
        ),
        **at,
    )
