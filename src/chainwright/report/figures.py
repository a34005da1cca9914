"""Every figure of the report as a function that returns a Plotly figure, for notebooks too. None is ever shown.

Accuracy and errors are small panels, one a task; heads are one map a measurement. A figure's text is escaped: error
types and titles may come from elsewhere.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from math import ceil
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from chainwright.diagnose import ErrorTable
from chainwright.evaluation import Accuracy
from chainwright.report._head_maps import MAPS, HeadMap, head_map
from chainwright.report.theme import BLUE, GREY, ORANGE, VIOLET, template
from chainwright.report.words import HIGH_CHANCE, counted, percent, title_of
from chainwright.tasks import UNPARSED

__all__ = ["MAPS", "HeadMap", "accuracy_by_hops", "entropy_by_slot", "error_types", "errors_by_hops", "head_map"]

Row = Mapping[str, Any]

FAMILIES = {"recall": BLUE, "computing or copying": ORANGE, "fewer or more hops": VIOLET, "cannot be read": GREY}
_PANEL_HEIGHT, _PANEL_GAP, _ROW_HEIGHT = 150, 84, 25
_FEW = 5
_LEGEND = {"orientation": "h", "x": 0, "xref": "container", "y": 1, "yref": "container", "yanchor": "top"}


def accuracy_by_hops(accuracy: Accuracy, *, chance: Mapping[str, float] | None = None, columns: int = 4) -> go.Figure:
    """Return right answers and right chains against hops, a panel a task, with 95% Wilson bands.

    Args:
        accuracy: From `evaluate`.
        chance: Share of answers right by always giving the same one; drawn as a dotted line where it is high.
        columns: Panels side by side.
    """
    tasks = _in_order(accuracy.rows)
    fig = _panels(tasks, columns)
    for i, task in enumerate(tasks):
        rows = [row for row in accuracy.rows if row["task"] == task]
        at = _cell(i, columns, len(tasks))
        _add_series(fig, rows, ("accuracy", "low", "high"), "final answers", ORANGE, at, i == 0)
        _add_series(fig, rows, ("exact", "exact_low", "exact_high"), "whole chains", BLUE, at, i == 0)
        level = (chance or {}).get(task, 0.0)
        if level >= HIGH_CHANCE:
            fig.add_hline(y=level, line={"color": GREY, "width": 2, "dash": "dot"}, layer="below", **at)
        fig.update_xaxes(tickvals=_ticks([row["hops"] for row in rows], columns), tickangle=0, showgrid=False, **at)
    fig.update_yaxes(range=[-0.04, 1.04], tickvals=[0, 0.25, 0.5, 0.75, 1], tickformat=".0%")
    return fig


def _ticks(hops: Sequence[int], columns: int) -> list[int]:
    """Return the hop counts whose labels have room, the most hops always among them."""
    room = (0.09 if columns > 2 else 0.17) * (max(hops) - min(hops))
    kept: list[int] = []
    for count in sorted(hops, reverse=True):
        if not kept or kept[-1] - count >= room:
            kept.append(count)
    return kept[::-1]


def _add_series(
    fig: go.Figure, rows: Sequence[Row], keys: tuple[str, str, str], name: str, colour: str, at: Any, is_first: bool
) -> None:
    hops = [row["hops"] for row in rows]
    value, low, high = ([row[key] for row in rows] for key in keys)
    text = [
        f"{name}: {percent(v)} of {row['n']} at {counted(row['hops'], 'hop')}<br>95%: {percent(a)} to {percent(b)}"
        for row, v, a, b in zip(rows, value, low, high, strict=True)
    ]
    shared = {"x": hops, "y": value, "name": name, "legendgroup": name, "text": text, "hoverinfo": "text"}
    marker = {"size": 7, "color": colour, "symbol": "circle" if keys[0] == "exact" else "diamond-open"}
    line = {"color": colour, "width": 2, "dash": "solid" if keys[0] == "exact" else "dot"}
    errors = None
    if len(rows) == 1:  # a band over one hop count has no width
        errors = {"array": [high[0] - value[0]], "arrayminus": [value[0] - low[0]], "color": colour, "thickness": 1.5}
    else:
        band = {"x": hops + hops[::-1], "y": high + low[::-1], "fill": "toself", "fillcolor": colour}
        quiet = {"opacity": 0.16, "line": {"width": 0}, "mode": "lines", "hoverinfo": "skip", "showlegend": False}
        fig.add_trace(go.Scatter(**band, **quiet, legendgroup=name), **at)
    points = {"mode": "lines+markers", "marker": marker, "line": line, "error_y": errors, "showlegend": is_first}
    fig.add_trace(go.Scatter(**shared, **points), **at)


def errors_by_hops(
    errors: ErrorTable, *, hops: Mapping[str, Sequence[int]] | None = None, columns: int = 4
) -> go.Figure:
    """Return the share of problems whose first error is of each type against hops, stacked, a panel a task.

    Args:
        errors: From `first_errors`.
        hops: The hop counts of each task that were asked, so that those without an error keep their place.
        columns: Panels side by side.
    """
    tasks = [task for task in hops or {}] or _in_order(errors.rows)
    fig = _panels(tasks, columns)
    named: set[str] = set()
    for i, task in enumerate(tasks):
        rows = [row for row in errors.rows if row["task"] == task]
        counts = sorted({*(hops or {}).get(task, ()), *(row["hops"] for row in rows)})
        at = _cell(i, columns, len(tasks))
        for kind in _kinds(errors, task):
            family = family_of(kind)
            found = [row for row in rows if row["error_type"] == kind]
            fig.add_trace(_stack(found, kind, family, family not in named), **at)
            named.add(family)
        axis = {"type": "category", "categoryorder": "array", "categoryarray": [str(h) for h in counts]}
        fig.update_xaxes(range=[-0.6, len(counts) - 0.4], showgrid=False, **axis, **at)
        if not rows:
            _say_none(fig, i)
    fig.update_yaxes(range=[0, 1.04], tickvals=[0, 0.25, 0.5, 0.75, 1], tickformat=".0%")
    fig.update_layout(barmode="stack", bargap=0.3, showlegend=True)
    return fig


def _stack(rows: Sequence[Row], kind: str, family: str, is_first: bool) -> go.Bar:
    text = [
        f"{_safe(kind)}: {row['n']} of {row['n_traces']} problems at {counted(row['hops'], 'hop')}<br>"
        f"{percent(row['share'])} of the {counted(row['n_errors'], 'error')} there"
        for row in rows
    ]
    return go.Bar(
        x=[str(row["hops"]) for row in rows],
        y=[row["n"] / row["n_traces"] for row in rows],
        name=family,
        legendgroup=family,
        showlegend=is_first,
        hovertext=text,
        hoverinfo="text",
        marker={"color": FAMILIES[family], "line": {"width": 1}},
        legendrank=1 + list(FAMILIES).index(family),
    )


def _say_none(fig: go.Figure, panel: int) -> None:
    number = "" if panel == 0 else str(panel + 1)
    fig.add_annotation(
        text="no errors", showarrow=False, xref=f"x{number} domain", yref=f"y{number} domain", x=0.5, y=0.5, opacity=0.7
    )


def error_types(errors: ErrorTable, *, room: float = 0.22) -> go.Figure:
    """Return how many first errors are of each type, a block a task; key types are in bold and in full colour.

    Args:
        errors: From `first_errors`.
        room: Space for the label of the longest bar, as a share of the bar; narrow figures need more.
    """
    fig = go.Figure()
    at, labels = _list_rows(errors.by_task)
    for family, colour in FAMILIES.items():
        rows = [row for row in errors.by_task if family_of(row["error_type"]) == family]
        if not rows:
            continue
        fig.add_bar(
            orientation="h",
            x=[row["n"] for row in rows],
            y=[at[row["task"], row["error_type"]] for row in rows],
            name=family,
            marker={"color": colour, "opacity": [1.0 if row["is_key"] else 0.45 for row in rows]},
            text=[f"{row['n']} ({percent(row['share'])})" for row in rows],
            hovertext=[f"{_safe(r['error_type'])}: {r['n']} of {r['n_errors']} first errors" for r in rows],
            hoverinfo="text",
            width=0.78,
            textposition="outside",
            cliponaxis=False,
        )
    most = max((row["n"] for row in errors.by_task), default=1)
    fig.update_xaxes(title="first errors", range=[0, (1 + room) * most], dtick=_whole_step(most * (1 + 2 * room)))
    fig.update_layout(barmode="overlay", showlegend=True)
    return _list_layout(fig, labels)


def _whole_step(most: float) -> int:
    """Return a round distance between ticks of counts, with six of them at most."""
    return next(step for step in (1, 2, 5, 10, 20, 50, 100, 200, 500, 10**6) if most <= 6 * step)


def entropy_by_slot(errors: ErrorTable) -> go.Figure:
    """Return the median entropy at first wrong tokens beside that at like slots where the model was right.

    Medians of fewer than five tokens are pale.
    """
    fig = go.Figure()
    order = {(row["task"], row["error_type"]): row for row in errors.by_task}
    found = {(row["task"], row["error_type"]): row for row in errors.entropy}
    listed = [found[key] | {"is_key": row["is_key"]} for key, row in order.items() if key in found]
    at, labels = _list_rows(listed)
    pairs = [row for row in listed if row["entropy_right"] is not None]
    ends = {"mode": "lines", "line": {"color": GREY, "width": 2}, "hoverinfo": "skip", "showlegend": False}
    for row in pairs:
        y = at[row["task"], row["error_type"]]
        fig.add_scatter(x=[row["entropy_right"], row["entropy_wrong"]], y=[y, y], **ends)
    _add_medians(fig, pairs, at, "right", BLUE, "circle-open")
    _add_medians(fig, listed, at, "wrong", ORANGE, "circle")
    most = max((row[key] or 0.0 for row in listed for key in ("entropy_right", "entropy_wrong")), default=0.0) or 1.0
    fig.update_xaxes(title="median entropy (nats)", range=[-0.015 * most, 1.06 * most])
    return _list_layout(fig, labels)


def _add_medians(
    fig: go.Figure, rows: Sequence[Row], at: Mapping[tuple[str, str], int], side: str, colour: str, symbol: str
) -> None:
    opacity = [1.0 if row[f"n_{side}"] >= _FEW else 0.4 for row in rows]
    line = {"width": 2, "color": colour}
    fig.add_scatter(
        mode="markers",
        name="at like slots, right" if side == "right" else "at the first wrong token",
        x=[row[f"entropy_{side}"] for row in rows],
        y=[at[row["task"], row["error_type"]] for row in rows],
        marker={"color": colour, "size": 10, "symbol": symbol, "line": line, "opacity": opacity},
        text=[f"{row[f'entropy_{side}']:.3f} nats, median of {row[f'n_{side}']:,} {side} tokens" for row in rows],
        hoverinfo="text",
        cliponaxis=False,
    )


def family_of(kind: str) -> str:
    """Return the family that an error type belongs to, which gives it its colour."""
    if kind == UNPARSED:
        return "cannot be read"
    if kind.endswith("hops"):
        return "fewer or more hops"
    return "recall" if "recall" in kind else "computing or copying"


def _in_order(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(str(row["task"]) for row in rows))


def _kinds(errors: ErrorTable, task: str) -> list[str]:
    return [str(row["error_type"]) for row in errors.by_task if row["task"] == task]


def _safe(text: str) -> str:
    return html.escape(text, quote=False)


def _panels(tasks: Sequence[str], columns: int) -> go.Figure:
    """Return an empty figure with a titled panel a task, all with the same y axis."""
    n_columns = max(1, min(columns, len(tasks)))
    n_rows = max(1, ceil(len(tasks) / n_columns))
    drawn = _PANEL_HEIGHT * n_rows + _PANEL_GAP * (n_rows - 1)
    fig = make_subplots(
        n_rows,
        n_columns,
        shared_yaxes=True,
        subplot_titles=[_safe(title_of(task)) for task in tasks],
        horizontal_spacing=0.04 if n_columns > 2 else 0.07,
        vertical_spacing=_PANEL_GAP / drawn if n_rows > 1 else 0.0,
    )
    fig.update_annotations(font={"size": 13.5, "weight": 600})
    fig.update_xaxes(title={"text": "hops", "standoff": 4})
    top = 62 if n_columns > 2 else 84  # narrow pages need two lines for the legend
    margin = {"l": 46, "r": 12, "t": top, "b": 46}
    fig.update_layout(template=template(), height=drawn + top + 46, legend=_LEGEND, margin=margin)
    return fig


def _cell(i: int, columns: int, n: int) -> dict[str, int]:
    wide = max(1, min(columns, n))
    return {"row": i // wide + 1, "col": i % wide + 1}


def _list_rows(rows: Sequence[Row]) -> tuple[dict[tuple[str, str], int], list[str]]:
    """Return the place of each (task, type) in a list with a heading a task, and the labels of the list."""
    at: dict[tuple[str, str], int] = {}
    labels: list[str] = []
    for task in _in_order(rows):
        labels.append(f"<b>{_safe(title_of(task))}</b>")
        for row in rows:
            if row["task"] == task:
                at[task, row["error_type"]] = len(labels)
                kind = _safe(row["error_type"])
                labels.append(f"<b>{kind}</b> ◆" if row["is_key"] else kind)
    return at, labels


def _list_layout(fig: go.Figure, labels: list[str]) -> go.Figure:
    n = len(labels)
    height = _ROW_HEIGHT * n + 96
    fig.update_yaxes(
        tickvals=list(range(n)), ticktext=labels, range=[n - 0.4, -0.8], showgrid=False, ticklabelstandoff=6
    )
    fig.update_layout(template=template(), height=height, legend=_LEGEND, margin={"l": 10, "r": 12, "t": 40, "b": 46})
    return fig
