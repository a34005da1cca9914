"""How sure a model was along responses, right ones against wrong ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from chainwright.figures._panels import LEGEND
from chainwright.figures.theme import BLUE, GREY, ORANGE, template

_TITLES = {"entropy": "Entropy (nats per token)", "logprob": "Log-probability (nats per token)"}
_LOOKS = {"right": (BLUE, "solid"), "wrong": (ORANGE, "dash"), "all": (GREY, "solid")}
_ANSWER_AT = 1.07  # the answer's own place, right of the end of the response


def outcome_curves(rows: Sequence[Mapping[str, Any]], *, columns: int = 2) -> go.Figure:
    """Return a panel per measure: each group's mean along the response with its interval, and at the answer.

    Args:
        rows: As `Curves.rows`.
        columns: Panels side by side.
    """
    measures = list(dict.fromkeys(str(row["measure"]) for row in rows))
    n_columns = max(1, min(columns, len(measures)))
    n_rows = max(1, ceil(len(measures) / n_columns))
    gap = 0.24 if n_rows > 1 else 0.0
    fig = make_subplots(
        n_rows,
        n_columns,
        subplot_titles=[_TITLES[name] for name in measures],
        horizontal_spacing=0.08,
        vertical_spacing=gap,
    )
    fig.update_annotations(font={"size": 13, "weight": 600})
    for i, measure in enumerate(measures):
        where = {"row": i // n_columns + 1, "col": i % n_columns + 1}
        for group in _LOOKS:
            own = [row for row in rows if row["measure"] == measure and row["group"] == group]
            for drawn in _group(group, own, is_first=i == 0) if own else ():
                fig.add_trace(drawn, **where)
    ticks = [0, 0.25, 0.5, 0.75, _ANSWER_AT]
    names = ["0%", "25%", "50%", "75%", "answer"]
    fig.update_xaxes(title={"text": "place in the response", "standoff": 4}, tickvals=ticks, ticktext=names)
    fig.update_xaxes(range=[-0.02, _ANSWER_AT + 0.05], showgrid=False, tickangle=0)
    margin = {"l": 46, "r": 12, "t": 76, "b": 46}
    return fig.update_layout(template=template(), height=260 * n_rows + 110, legend=LEGEND, margin=margin)


def _group(group: str, rows: Sequence[Mapping[str, Any]], *, is_first: bool) -> list[go.Scatter]:
    colour, dash = _LOOKS[group]
    along = [row for row in rows if row["start"] is not None]
    at = [(row["start"] + row["end"]) / 2 for row in along]
    name = "all responses" if group == "all" else f"{group} answers"
    drawn = []
    banded = [row for row in along if row["low"] is not None]
    if banded:
        inside = [(row["start"] + row["end"]) / 2 for row in banded]
        band = {"line": {"width": 0}, "hoverinfo": "skip", "showlegend": False, "legendgroup": group, "mode": "lines"}
        drawn.append(go.Scatter(x=inside, y=[row["low"] for row in banded], **band))
        fill = f"rgba({', '.join(str(int(colour[k : k + 2], 16)) for k in (1, 3, 5))}, 0.16)"
        drawn.append(go.Scatter(x=inside, y=[row["high"] for row in banded], fill="tonexty", fillcolor=fill, **band))
    drawn.append(
        go.Scatter(
            x=at, y=[row["mean"] for row in along], name=name, legendgroup=group, showlegend=is_first, mode="lines",
            line={"color": colour, "dash": dash, "width": 2}, text=[_said(row) for row in along],
            hovertemplate="%{text}<extra></extra>",
        )
    )  # fmt: skip
    if answer := next((row for row in rows if row["place"] == "answer"), None):
        drawn.append(_at_answer(group, answer, colour))
    return drawn


def _at_answer(group: str, row: Mapping[str, Any], colour: str) -> go.Scatter:
    error = None
    if row["low"] is not None:
        ends = {"array": [row["high"] - row["mean"]], "arrayminus": [row["mean"] - row["low"]]}
        error = {"type": "data", "thickness": 1.4, "width": 3, **ends}
    shift = {"right": -0.012, "wrong": 0.012}.get(group, 0.0)
    return go.Scatter(
        x=[_ANSWER_AT + shift], y=[row["mean"]], error_y=error, mode="markers", legendgroup=group, showlegend=False,
        marker={"color": colour, "size": 8, "symbol": "diamond" if group == "wrong" else "circle"},
        text=[_said(row)], hovertemplate="%{text}<extra></extra>",
    )  # fmt: skip


def _said(row: Mapping[str, Any]) -> str:
    between = "" if row["low"] is None else f" ({row['low']:.3f} to {row['high']:.3f})"
    return f"{row['group']}, {row['place']}: {row['mean']:.3f}{between} nats, n {row['n']}"
