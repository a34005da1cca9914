"""Logit flow: maps over positions and layers, stages by layer, right against conflicting token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import plotly.graph_objects as go
import torch
from plotly.subplots import make_subplots
from torch import Tensor

from chainwright.figures._panels import LEGEND
from chainwright.figures.theme import BLUE, GREY, ORANGE, TEAL, VIOLET, template
from chainwright.figures.words import safe

KINDS = ("attention", "FFN")
_COLOURS = (BLUE, TEAL, VIOLET, ORANGE, GREY)
_MOST_CURVES, _MOST_NAMES, _LONG = 6, 40, 14


def flow_map(
    flow: Tensor,
    token_strs: Sequence[str],
    words: Sequence[Sequence[Sequence[str]]] | None = None,
    *,
    is_narrow: bool = False,
) -> go.Figure:
    """Return two maps, attention and FFN, of the credit at each position and layer.

    Colours go with the root of the credit, since a few cells have most of it; the bar and the hover text say nats.

    Args:
        flow: Credit by step, position, layer and kind, `[S, T, L, 2]`; steps are added up.
        token_strs: The tokens, one a position; positions are numbered where there are none.
        words: What each cell writes, as text by position, layer and kind.
        is_narrow: One map below the other, for narrow pages.
    """
    cells = flow.sum(0)
    n_tokens, n_layers = cells.shape[:2]
    top = float(cells.abs().max()) or 1.0
    shape = (2, 1) if is_narrow else (1, 2)
    fig = make_subplots(
        *shape, subplot_titles=KINDS, shared_yaxes=not is_narrow, shared_xaxes=is_narrow, horizontal_spacing=0.04,
        vertical_spacing=0.14,
    )  # fmt: skip
    for k in range(len(KINDS)):
        heat = go.Heatmap(
            z=_root(cells[:, :, k].T).tolist(),
            text=[[_cell_said(cells, t, i, k, token_strs, words) for t in range(n_tokens)] for i in range(n_layers)],
            coloraxis="coloraxis",
            xgap=1 if n_tokens <= _MOST_NAMES else 0,
            ygap=1,
            hovertemplate="%{text}<extra></extra>",
        )
        fig.add_trace(heat, k + 1 if is_narrow else 1, 1 if is_narrow else k + 1)
    every = max(1, -(-n_tokens // (_MOST_NAMES // 2 if is_narrow else _MOST_NAMES)))
    shown = list(range(0, n_tokens, every))
    names = [_short(token_strs[t]) if token_strs else str(t) for t in shown]
    fig.update_xaxes(tickvals=shown, ticktext=names, tickangle=-45 if n_tokens > 6 or is_narrow else 0, showgrid=False)
    fig.update_yaxes(dtick=max(1, n_layers // 8), showgrid=False)
    for row in range(shape[0]):
        fig.update_yaxes(title="layer", row=row + 1, col=1)
    marks = torch.tensor([-1, -0.25, 0, 0.25, 1]) * top
    bar = {"title": {"text": "nats"}, "thickness": 12, "outlinewidth": 0, "tickvals": _root(marks).tolist(),
           "ticktext": [f"{mark:+.2g}" if mark else "0" for mark in marks.tolist()]}  # fmt: skip
    axis = {"cmin": -(top**0.5), "cmax": top**0.5, "colorbar": bar}
    height = (110 + 24 * max(n_layers, 6)) * shape[0]
    margin = {"t": 44, "r": 10, "l": 52, "b": 56}
    return fig.update_layout(height=height, template=template(), coloraxis=axis, margin=margin)


def _root(values: Tensor) -> Tensor:
    return values.sign() * values.abs().sqrt()


def _cell_said(
    cells: Tensor,
    position: int,
    layer: int,
    k: int,
    token_strs: Sequence[str],
    words: Sequence[Sequence[Sequence[str]]] | None,
) -> str:
    token = f": {safe(token_strs[position])}" if token_strs else ""
    writes = safe(words[position][layer][k]) if words else ""
    where = f"<b>{KINDS[k]}, layer {layer}</b><br>position {position}{token}"
    nats = f"<br>{float(cells[position, layer, k]):+.3f} nats"
    return where + nats + (f"<br>writes {writes}" if writes else "")


def _short(name: str) -> str:
    return safe(name if len(name) <= _LONG else name[: _LONG - 1] + "…")


def stages(
    credit: Mapping[str, Tensor], marks: Sequence[str] = ("entity", "relation"), *, is_narrow: bool = False
) -> go.Figure:
    """Return the credit of the four stages and of all other positions by layer, a panel for each set of queries.

    Args:
        credit: `[5, L]` by name of the set, nats; the last row is that of all other positions.
        marks: What the two marked kinds of position are called.
        is_narrow: A panel a row, for narrow pages.
    """
    first, second = map(safe, marks)
    names = (f"A: FFN, {first}", f"B: attention, {first}", f"C: FFN, {second} and end",
             f"D: attention, {second} and end", "elsewhere")  # fmt: skip
    columns = 1 if is_narrow else min(2, len(credit))
    n_rows = -(-len(credit) // columns)
    panel, gap = 190, 70
    titles = [safe(name) for name in credit] if len(credit) > 1 else None
    fig = make_subplots(
        n_rows, columns, subplot_titles=titles, shared_yaxes="all",
        horizontal_spacing=0.05, vertical_spacing=gap / (panel * n_rows + gap * (n_rows - 1)) if n_rows > 1 else 0,
    )  # fmt: skip
    for k, rows in enumerate(credit.values()):
        for name, colour, row in zip(names, _COLOURS, rows.tolist(), strict=True):
            fig.add_scatter(
                y=row, mode="lines+markers", name=name, legendgroup=name, showlegend=k == 0, marker={"size": 5},
                line={"color": colour, "dash": "dot" if name == "elsewhere" else "solid"}, row=k // columns + 1,
                col=k % columns + 1, hovertemplate=f"{name}<br>layer %{{x}}: %{{y:.3f}} nats<extra></extra>",
            )  # fmt: skip
    n_layers = next(iter(credit.values())).shape[1]
    fig.update_annotations(font={"size": 12.5})
    fig.update_xaxes(dtick=max(1, n_layers // 8))
    fig.update_xaxes(title="layer", row=n_rows)
    fig.update_yaxes(rangemode="tozero")
    fig.update_yaxes(title="nats", col=1)
    margin = {"t": (140 if is_narrow else 62) + (20 if len(credit) > 1 else 0), "l": 52, "r": 12, "b": 46}
    height = panel * n_rows + gap * (n_rows - 1) + margin["t"] + margin["b"] + (60 if len(credit) == 1 else 0)
    return fig.update_layout(height=height, template=template(), legend=LEGEND, margin=margin)


def depth_names(n_depths: int) -> list[str]:
    """Return what each depth of a contrast comes after: the embedding, then each layer's attention and FFN."""
    return ["embedding", *(f"layer {i // 2} {KINDS[i % 2]}" for i in range(n_depths - 1))]


