"""Head maps: one measurement of all heads, layer against head."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from math import ceil
from typing import NamedTuple

import plotly.graph_objects as go
from plotly.subplots import make_subplots
from torch import Tensor

from chainwright.figures.theme import template

ROLES = {
    "answer_writing": "answer-writing",
    "correct_processing": "correct-processing",
    "erroneous_processing": "erroneous-processing",
    "basic": "basic",
}


class HeadMap(NamedTuple):
    """One measurement of all heads.

    Attributes:
        title: What a reader sees above the map.
        meaning: What a number in it says, in a sentence.
        unit: The label of the colour bar.
        is_share: Whether the numbers are in 0..1; others are signed, and drawn symmetrically around 0.
        scale_with: Maps that share their colour scale with this one.
        marked: The role whose heads are marked, or "best" for the best head.
    """

    title: str
    meaning: str
    unit: str
    is_share: bool
    scale_with: tuple[str, ...]
    marked: str


_WRITING, _EFFECTS = ("writing_correct", "writing_erroneous"), ("effect_correct", "effect_erroneous")
MAPS: Mapping[str, HeadMap] = {
    "writing_correct": HeadMap(
        "Answer-writing, where right",
        "Share of the right token's probability that the head itself writes, where the model says it.",
        "share written",
        False,
        _WRITING,
        "answer_writing",
    ),
    "writing_erroneous": HeadMap(
        "Answer-writing, where wrong",
        "The same for the wrong token, where the model says that one.",
        "share written",
        False,
        _WRITING,
        "answer_writing",
    ),
    "effect_correct": HeadMap(
        "Effect on right predictions",
        "Probability that the right token loses when the head is silenced. Below 0: it gains.",
        "probability lost",
        False,
        _EFFECTS,
        "correct_processing",
    ),
    "effect_erroneous": HeadMap(
        "Effect on wrong predictions",
        "Probability that the wrong token loses when the head is silenced. Below 0: it gains.",
        "probability lost",
        False,
        _EFFECTS,
        "erroneous_processing",
    ),
    "rectification": HeadMap(
        "Rectification",
        "Probability that the right token gains, where the model is wrong, when the head is silenced.",
        "probability gained",
        False,
        ("rectification",),
        "best",
    ),
    "corrected": HeadMap(
        "Share fixed",
        "Share of failing contexts in which the right token comes first without the head.",
        "share of contexts",
        True,
        ("corrected",),
        "best",
    ),
    "kept": HeadMap(
        "Share kept",
        "Share of right contexts in which the right token stays first without the head.",
        "share of contexts",
        True,
        ("kept",),
        "best",
    ),
}
"""The head maps by name: title, explanation, unit, and colours of each."""
Members = Mapping[str, Sequence[Sequence[int]]]


def head_map(values: Mapping[str, Tensor], members: Members, name: str, *, has_unit: bool = True) -> go.Figure:
    """Return one measurement of all heads as a map, layer against head; signed ones are symmetric around 0.

    Args:
        values: A tensor `[L, H]` for each key of `MAPS`.
        members: The [layer, head] pairs of each role, and of "best".
        name: A key of `MAPS`.
        has_unit: Whether the colour bar has a label.
    """
    n_layers, n_heads = values[name].shape
    fig = go.Figure([_heat(values, members, name), _marks(members[MAPS[name].marked], n_layers)])
    fig.data[0].colorbar = _bar(MAPS[name], has_unit)
    height = _lay_out(fig, n_layers, n_heads)
    fig.update_layout(height=height + 46, margin={"l": 44, "r": 8, "t": 6, "b": 40}, template=template())
    return fig


def head_maps(values: Mapping[str, Tensor], members: Members, names: Collection[str] = tuple(MAPS)) -> go.Figure:
    """Return several maps side by side, three in a row.

    Args:
        values: As in `head_map`.
        members: As in `head_map`.
        names: Keys of `MAPS`.
    """
    n_rows = ceil(len(names) / 3)
    titles = [MAPS[name].title for name in names]
    gap = 0.34 / n_rows if n_rows > 1 else 0.0
    fig = make_subplots(n_rows, 3, subplot_titles=titles, horizontal_spacing=0.13, vertical_spacing=gap)
    n_layers, n_heads = next(iter(values.values())).shape
    for i, name in enumerate(names):
        at = {"row": i // 3 + 1, "col": i % 3 + 1}
        heat = _heat(values, members, name)
        fig.add_trace(heat, **at)
        fig.add_trace(_marks(members[MAPS[name].marked], n_layers), **at)
        x, y = (fig.layout[f"{axis}axis{'' if i == 0 else i + 1}"].domain for axis in "xy")
        bar = _bar(MAPS[name], False)
        fig.data[-2].colorbar = bar | {"x": x[1] + 0.005, "y": sum(y) / 2, "len": y[1] - y[0]}
        _lay_out(fig, n_layers, n_heads, str(i + 1) if i else "")
    height = max(96, min(320, 32 * n_layers))
    fig.update_layout(height=n_rows * (height + 84) + 20, width=1060, margin={"t": 40, "b": 44}, template=template())
    return fig


def heat_of(values: Tensor, unit: str) -> go.Figure:
    """Return signed numbers of all heads, `[L, H]`, as a map that is symmetric around 0."""
    top = float(values.abs().max()) or 1.0
    heat = go.Heatmap(
        z=values.tolist(), hovertemplate="layer %{y}, head %{x}: %{z:+.4f}<extra></extra>", autocolorscale=True
    )
    heat.update(zmin=-top, zmax=top, xgap=1, ygap=1, colorbar={"title": {"text": unit, "side": "right"}})
    fig = go.Figure(heat)
    height = _lay_out(fig, *values.shape)
    return fig.update_layout(height=max(240, height + 90), width=560, template=template())


def top_of(values: Mapping[str, Tensor], name: str) -> float:
    """Return where the colour scale of a map ends.

    Writing scores end at 1 but have no lower bound; one of them must not pale the rest.
    """
    if MAPS[name].is_share:
        return 1.0
    return min(max(float(values[other].abs().max()) for other in MAPS[name].scale_with) or 1.0, 1.0)


def roles_of(members: Members, layer: int, head: int) -> list[str]:
    """Return the roles of a head, in words."""
    return [said for name, said in ROLES.items() if [layer, head] in [list(h) for h in members[name]]]


def _heat(values: Mapping[str, Tensor], members: Members, name: str) -> go.Heatmap:
    n_layers, n_heads = values[name].shape
    top, digits = top_of(values, name), ".0%" if MAPS[name].is_share else "+.4f"
    names = [[", ".join(roles_of(members, at, head)) for head in range(n_heads)] for at in range(n_layers)]
    return go.Heatmap(
        z=[[float(f"{v:.5g}") for v in row] for row in values[name].tolist()],
        text=[[f"<br>{said}" if said else "" for said in row] for row in names],
        hovertemplate=f"layer %{{y}}, head %{{x}}: %{{z:{digits}}}%{{text}}<extra></extra>",
        autocolorscale=True,
        zmin=0.0 if MAPS[name].is_share else -top,
        zmax=top,
        xgap=1,
        ygap=1,
    )


def _bar(spec: HeadMap, has_unit: bool) -> dict[str, object]:
    bar: dict[str, object] = {"thickness": 9, "outlinewidth": 0, "len": 1.0, "nticks": 5, "x": 1.02, "xpad": 2}
    if has_unit:
        bar["title"] = {"text": spec.unit, "side": "right", "font": {"size": 11}}
    if spec.is_share:
        bar["tickformat"] = ".0%"
    return bar


def _marks(heads: Sequence[Sequence[int]], n_layers: int) -> go.Scatter:
    return go.Scatter(
        x=[head for _, head in heads],
        y=[layer for layer, _ in heads],
        mode="markers",
        marker={"size": 8 if n_layers <= 12 else 5, "color": "#ffffff", "line": {"width": 1.5, "color": "#1c2027"}},
        cliponaxis=False,
        hoverinfo="skip",
        showlegend=False,
    )


def _lay_out(fig: go.Figure, n_layers: int, n_heads: int, number: str = "") -> int:
    """Set the axes of a map and return how many pixels high it is to be."""
    height = max(96, min(32, max(4, 320 // n_layers)) * n_layers)
    for axis, n, pixels in ((f"xaxis{number}", n_heads, 230), (f"yaxis{number}", n_layers, height)):
        edge = 0.5 + 2 * n / pixels  # room for the outline of a head at the border
        fig.layout[axis].update(range=[-edge, n - 1 + edge], dtick=ceil(n / 10), tick0=0, showgrid=False)
        fig.layout[axis].title.text = "head" if axis.startswith("x") else "layer"
    return height
