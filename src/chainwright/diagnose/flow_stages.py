"""The stages of an answer: what happens at the entity, at the relation and at the end, and at which depth.

    A  entity enrichment      FFN query components at the entity
    B  entity extraction      attention query components at the entity
    C  relation enrichment    FFN query components at the relation and the last position
    D  relation extraction    attention query components at the relation and the last position, and the value neurons

The credit of each stage by layer comes from `logit_flow`; a stage's centre is its credit-weighted mean layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import torch
from torch import Tensor, nn

from chainwright._errors import BadInput
from chainwright._finding import Finding
from chainwright.diagnose._flow_trace import ATTN, FFN
from chainwright.diagnose.logit_flow import LogitFlow, logit_flow
from chainwright.models.anatomy import anatomy
from chainwright.models.load import provenance
from chainwright.models.residual import NormMode

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

STAGES = ("A", "B", "C", "D")


@dataclass(frozen=True)
class MarkedQuery:
    """A context with the positions that the stages are named after.

    Attributes:
        input_ids: The context, `[T]`.
        token_id: The answer's first token.
        entity: Positions of the entity.
        relation: Positions of the relation; the last position belongs to it anyway.
        conflict_id: A token to compare with, or None.
    """

    input_ids: Tensor
    token_id: int
    entity: tuple[int, ...]
    relation: tuple[int, ...]
    conflict_id: int | None = None


@dataclass(frozen=True, kw_only=True)
class FlowStages(Finding):
    """Credit of each stage by layer, mean over queries.

    Attributes:
        credit: `[4, L]`, nats; negative credit is left out.
        n_queries: Queries that were followed.
    """

    credit: Tensor
    n_queries: int

    @property
    def centres(self) -> list[float]:
        """The credit-weighted mean layer of each stage; NaN for a stage without credit."""
        layers = torch.arange(self.credit.shape[1], dtype=self.credit.dtype)
        return ((self.credit @ layers) / self.credit.sum(-1)).tolist()

    @property
    def shares(self) -> list[float]:
        """The share of each stage in all credit."""
        return (self.credit.sum(-1) / self.credit.sum()).tolist()

    def spans(self, share: float = 0.8) -> list[tuple[int, int]]:
        """Return for each stage the first and last layer of the middle `share` of its credit."""
        tail, out = (1 - share) / 2, []
        for row in self.credit:
            total = row.cumsum(0) / row.sum().clamp(min=1e-12)
            first, last = int((total > tail).int().argmax()), int((total >= 1 - tail - 1e-6).int().argmax())
            out.append((first, max(first, last)))
        return out

    def summary(self) -> str:
        """Return where each stage stands."""
        parts = [
            f"{name} layers {first}-{last} (centre {centre:.1f}, {share:.0%})"
            for name, (first, last), centre, share in zip(STAGES, self.spans(), self.centres, self.shares, strict=True)
        ]
        return f"Stages of {self.n_queries} queries: {'; '.join(parts)}."

    def to_frame(self) -> pa.Table:
        """Return one row for each stage and layer."""
        n_layers = self.credit.shape[1]
        return pa.table(
            {
                "stage": [name for name in STAGES for _ in range(n_layers)],
                "layer": list(range(n_layers)) * len(STAGES),
                "credit": self.credit.flatten().tolist(),
            }
        )

    def plot(self) -> Figure:
        """Return the credit of each stage by layer, as bars."""
        from chainwright.figures.flow import stages

        return stages(self.credit)


def flow_stages(
    model: nn.Module, queries: Sequence[MarkedQuery], *, norm: NormMode = "frozen", **options: Any
) -> FlowStages:
    """Return at which layers the stages A to D of a set of queries stand.

    Args:
        model: A Transformers decoder.
        queries: Contexts with marked positions.
        norm: As in `logit_lens`. With "final" the neurons of the first layers, which add to a small stream, each raise
            the token by almost all that the layer does, and drown the rest.
        **options: Passed on to `logit_flow`.

    Raises:
        BadInput: No queries, or one without marked positions or with some outside of it.
    """
    if not queries:
        raise BadInput("The stages need at least one marked query; got none.")
    for i, query in enumerate(queries):
        _check_marks(i, query)
    total = torch.zeros(len(STAGES), anatomy(model).n_layers)
    for query in queries:
        flow = logit_flow(model, query.input_ids, query.token_id, norm=norm, **options)
        total += stage_credit(flow, query.entity, query.relation)
    return FlowStages(
        credit=total / len(queries),
        n_queries=len(queries),
        config={"norm": norm} | {name: value for name, value in options.items() if isinstance(value, (int, str))},
        provenance=provenance(anatomy(model).model),
    )


def _check_marks(i: int, query: MarkedQuery) -> None:
    n_tokens = query.input_ids.numel()
    for name, marks in (("entity", query.entity), ("relation", query.relation)):
        if not marks:
            raise BadInput(
                f"Query {i} has no marked {name} positions, so its stages cannot be named; give entity and "
                "relation, or call logit_flow, which needs no marks."
            )
        outside = [at for at in marks if not 0 <= at < n_tokens]
        if outside:
            raise BadInput(f"Query {i} marks position {outside[0]} as {name}, but it has {n_tokens} tokens.")


def stage_credit(flow: LogitFlow, entity: Sequence[int], relation: Sequence[int]) -> Tensor:
    """Return the credit of each stage by layer of one query, `[4, L]`."""
    last = len(flow.input_ids) - 1
    at_relation = sorted({*relation, last} - set(entity))
    query, value = flow.flow[1:].clamp(min=0).sum(0), flow.flow[0].clamp(min=0)  # (position, layer, kind)
    return torch.stack(
        [
            query[list(entity), :, FFN].sum(0),
            query[list(entity), :, ATTN].sum(0),
            query[at_relation, :, FFN].sum(0),
            query[at_relation, :, ATTN].sum(0) + value.sum((0, 2)),
        ]
    )
