"""Ways of decoding beside each other: shares right, paired gains, curves over hops, and thresholds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import plotly.graph_objects as go

from chainwright._stats import wilson
from chainwright.figures._panels import LEGEND, Row, in_order, panel_at, panels, ticks
from chainwright.figures.theme import BLUE, GREY, ORANGE, TEAL, VIOLET, template
from chainwright.figures.words import between, counted, percent, safe

_ROW_HEIGHT = 30
SHOWN = 6  # lines of a panel that can be distinguished; the others are switched on in the legend
"""Lines of a panel that can be told apart; the others are switched on in the legend."""
_COLOURS = (BLUE, ORANGE, TEAL, VIOLET)
_STYLES = (("solid", "circle"), ("dash", "square"), ("dot", "diamond"))


class _Measure(NamedTuple):
    """One of the two things that are counted: its keys in a row, and how it is drawn."""

    name: str
    share: str
    gain: str
    colour: str
    symbol: str
    aside: float


_CHAINS = _Measure("whole chains", "exact", "exact_gain", BLUE, "circle", -0.14)
_ANSWERS = _Measure("final answers", "accuracy", "gain", ORANGE, "diamond-open", 0.14)


def ways_compared(rows: Sequence[Row], baseline: str, *, is_narrow: bool = False) -> go.Figure:
    """Return shares right by way with 95% Wilson intervals and, beside them, paired gains with bootstrap intervals.

    Args:
        rows: One per way, as `Comparison.rows` has them over all tasks, in the order of the list.
        baseline: The way that the gains are over; it has none of its own.
        is_narrow: For narrow pages: gains below the shares.
    """
    fig = go.Figure()
    others = [(i, row) for i, row in enumerate(rows) if row["name"] != baseline]
    for measure in (_CHAINS, _ANSWERS):
        fig.add_trace(_shares(rows, measure))
        fig.add_trace(_gains(others, measure, baseline))
    if all(row["exact"] is None for row in rows):
        fig.data[0].name = "whole chains (unknown)"
    _lay_out(fig, [safe(str(row["name"])) for row in rows], baseline, is_narrow)
    return fig.update_layout(xaxis2_range=_gain_range([row for _, row in others]))


def _gain_range(rows: Sequence[Row]) -> list[float]:
    """Return the ends of the axis of gains: all intervals and 0, and five points to each side at least."""
    keys = [f"{measure.gain}_{end}" for measure in (_CHAINS, _ANSWERS) for end in ("low", "high")]
    ends = [row[key] for row in rows for key in keys if row[key] is not None]
    low, high = min([-0.05, *ends]), max([0.05, *ends])
    return [low - 0.04 * (high - low), high + 0.04 * (high - low)]


def _shares(rows: Sequence[Row], measure: _Measure) -> go.Scatter:
    places = [i for i, row in enumerate(rows) if row[measure.share] is not None]
    rows = [rows[i] for i in places]
    share = [row[measure.share] for row in rows]
    counts = [_n_of(row, measure) for row in rows]
    ends = [wilson(round(s * n), n) for s, n in zip(share, counts, strict=True)]
    text = [
        f"{safe(str(row['name']))}: {measure.name} right in {round(s * n)} of {n} ({percent(s)})<br>"
        f"95% interval: {between(*end)}"
        for row, s, n, end in zip(rows, share, counts, ends, strict=True)
    ]
    return _dots(share, places, [e.low for e in ends], [e.high for e in ends], text, measure, "x")


def _n_of(row: Row, measure: _Measure) -> int:
    """Return of how many a row's share is: whole chains only of those that were read."""
    return int(row.get("n_read", row["n"]) if measure is _CHAINS else row["n"])


def _gains(rows: Sequence[tuple[int, Row]], measure: _Measure, baseline: str) -> go.Scatter:
    key = measure.gain
    rows = [(i, row) for i, row in rows if row[key] is not None]
    gain, low, high = ([row[name] for _, row in rows] for name in (key, f"{key}_low", f"{key}_high"))
    text = [
        f"{safe(str(row['name']))}: {100 * row[key]:+.1f} points of {measure.name} over {safe(baseline)}<br>"
        f"95% interval: {100 * row[f'{key}_low']:+.1f} to {100 * row[f'{key}_high']:+.1f}; whole chains: {_moved(row)}"
        for _, row in rows
    ]
    return _dots(gain, [i for i, _ in rows], low, high, text, measure, "x2")


def _moved(row: Row) -> str:
    return "unknown" if row["n_fixed"] is None else f"{row['n_fixed']} fixed, {row['n_broken']} broken"


