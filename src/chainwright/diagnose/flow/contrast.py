"""The right token compared with a conflicting one by position and depth, as a mean over questions of one shape."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyarrow as pa
import torch
from torch import Tensor, nn

from chainwright._errors import BadInput
from chainwright._finding import Finding
from chainwright._registry import register
from chainwright.diagnose.flow.attribution import logit_flow
from chainwright.diagnose.flow.stages import MarkedQuery
from chainwright.models.anatomy import anatomy
from chainwright.models.load import provenance

if TYPE_CHECKING:
    from plotly.graph_objects import Figure


@register("finding", "FlowContrast")
@dataclass(frozen=True, kw_only=True)
class FlowContrast(Finding):
    """Log-probability of one token minus that of another, mean over the questions of each group.

    Attributes:
        curves: By group, position and depth (embedding, then after each attention and FFN), `[G, T, D]`, nats.
        groups: Names of the groups.
        n: Questions of each group.
        positions: Names of the positions.
        what: Which two tokens are compared.
    """

    curves: Tensor
    groups: list[str]
    n: list[int]
    positions: list[str]
    what: str

    def summary(self) -> str:
        """Return each group's difference at the last layer and position, in a sentence."""
        ends = [
            f"{name} {float(curve[-1, -1]):+.2f} nats ({n} questions)"
            for name, curve, n in zip(self.groups, self.curves, self.n, strict=True)
        ]
        return f"{self.what[:1].upper()}{self.what[1:]} at the end of the stack: {'; '.join(ends)}."

    def to_frame(self) -> pa.Table:
        """Return one row per group, position and depth."""
        keys = [(g, p, d) for g in self.groups for p in self.positions for d in range(self.curves.shape[2])]
        columns = dict(zip(("group", "position", "depth"), map(list, zip(*keys, strict=True)), strict=True))
        return pa.table({**columns, "nats": self.curves.flatten().tolist()})

    def plot(self) -> Figure:
        """Return one panel per position, with a curve for each group."""
        from chainwright.figures.back_attention import position_curves

        return position_curves(dict(zip(self.groups, self.curves, strict=True)), self.positions)


@torch.no_grad()
def flow_contrast(
    model: nn.Module, groups: Mapping[str, Sequence[MarkedQuery]], positions: Sequence[str], what: str
) -> FlowContrast:
    """Return the mean contrast of groups of queries that all have the same positions.

    Args:
        model: A Transformers decoder; edits attached when it is called are in force.
        groups: Queries with a conflicting token, by name of the group; empty groups are omitted.
        positions: Names of the positions, one per token.
        what: Which two tokens are compared, such as "e3 over e2".

    Raises:
        BadInput: No query has a conflicting token, or one does not have as many tokens as there are positions.
    """
    by_group: dict[str, list[Tensor]] = {}
    for name, queries in groups.items():
        for query in queries:
            if query.conflict_id is None or query.conflict_id == query.token_id:
                continue
            if query.input_ids.numel() != len(positions):
                raise BadInput(
                    f"Queries must have the {len(positions)} positions {', '.join(positions)}; got one with "
                    f"{query.input_ids.numel()} tokens."
                )
            flow = logit_flow(
                model,
                query.input_ids,
                query.token_id,
                conflict_id=query.conflict_id,
                n_neurons=1,
                n_traced=0,
                n_words=0,
            )
            by_group.setdefault(name, []).append(flow.contrast)
    if not by_group:
        raise BadInput("No query has a conflicting token other than its own, so nothing can be compared.")
    return FlowContrast(
        curves=torch.stack([torch.stack(rows).mean(0) for rows in by_group.values()]),
        groups=list(by_group),
        n=[len(rows) for rows in by_group.values()],
        positions=list(positions),
        what=what,
        provenance=provenance(anatomy(model).model),
    )
