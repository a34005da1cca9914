"""Head maps: one measurement of all heads at one error type, layer against head."""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil
from typing import NamedTuple

import plotly.graph_objects as go

from chainwright.diagnose import RoleFinding
from chainwright.report.theme import template


class HeadMap(NamedTuple):
    """One measurement of all heads.

    Attributes:
        title: What a reader sees above the map.
        meaning: What a number in it says, in a sentence.
        unit: "share" for 0..1, "change" for signed numbers, drawn symmetrically around 0.
        scale_with: Maps that share their colour scale with this one.
        marked: The role whose heads are marked, or "best" for the head that was checked.
    """

    title: str
    meaning: str
    unit: str
    scale_with: tuple[str, ...]
    marked: str


_WRITING, _EFFECTS = ("writing_correct", "writing_erroneous"), ("effect_correct", "effect_erroneous")
MAPS: Mapping[str, HeadMap] = {
    "writing_correct": HeadMap(
        "Answer-writing, where right",
        "Share of the predicted token's probability that the head itself writes.",
        "change",
        _WRITING,
        "answer_writing",
    ),
    "writing_erroneous": HeadMap(
        "Answer-writing, where wrong", "The same for the wrong token.", "change", _WRITING, "answer_writing"
    ),
    "effect_correct": HeadMap(
        "Effect on right predictions",
        "Probability that the right token loses when the head is silenced.",
        "change",
        _EFFECTS,
        "correct_processing",
    ),
    "effect_erroneous": HeadMap(
        "Effect on wrong predictions",
        "Probability that the wrong token loses when the head is silenced.",
        "change",
        _EFFECTS,
        "erroneous_processing",
    ),
    "rectification": HeadMap(
        "Rectification",
        "Probability that the right token gains, where the model is wrong, when the head is silenced.",
        "change",
        ("rectification",),
        "best",
    ),
    "corrected": HeadMap(
        "Share corrected",
        "Share of failing contexts in which the right token comes first without the head.",
        "share",
        ("corrected",),
        "best",
    ),
    "kept": HeadMap(
        "Share kept",
        "Share of right contexts in which the right token stays first without the head.",
        "share",
        ("kept",),
        "best",
    ),
}


def head_map(found: RoleFinding, name: str) -> go.Figure:
    """Return one measurement of all heads as a map, layer against head; signed ones are symmetric around 0.

    Args:
        found: Head roles at one error type.
        name: A key of `MAPS`.
    """
    spec, roles = MAPS[name], found.roles
    values = getattr(roles, name)
    n_layers, n_heads = values.shape
    top, digits = 1.0, ".0%"
    if spec.unit == "change":
        digits = "+.4f"
        top = max(float(getattr(roles, other).abs().max()) for other in spec.scale_with) or 1.0
        top = min(top, 1.0)  # writing scores end at 1 but have no lower bound; one of them must not pale the rest
    heat = go.Heatmap(
        z=[[float(f"{v:.5g}") for v in row] for row in values.tolist()],
        text=[[_roles_of(found, layer, head) for head in range(n_heads)] for layer in range(n_layers)],
        hovertemplate=f"layer %{{y}}, head %{{x}}: %{{z:{digits}}}%{{text}}<extra></extra>",
        autocolorscale=True,
        zmin=-top if spec.unit == "change" else 0.0,
        zmax=top,
        xgap=1,
        ygap=1,
        colorbar={"thickness": 9, "outlinewidth": 0, "len": 1.0, "nticks": 5, "x": 1.02, "xpad": 2},
    )
    if spec.unit == "share":
        heat.colorbar.update(tickformat=".0%")
    fig = go.Figure([heat, _marks(found, spec.marked, n_layers)])
    return _map_layout(fig, n_layers, n_heads)


def _marks(found: RoleFinding, role: str, n_layers: int) -> go.Scatter:
    heads = [list(found.roles.best_head)] if role == "best" else getattr(found.roles, role)
    return go.Scatter(
        x=[head for _, head in heads],
        y=[layer for layer, _ in heads],
        mode="markers",
        marker={"size": 8 if n_layers <= 12 else 5, "color": "#ffffff", "line": {"width": 1.5, "color": "#1c2027"}},
        cliponaxis=False,
        hoverinfo="skip",
        showlegend=False,
    )


def _map_layout(fig: go.Figure, n_layers: int, n_heads: int) -> go.Figure:
    height = max(96, min(32, max(4, 320 // n_layers)) * n_layers)
    for axis, n, pixels in (("xaxis", n_heads, 230), ("yaxis", n_layers, height)):
        edge = 0.5 + 2 * n / pixels  # room for the outline of a head at the border
        fig.layout[axis].update(range=[-edge, n - 1 + edge], dtick=ceil(n / 10), tick0=0, showgrid=False)
    fig.update_layout(xaxis_title="head", yaxis_title="layer", template=template())
    fig.update_layout(height=height + 46, margin={"l": 44, "r": 8, "t": 6, "b": 40})
    return fig


def _roles_of(found: RoleFinding, layer: int, head: int) -> str:
    names = ("answer_writing", "correct_processing", "erroneous_processing", "basic")
    roles = [name.replace("_", "-") for name in names if [layer, head] in getattr(found.roles, name)]
    return f"<br>{', '.join(roles)}" if roles else ""
