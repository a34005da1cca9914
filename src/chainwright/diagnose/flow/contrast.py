"""Right against conflicting token by position and depth, as the mean over questions of one shape."""

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
    """Log-probability of one token less that of another, mean over the questions of each group.

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
        """Return where each group ends at the last position."""
        ends = [
            f"{name} {float(curve[-1, -1]):+.2f} nats ({n} questions)"
            for name, curve, n in zip(self.groups, self.curves, self.n, strict=True)
        ]
        return f"{self.what[:1].upper()}{self.what[1:]} at the end of the stack: {'; '.join(ends)}."

    def to_frame(self) -> pa.Table:
        """Return one row for each group, position and depth."""
        keys = [(g, p, d) for g in self.groups for p in self.positions for d in range(self.curves.shape[2])]
        columns = dict(zip(("group", "position", "depth"), map(list, zip(*keys, strict=True)), strict=True))
        return pa.table({**columns, "nats": self.curves.flatten().tolist()})

    def plot(self) -> Figure:
        """Return a panel for each position with a curve for each group."""
        from chainwright.figures.back_attention import position_curves

        return position_curves(dict(zip(self.groups, self.curves, strict=True)), self.positions)


@torch.no_grad()
def flow_contrast(
    model: nn.Module, groups: Mapping[str, Sequence[MarkedQuery]], positions: Sequence[str], what: str
) -> FlowContrast:
    """Return the mean contrast of groups of queries that all have the same positions.

    Args:
        model: A Transformers decoder; edits attached when it is called are in force.
        groups: Queries with a conflicting token, by name of the group; empty groups are left out.
        positions: Names of the positions, one a token.
        what: Which two tokens are compared, such as "e3 over e2".

    Raises:
        BadInput: No query has a conflicting token, or one has another number of tokens.
    """
    found: dict[str, list[Tensor]] = {}
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
            found.setdefault(name, []).append(flow.contrast)
    if not found:
        raise BadInput("No query has a token that conflicts with the one that is followed, so nothing can be compared.")
    return FlowContrast(
        curves=torch.stack([torch.stack(rows).mean(0) for rows in found.values()]),
        groups=list(found),
        n=[len(rows) for rows in found.values()],
        positions=list(positions),
        what=what,
        provenance=provenance(anatomy(model).model),
    )