def _dots(
    x: list[float], y: list[int], low: list[float], high: list[float], text: list[str], measure: _Measure, axis: str
) -> go.Scatter:
    bars = {
        "array": [max(0.0, h - v) for h, v in zip(high, x, strict=True)],
        "arrayminus": [max(0.0, v - b) for b, v in zip(low, x, strict=True)],
    }
    return go.Scatter(
        mode="markers",
        name=measure.name,
        legendgroup=measure.name,
        showlegend=axis == "x",
        x=x,
        y=[place + measure.aside for place in y],
        xaxis=axis,
        yaxis=axis.replace("x", "y"),
        marker={
            "size": 8,
            "color": measure.colour,
            "symbol": measure.symbol,
            "line": {"width": 2, "color": measure.colour},
        },
        error_x={**bars, "color": measure.colour, "thickness": 1.4, "width": 3},
        text=text,
        hoverinfo="text",
        cliponaxis=False,
    )


def _lay_out(fig: go.Figure, names: list[str], baseline: str, is_narrow: bool) -> None:
    n = len(names)
    rows = _ROW_HEIGHT * n + 20
    margin = {"l": 10, "r": 18, "t": 62 if is_narrow else 40, "b": 50}
    gap, tick = (76, 0.5) if is_narrow else (0, 0.25)
    drawn = 2 * rows + gap if is_narrow else rows
    lower = rows / drawn if is_narrow else 1.0
    shared = {"range": [n - 0.4, -0.6], "tickvals": list(range(n)), "ticktext": names, "showgrid": False}
    fig.update_layout(
        template=template(),
        height=drawn + margin["t"] + margin["b"],
        margin=margin,
        legend=LEGEND,
        xaxis={"title": "share right", "range": [-0.02, 1.02], "tickformat": ".0%", "dtick": tick, "anchor": "y"},
        yaxis={**shared, "ticklabelstandoff": 6, "anchor": "x"},
        xaxis2={
            "title": f"gain over {safe(baseline)}",
            "tickformat": "+.0%",
            "nticks": 5,
            "tickangle": 0,
            "anchor": "y2",
        },
        yaxis2={**shared, "ticklabelstandoff": 6, "anchor": "x2", "showticklabels": is_narrow},
    )
    if is_narrow:
        fig.update_layout(yaxis_domain=[1 - lower, 1], yaxis2_domain=[0, lower])
    else:
        fig.update_layout(xaxis_domain=[0, 0.47], xaxis2_domain=[0.53, 1])
    zero = {"x0": 0, "x1": 0, "y0": 0, "y1": 1, "xref": "x2", "yref": "y2 domain"}
    fig.add_shape(type="line", line={"color": GREY, "width": 1.5}, layer="below", **zero)


