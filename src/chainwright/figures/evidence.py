"""What silencing each of a few heads fixes and breaks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go

from chainwright._stats import wilson
from chainwright.figures._panels import LEGEND, Row, beside
from chainwright.figures.theme import BLUE, ORANGE, template
from chainwright.figures.words import between, head_name, percent

_ROW_HEIGHT = 30
_KINDS = (
    ("n_fixed", "n_erroneous", "failing contexts fixed", BLUE, "circle", -0.13),
    ("n_broken", "n_correct", "right contexts broken", ORANGE, "diamond-open", 0.13),
)


def fixed_and_broken(rows: Sequence[Row], *, is_narrow: bool = False) -> go.Figure:
    """Return the share of failing contexts that each head fixes when silenced, and of right ones that it breaks.

    Bars are 95% Wilson intervals.

    Args:
        rows: One per head: `layer`, `head`, `n_erroneous`, `n_fixed`, `n_correct` and `n_broken`.
        is_narrow: For narrow pages.
    """
    fig = go.Figure()
    for done, among, name, colour, symbol, aside in _KINDS:
        places = [i for i, row in enumerate(rows) if row[among]]
        fig.add_trace(_dots([rows[i] for i in places], [i + aside for i in places], done, among, name, colour, symbol))
    said = {
        i: f"{row['n_fixed']}/{row['n_erroneous']}, {row['n_broken']}/{row['n_correct']}" for i, row in enumerate(rows)
    }
    beside(fig, said, "fixed, broken", 104, title_at=-0.8)
    labels = [head_name((row["layer"], row["head"])) for row in rows]
    fig.update_yaxes(tickvals=list(range(len(rows))), ticktext=labels, range=[len(rows) - 0.4, -1.1], showgrid=False)
    fig.update_xaxes(title="share", range=[-0.01, 1.01], tickformat=".0%", dtick=0.5 if is_narrow else 0.25)
    margin = {"l": 10, "r": 112, "t": 62 if is_narrow else 44, "b": 46}
    height = _ROW_HEIGHT * len(rows) + margin["t"] + margin["b"] + 20
    return fig.update_layout(template=template(), height=height, legend=LEGEND, margin=margin, showlegend=True)


def _dots(rows: Sequence[Row], y: list[float], done: str, among: str, name: str, colour: str, symbol: str) -> Any:
    share = [row[done] / row[among] for row in rows]
    ends = [wilson(row[done], row[among]) for row in rows]
    bars = {"array": [end.high - s for end, s in zip(ends, share, strict=True)]}
    bars["arrayminus"] = [s - end.low for end, s in zip(ends, share, strict=True)]
    return go.Scatter(
        mode="markers",
        name=name,
        x=share,
        y=y,
        marker={"size": 9, "color": colour, "symbol": symbol, "line": {"width": 2, "color": colour}},
        error_x={**bars, "color": colour, "thickness": 1.4, "width": 3},
        text=[
            f"{head_name((row['layer'], row['head']))}: {row[done]} of {row[among]} {name} ({percent(s)})<br>"
            f"95% interval: {between(*end)}"
            for row, s, end in zip(rows, share, ends, strict=True)
        ],
        hoverinfo="text",
        cliponaxis=False,
    )
