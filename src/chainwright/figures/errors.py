"""First errors: of which types they are, at which hops, and how unsure the model was."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

from chainwright._stats import wilson
from chainwright.figures._panels import Row, beside, in_order, list_layout, list_rows, panel_at, panels
from chainwright.figures.theme import BLUE, GREY, ORANGE, TEAL, VIOLET
from chainwright.figures.words import between, counted, percent, safe
from chainwright.tasks import family as family_of

FAMILIES: Mapping[str, str] = {
    "recall": BLUE,
    "computing or copying": ORANGE,
    "fewer or more hops": VIOLET,
    "other": TEAL,
    "cannot be read": GREY,
}
_PATTERNS = ("", "/", ".", "x", "\\", "+")  # types of the same family beside each other
_FEW = 5


def error_types(by_task: Sequence[Row], *, key_share: float | None = None, is_narrow: bool = False) -> go.Figure:
    """Return each type's share of its task's first errors with 95% Wilson intervals, one block per task.

    Key types are in bold and in full colour.

    Args:
        by_task: `ErrorTable.by_task`.
        key_share: The share from which a type is a key type, drawn as a dotted line.
        is_narrow: For narrow pages: only the counts stand beside the bars.
    """
    fig = go.Figure()
    at, labels = list_rows(by_task, is_narrow=is_narrow)
    for family, colour in FAMILIES.items():
        rows = [row for row in by_task if family_of(row["task"], row["error_type"]) == family]
        if rows:
            fig.add_trace(_shares(rows, at, family, colour))
    if key_share is not None:
        fig.add_vline(x=key_share, line={"color": GREY, "width": 1.5, "dash": "dot"}, layer="below")
    said = {
        at[row["task"], row["error_type"]]: f"{row['n']} / {row['n_errors']}"
        if is_narrow
        else f"{row['n']} of {row['n_errors']} ({percent(row['share'])})"
        for row in by_task
    }
    beside(fig, said, "n / all" if is_narrow else "first errors", 48 if is_narrow else 112)
    title = "share of first errors" if is_narrow else "share of the task's first errors"
    fig.update_xaxes(title=title, range=[0, 1.005], tickformat=".0%", dtick=0.5 if is_narrow else 0.25, tickangle=0)
    fig.update_layout(barmode="overlay", showlegend=True)
    return list_layout(fig, labels, room_right=56 if is_narrow else 124, top=62 if is_narrow else 44)


def _shares(rows: Sequence[Row], at: Mapping[tuple[str, str], int], family: str, colour: str) -> go.Bar:
    intervals = [wilson(row["n"], row["n_errors"]) for row in rows]
    ends = {"array": [end.high - row["share"] for row, end in zip(rows, intervals, strict=True)]}
    ends["arrayminus"] = [row["share"] - end.low for row, end in zip(rows, intervals, strict=True)]
    return go.Bar(
        orientation="h",
        x=[row["share"] for row in rows],
        y=[at[row["task"], row["error_type"]] for row in rows],
        name=family,
        marker={"color": colour, "opacity": [1.0 if row["is_key"] else 0.45 for row in rows]},
        error_x={**ends, "color": GREY, "thickness": 1.4, "width": 3},
        hovertext=[
            f"{safe(row['error_type'])}: {row['n']} of {counted(row['n_errors'], 'first error')} "
            f"({percent(row['share'])})<br>95% interval: {between(*end)}"
            for row, end in zip(rows, intervals, strict=True)
        ],
        hoverinfo="text",
        width=0.7,
    )


def errors_by_hops(
    rows: Sequence[Row],
    by_task: Sequence[Row],
    *,
    hops: Mapping[str, Sequence[int]] | None = None,
    columns: int = 4,
) -> go.Figure:
    """Return the share of problems whose first error is of each type against hops, stacked, one panel per task.

    Types of the same family have its colour, and patterns that tell them apart.

    Args:
        rows: `ErrorTable.rows`.
        by_task: `ErrorTable.by_task`, for the order of the types.
        hops: The hop counts of each task that were asked, so that those without an error keep their place.
        columns: Panels side by side.
    """
    tasks = [task for task in hops or {}] or in_order(rows)
    fig = panels(tasks, columns)
    named: set[str] = set()
    for i, task in enumerate(tasks):
        own = [row for row in rows if row["task"] == task]
        counts = sorted({*(hops or {}).get(task, ()), *(row["hops"] for row in own)})
        at = panel_at(i, columns, len(tasks))
        kinds = [str(row["error_type"]) for row in by_task if row["task"] == task]
        for kind in kinds:
            family = family_of(task, kind)
            rank = [k for k in kinds if family_of(task, k) == family].index(kind)
            found = [row for row in own if row["error_type"] == kind]
            fig.add_trace(_stack(found, kind, family, rank, family not in named), **at)
            named.add(family)
        axis = {"type": "category", "categoryorder": "array", "categoryarray": [str(h) for h in counts]}
        fig.update_xaxes(range=[-0.6, len(counts) - 0.4], showgrid=False, **axis, **at)
        if not own:
            _say_none(fig, i)
    fig.update_yaxes(range=[0, 1.04], tickvals=[0, 0.25, 0.5, 0.75, 1], tickformat=".0%")
    fig.update_layout(barmode="stack", bargap=0.3, showlegend=True)
    return fig


def _stack(rows: Sequence[Row], kind: str, family: str, rank: int, is_first: bool) -> go.Bar:
    text = [
        f"{safe(kind)}: {row['n']} of {row['n_traces']} problems at {counted(row['hops'], 'hop')}<br>"
        f"{percent(row['share'])} of the {counted(row['n_errors'], 'error')} there"
        for row in rows
    ]
    pattern = {"shape": _PATTERNS[rank % len(_PATTERNS)], "size": 6, "solidity": 0.35, "fillmode": "replace"}
    return go.Bar(
        x=[str(row["hops"]) for row in rows],
        y=[row["n"] / row["n_traces"] for row in rows],
        name=family,
        legendgroup=family,
        showlegend=is_first,
        hovertext=text,
        hoverinfo="text",
        marker={"color": FAMILIES[family], "line": {"width": 1}, "pattern": pattern},
        legendrank=1 + list(FAMILIES).index(family),
    )


def _say_none(fig: go.Figure, panel: int) -> None:
    number = "" if panel == 0 else str(panel + 1)
    fig.add_annotation(
        text="no errors", showarrow=False, xref=f"x{number} domain", yref=f"y{number} domain", x=0.5, y=0.5, opacity=0.7
    )


def entropy_by_slot(by_task: Sequence[Row], entropy: Sequence[Row], *, is_narrow: bool = False) -> go.Figure:
    """Return the median entropy at first wrong tokens beside that at correct slots of the same type.

    Dots are medians, bars their 95% intervals (from six tokens on). Medians of fewer than five tokens are pale.

    Args:
        by_task: `ErrorTable.by_task`, for the order of the types.
        entropy: `ErrorTable.entropy`.
        is_narrow: For narrow pages.
    """
    fig = go.Figure()
    found = {(row["task"], row["error_type"]): row for row in entropy}
    order = {(row["task"], row["error_type"]): row for row in by_task}
    known = [{**found[key], "is_key": row["is_key"]} for key, row in order.items() if key in found]
    at, labels = list_rows(known, is_narrow=is_narrow)
    pairs = [row for row in known if row["entropy_right"] is not None]
    _add_medians(fig, pairs, at, "right")
    _add_medians(fig, known, at, "wrong")
    said = {at[row["task"], row["error_type"]]: f"{row['n_wrong']:,} / {row['n_right']:,}" for row in known}
    beside(fig, said, "n" if is_narrow else "n wrong / right", 64 if is_narrow else 104)
    ends = ("entropy_right", "entropy_wrong", "right_high", "wrong_high")
    most = max((row.get(key) or 0.0 for row in known for key in ends), default=0.0) or 1.0
    fig.update_xaxes(title="median entropy (nats)", range=[-0.02 * most, 1.04 * most], nticks=4 if is_narrow else 8)
    return list_layout(fig, labels, room_right=72 if is_narrow else 112, top=62 if is_narrow else 44)


def _add_medians(fig: go.Figure, rows: Sequence[Row], at: Mapping[tuple[str, str], int], side: str) -> None:
    colour, symbol = (BLUE, "circle-open") if side == "right" else (ORANGE, "circle")
    aside = 0.14 if side == "right" else -0.14
    value = [row[f"entropy_{side}"] for row in rows]
    fig.add_scatter(
        mode="markers",
        name="at correct slots of the same type" if side == "right" else "at the first wrong token",
        x=value,
        y=[at[row["task"], row["error_type"]] + aside for row in rows],
        marker={
            "color": colour,
            "size": 9,
            "symbol": symbol,
            "line": {"width": 2, "color": colour},
            "opacity": [1.0 if row[f"n_{side}"] >= _FEW else 0.4 for row in rows],
        },
        error_x=_spread(rows, side, value, colour),
        text=[_median_said(row, side) for row in rows],
        hoverinfo="text",
        cliponaxis=False,
    )


def _spread(rows: Sequence[Row], side: str, value: list[float], colour: str) -> dict[str, Any]:
    high, low = ([row.get(f"{side}_{end}") for row in rows] for end in ("high", "low"))
    up = [None if end is None else end - v for end, v in zip(high, value, strict=True)]
    down = [None if end is None else v - end for end, v in zip(low, value, strict=True)]
    return {"array": up, "arrayminus": down, "color": colour, "thickness": 1.4, "width": 3}


def _median_said(row: Row, side: str) -> str:
    said = f"{row[f'entropy_{side}']:.3f} nats, median of {counted(row[f'n_{side}'], f'{side} token')}"
    if row.get(f"{side}_low") is None:
        return f"{said}<br>too few for an interval"
    return f"{said}<br>95% interval: {row[f'{side}_low']:.3f} to {row[f'{side}_high']:.3f}"
