"""Colours of the figures: one template for light pages and one for dark ones.

The colours of lines and bars are middle tones that read on both grounds, so that a page changes its theme by changing
the template alone. No scale pairs red with green.
"""

from __future__ import annotations

from collections.abc import Sequence

import plotly.graph_objects as go

BLUE, ORANGE, TEAL, VIOLET, GREY = "#3d7fc1", "#d7742b", "#2f9c95", "#8c6cc0", "#8b929c"
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"

_GROUNDS = {
    "light": {
        "ground": "#ffffff",
        "ink": "#2b3038",
        "grid": "#e6e8ec",
        "label": "#ffffff",
        "diverging": ["#1d5fa8", "#8fbbe3", "#f7f7f7", "#efb083", "#b2500f"],
        "sequential": ["#f7f8f8", "#a5d3cd", "#3c9d97", "#0f5c5b"],
    },
    "dark": {
        "ground": "#1c2027",
        "ink": "#d8dde4",
        "grid": "#323843",
        "label": "#2a303a",
        "diverging": ["#8cc4ff", "#3f75ad", "#272c35", "#ad6430", "#ffb27a"],
        "sequential": ["#272c35", "#24605f", "#33a199", "#a4ece2"],
    },
}


def template(ground: str = "light") -> go.layout.Template:
    """Return the template for a "light" or a "dark" ground."""
    colours = _GROUNDS[ground]
    axis = {
        "gridcolor": colours["grid"],
        "linecolor": colours["grid"],
        "zeroline": False,
        "ticks": "",
        "automargin": True,
        "title": {"standoff": 8, "font": {"size": 12}},
    }
    layout = {
        "font": {"family": FONT, "size": 13, "color": colours["ink"]},
        "paper_bgcolor": colours["ground"],
        "plot_bgcolor": colours["ground"],
        "colorway": [BLUE, ORANGE, TEAL, VIOLET, GREY],
        "colorscale": {
            "diverging": _even(colours["diverging"]),
            "sequential": _even(colours["sequential"]),
            "sequentialminus": _even(colours["diverging"][:3]),
        },
        "hoverlabel": {
            "bgcolor": colours["label"],
            "bordercolor": GREY,
            "align": "left",
            "font": {"family": FONT, "size": 13, "color": colours["ink"]},
        },
        "xaxis": axis,
        "yaxis": axis,
        "annotationdefaults": {"showarrow": False},
    }
    border = {"marker": {"line": {"color": colours["ground"]}}}
    return go.layout.Template(layout=layout, data={"bar": [go.Bar(border)]})


def _even(colours: Sequence[str]) -> list[tuple[float, str]]:
    """Return colours as a scale with equal steps."""
    return [(round(i / (len(colours) - 1), 4), colour) for i, colour in enumerate(colours)]