def hop_curves(rows: Sequence[Row], baseline: str, *, of: str = "chains", columns: int = 4) -> go.Figure:
    """Return shares right against hops, one panel per task and one line per way, with 95% Wilson intervals.

    Beside the baseline, which is grey, the first five ways are drawn; the others wait in the legend for a click.

    Args:
        rows: One per (task, hops, way), as in `Comparison.rows`.
        baseline: The way that the others are compared with.
        of: Whether "chains" or "answers" are counted.
        columns: Panels side by side.
    """
    measure = _CHAINS if of == "chains" else _ANSWERS
    tasks, names = in_order(rows), list(dict.fromkeys(str(row["name"]) for row in rows))
    fig = panels(tasks, columns)
    for i, task in enumerate(tasks):
        at = panel_at(i, columns, len(tasks))
        own = [row for row in rows if row["task"] == task]
        hops = sorted({row["hops"] for row in own})
        step = (0.011 if columns > 2 else 0.022) * ((hops[-1] - hops[0]) or 1)
        for k, name in enumerate(names):
            aside = step * (min(k, SHOWN) - min(len(names), SHOWN) / 2)
            line = _curve([row for row in own if row["name"] == name], name, k, name == baseline, measure, aside)
            line.update(showlegend=i == 0, visible=True if k < SHOWN else "legendonly")
            fig.add_trace(line, **at)
        shown = ticks(hops, columns)
        fig.update_xaxes(tickvals=shown, ticktext=[str(h) for h in shown], tickangle=0, showgrid=False, **at)
    fig.update_yaxes(range=[-0.04, 1.04], tickvals=[0, 0.25, 0.5, 0.75, 1], tickformat=".0%")
    # a line of the legend holds about this many names
    more = 20 * (len(names) // (7 if columns > 2 else 2))
    return fig.update_layout(height=fig.layout.height + more, margin_t=fig.layout.margin.t + more)


def _curve(
    rows: Sequence[Row], name: str, place: int, is_baseline: bool, measure: _Measure, aside: float
) -> go.Scatter:
    colour = GREY if is_baseline else _COLOURS[(place - 1) % len(_COLOURS)]
    dash, symbol = ("solid", "circle") if is_baseline else _STYLES[(place - 1) // len(_COLOURS) % len(_STYLES)]
    rows = [row for row in rows if row[measure.share] is not None]
    share = [row[measure.share] for row in rows]
    counts = [_n_of(row, measure) for row in rows]
    ends = [wilson(round(s * n), n) for s, n in zip(share, counts, strict=True)]
    return go.Scatter(
        mode="lines+markers",
        name=safe(name),
        legendgroup=name,
        x=[row["hops"] + aside for row in rows],
        y=share,
        line={"color": colour, "width": 2.4 if is_baseline else 1.8, "dash": dash},
        marker={"size": 6, "color": colour, "symbol": symbol},
        error_y={
            "array": [max(0.0, e.high - s) for e, s in zip(ends, share, strict=True)],
            "arrayminus": [max(0.0, s - e.low) for e, s in zip(ends, share, strict=True)],
            "color": colour,
            "thickness": 0.8,
            "width": 0,
        },
        text=[
            f"{safe(name)}: {measure.name} right in {round(s * n)} of {n} at "
            f"{counted(row['hops'], 'hop')} ({percent(s)})<br>95% interval: {between(*end)}"
            for row, s, n, end in zip(rows, share, counts, ends, strict=True)
        ],
        hoverinfo="text",
        cliponaxis=False,
    )


def threshold_curves(rows: Sequence[Row], *, columns: int = 2) -> go.Figure:
    """Return what an entropy threshold gives: precision, recall and share of flagged tokens, and the gain in chains.

    Args:
        rows: One per threshold, or per threshold and `decision` at flagged tokens: `tau` (nats), `precision`, `recall`,
            `flagged`, and `gain` with its 95% interval `low` and `high`.
        columns: 2 for panels side by side, 1 for one below the other.
    """
    from plotly.subplots import make_subplots

    at = [{"row": 1, "col": 1}, {"row": 1, "col": 2} if columns > 1 else {"row": 2, "col": 1}]
    titles = ("Flags", "Gain in whole chains right")
    fig = make_subplots(3 - columns, columns, subplot_titles=titles, horizontal_spacing=0.1, vertical_spacing=0.3)
    fig.update_annotations(font={"size": 13.5, "weight": 600})
    decided: dict[str, list[Row]] = {}
    for row in rows:
        decided.setdefault(str(row.get("decision", "gain")), []).append(row)
    flags = next(iter(decided.values()))  # the same tokens are flagged whatever is done there
    tau = [row["tau"] for row in flags]
    for key, colour, symbol in (("precision", BLUE, "circle"), ("recall", ORANGE, "diamond"), ("flagged", GREY, "x")):
        name = "flagged tokens" if key == "flagged" else key
        fig.add_trace(_line(tau, [row[key] for row in flags], name, colour, symbol), **at[0])
    for k, (name, own) in enumerate(decided.items()):
        fig.add_trace(_gain_line(own, safe(name), k, (max(tau) - min(tau)) or 1.0), **at[1])
    fig.add_hline(y=0, line={"color": GREY, "width": 1.5}, layer="below", **at[1])
    fig.update_xaxes(title="tau (nats)", tickvals=tau)
    fig.update_yaxes(tickformat=".0%", rangemode="tozero", **at[0])
    fig.update_yaxes(tickformat="+.0%", **at[1])
    margin = {"l": 50, "r": 12, "t": 84 if columns == 1 else 62, "b": 46}
    height = 260 * (3 - columns) + margin["t"]
    return fig.update_layout(template=template(), height=height, legend=LEGEND, margin=margin)


def _gain_line(rows: Sequence[Row], name: str, k: int, width: float) -> Any:
    colour, symbol = (TEAL, VIOLET, ORANGE, BLUE)[k % 4], ("circle", "square", "diamond")[k // 4 % 3]
    line = _line([row["tau"] + 0.012 * k * width for row in rows], [row["gain"] for row in rows], name, colour, symbol)
    line.error_y = {
        "array": [max(0.0, row["high"] - row["gain"]) for row in rows],
        "arrayminus": [max(0.0, row["gain"] - row["low"]) for row in rows],
        **{"color": colour, "thickness": 1.4, "width": 3},
    }
    line.hovertemplate = f"{name}: %{{y:+.3f}} at tau %{{text}} nats<extra></extra>"
    line.text = [f"{row['tau']:g}" for row in rows]
    return line


def _line(x: Sequence[float], y: Sequence[float], name: str, colour: str, symbol: str) -> Any:
    return go.Scatter(
        mode="lines+markers",
        name=name,
        x=list(x),
        y=list(y),
        line={"color": colour, "width": 2},
        marker={"size": 7, "symbol": symbol},
        hovertemplate=f"{name}: %{{y:.3f}} at tau %{{x}} nats<extra></extra>",
    )