def contrast_curves(contrast: Tensor, names: Sequence[str], right: str, conflict: str) -> go.Figure:
    """Return the log-probability of one token less that of another by depth, a line for each position.

    Args:
        contrast: `[T, D]`, nats. Of more than six positions those are drawn where it moves most, and the last.
        names: The positions.
        right: The token above zero.
        conflict: The token below zero.
    """
    last = len(contrast) - 1
    moves = (contrast.amax(1) - contrast.amin(1))[:last]
    drawn = sorted(moves.topk(min(_MOST_CURVES - 1, last)).indices.tolist())
    depths = [safe(name) for name in depth_names(contrast.shape[1])]
    fig = go.Figure()
    colours = [GREY, BLUE, TEAL, VIOLET, "#b0873c"]
    for i, at in enumerate([*drawn, last]):
        line = {"color": ORANGE if at == last else colours[i % len(colours)], "width": 3 if at == last else 1.6}
        name = safe(names[at]) + (" (last)" if at == last else "")
        hover = f"<b>{name}</b><br>%{{text}}: %{{y:+.2f}} nats<extra></extra>"
        fig.add_scatter(
            y=contrast[at].tolist(), mode="lines+markers", name=name, text=depths, line=line, hovertemplate=hover,
            marker={"size": 5},
        )  # fmt: skip
    n_layers = (contrast.shape[1] - 1) // 2
    every = max(1, n_layers // 8)
    ticks = list(range(2, contrast.shape[1], 2 * every))
    fig.update_xaxes(tickvals=[0, *ticks], ticktext=["emb.", *(str(t // 2 - 1) for t in ticks)], title="after layer")
    fig.update_yaxes(title=f"{safe(right)} over {safe(conflict)} (nats)", zeroline=True, zerolinecolor=GREY)
    return fig.update_layout(
        height=360, template=template(), legend=LEGEND, margin={"t": 56, "l": 52, "r": 12, "b": 46}
    )
