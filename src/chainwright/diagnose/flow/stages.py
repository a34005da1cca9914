"""The stages of an answer: what happens at the entity, at the relation and at the end, and in which layers.

    A  entity enrichment      FFN query components at the entity
    B  entity extraction      attention query components at the entity
    C  relation enrichment    FFN query components at the relation and the last position
    D  relation extraction    attention query components at the relation and the last position, and the value neurons

The credit of each stage by layer comes from `logit_flow`; a stage's centre is its credit-weighted mean layer. Credit of
other positions is counted as "elsewhere". In a chain of thought the input of a step takes the place of the entity, and
the result before it that of the relation (`slot_queries`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import torch
from torch import Tensor, nn

from chainwright._errors import BadInput
from chainwright._finding import Finding
from chainwright._registry import register
from chainwright.diagnose.flow._trace_back import ATTN, FFN
from chainwright.diagnose.flow.attribution import LogitFlow, logit_flow
from chainwright.models.anatomy import anatomy
from chainwright.models.load import provenance
from chainwright.models.residual import NormMode

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

STAGES = ("A", "B", "C", "D")
_NEIGHBOURS = (("A", "B"), ("B", "C"), ("C", "D"))


@dataclass(frozen=True)
class MarkedQuery:
    """A context with the positions that the stages are named after.

    Attributes:
        input_ids: The context, `[T]`.
        token_id: The answer's first token.
        entity: Positions of the entity.
        relation: Positions of the relation; the last position is always added to them.
        conflict_id: A token to compare with, or None.
    """

    input_ids: Tensor
    token_id: int
    entity: tuple[int, ...]
    relation: tuple[int, ...]
    conflict_id: int | None = None


@register("finding", "FlowStages")
@dataclass(frozen=True, kw_only=True)
class FlowStages(Finding):
    """Credit of each stage by layer, mean over queries.

    Attributes:
        credit: `[4, L]`, nats; negative credit is ignored.
        elsewhere: Credit of all other positions, `[L]`, nats.
        each: Credit of the stages and elsewhere in each query, `[N, 5, L]`.
        sizes: Positions of the first mark, of the second one with the end, and elsewhere, in each query, `[N, 3]`.
        n_queries: Number of queries.
        name: Name of the set of queries.
        marks: Names of the two marked kinds of position.
    """

    credit: Tensor
    elsewhere: Tensor
    each: Tensor
    sizes: Tensor
    n_queries: int
    name: str = ""
    marks: list[str] = field(default_factory=lambda: ["entity", "relation"])

    @property
    def by_layer(self) -> Tensor:
        """Credit of the stages and elsewhere by layer, mean over queries, `[5, L]`."""
        return torch.cat([self.credit, self.elsewhere[None]])

    @property
    def centres(self) -> list[float]:
        """The credit-weighted mean layer of each stage; NaN for a stage without credit."""
        return _centres(self.credit).tolist()

    @property
    def shares(self) -> list[float]:
        """The share of each stage in all credit; elsewhere has the rest."""
        return (self.credit.sum(-1) / (self.credit.sum() + self.elsewhere.sum())).tolist()

    def spans(self, share: float = 0.8) -> list[tuple[int, int]]:
        """Return, for each stage, the first and last layer of the middle `share` of its credit."""
        tail, out = (1 - share) / 2, []
        for row in self.credit:
            total = row.cumsum(0) / row.sum().clamp(min=1e-12)
            first, last = int((total > tail).int().argmax()), int((total >= 1 - tail - 1e-6).int().argmax())
            out.append((first, max(first, last)))
        return out

    def line(self) -> dict[str, Any]:
        """Return the stage table in one row, as text.

        A stage's cell gives the layers of the middle 80% of its credit, its centre in brackets, and its share. The
        other columns: in how many queries A and B, or the unmarked positions, are below C and D; the median share of A
        and B; and the credit per token of A and B relative to that per unmarked token.
        """
        row: dict[str, Any] = {"n": self.n_queries}
        row |= {each["stage"] or each["what"]: _cell(each) for each in self.rows()}
        row |= {pair: f"{k} of {n}" for pair, (k, n) in self.order().items() if "," in pair}
        row["A + B, median"] = f"{float(self.first_shares.median()):.1%}"
        row["A + B per token, over elsewhere"] = "none" if self.density != self.density else f"{self.density:.1f}"
        return row

    def order(self) -> dict[str, tuple[int, int]]:
        """Return how often one stage's centre is below another's, as (queries, queries in which both have credit).

        The pairs are neighbouring stages, both stages at the first mark (A, B) with both later ones (C, D), and as a
        control the unmarked positions with C and D, since anything earlier is read by later layers.
        """
        each = self.each
        halves = torch.stack([each[:, :2].sum(1), each[:, 2:4].sum(1), each[:, 4]], dim=1)
        centres, both = _centres(each), _centres(halves)
        pairs = {f"{a} below {b}": (centres[:, i], centres[:, i + 1]) for i, (a, b) in enumerate(_NEIGHBOURS)}
        pairs["A, B below C, D"] = (both[:, 0], both[:, 1])
        pairs["elsewhere below C, D"] = (both[:, 2], both[:, 1])
        return {
            name: (int((low < high).sum()), int((low.isfinite() & high.isfinite()).sum()))
            for name, (low, high) in pairs.items()
        }

    @property
    def first_shares(self) -> Tensor:
        """The share of a query's credit at the first mark (A and B), `[N]`."""
        total = self.each.sum((1, 2))
        return self.each[:, :2].sum((1, 2)) / total.clamp(min=1e-12)

    @property
    def density(self) -> float:
        """Credit per token of the first mark relative to that per unmarked token, median over queries; may be NaN."""
        first = self.each[:, :2].sum((1, 2)) / self.sizes[:, 0]
        other = self.each[:, 4].sum(1) / self.sizes[:, 2]
        ratio = (first / other)[other > 0]
        return float(ratio.median()) if len(ratio) else float("nan")

    def rows(self) -> list[dict[str, Any]]:
        """Return the stage table: stage, what, first and last layer, centre and share; the last row is "elsewhere"."""
        first, second = self.marks
        what = (f"FFN at the {first}", f"attention at the {first}", f"FFN at the {second} and the end",
                f"attention at the {second} and the end, and what is written")  # fmt: skip
        table = [
            {"stage": stage, "what": text, "first": span[0], "last": span[1], "centre": centre, "share": share}
            for stage, text, span, centre, share in zip(
                STAGES, what, self.spans(), self.centres, self.shares, strict=True
            )
        ]
        total = float(self.credit.sum() + self.elsewhere.sum())
        rest = {
            "stage": "",
            "what": "elsewhere",
            "first": None,
            "last": None,
            "centre": float(_centres(self.elsewhere)),
        }
        return [*table, {**rest, "share": float(self.elsewhere.sum()) / total if total else float("nan")}]

    def summary(self) -> str:
        """Return the layers, centre and share of each stage, in words."""
        parts = [
            f"{name} layers {first}-{last} (centre {centre:.1f}, {share:.0%})"
            for name, (first, last), centre, share in zip(STAGES, self.spans(), self.centres, self.shares, strict=True)
        ]
        k, n = self.order()["A, B below C, D"]
        what = f"{self.n_queries} queries" + (f" ({self.name})" if self.name else "")
        return (
            f"Stages of {what}: {'; '.join(parts)}; elsewhere {1 - sum(self.shares):.0%}. A and B are below C and D in "
            f"{k} of {n} queries."
        )

    def to_frame(self) -> pa.Table:
        """Return one row per layer and stage, elsewhere included."""
        n_layers = self.credit.shape[1]
        names = [*STAGES, "elsewhere"]
        return pa.table(
            {
                "stage": [name for name in names for _ in range(n_layers)],
                "layer": list(range(n_layers)) * len(names),
                "credit": self.by_layer.flatten().tolist(),
            }
        )

    def plot(self) -> Figure:
        """Return the credit of each stage by layer, as lines."""
        from chainwright.figures.flow import stages

        return stages({self.name: self.by_layer}, self.marks)


def _cell(row: Mapping[str, Any]) -> str:
    if row["centre"] != row["centre"] or row["share"] != row["share"]:
        return "none"
    layers = "" if row["first"] is None else f"{row['first']}-{row['last']} "
    share = "<1%" if 0 < row["share"] < 0.005 else f"{row['share']:.0%}"
    return f"{layers}({row['centre']:.1f}) {share}"


def _centres(credit: Tensor) -> Tensor:
    """Return the credit-weighted mean layer along the last axis; NaN without credit."""
    return credit @ torch.arange(credit.shape[-1], dtype=credit.dtype) / credit.sum(-1)


def flow_stages(
    model: nn.Module,
    queries: Sequence[MarkedQuery],
    *,
    norm: NormMode = "frozen",
    name: str = "",
    marks: tuple[str, str] = ("entity", "relation"),
    **options: Any,
) -> FlowStages:
    """Return in which layers the stages A to D of a set of queries take place.

    Args:
        model: A Transformers decoder.
        queries: Contexts with marked positions.
        norm: As in `logit_lens`. With "final", neurons of the first layers, which add to a stream of small norm, each
            raise the token by almost as much as their whole layer, and dominate the rest.
        name: Name of the set of queries, for tables.
        marks: Names of the two marked kinds of position.
        **options: Passed on to `logit_flow`.

    Raises:
        BadInput: There are no queries, or one has no marked positions or some outside its context.
    """
    if not queries:
        raise BadInput("The stages need at least one marked query; got none.")
    for i, query in enumerate(queries):
        _check_marks(i, query, marks)
    each, sizes = [], []
    for query in queries:
        flow = logit_flow(model, query.input_ids, query.token_id, norm=norm, **{"n_words": 0, **options})
        each.append(stage_credit(flow, query.entity, query.relation))
        sizes.append([len(part) for part in _places(len(flow.input_ids), query.entity, query.relation)])
    every = torch.stack(each)
    return FlowStages(
        credit=every[:, :4].mean(0),
        elsewhere=every[:, 4].mean(0),
        each=every,
        sizes=torch.tensor(sizes),
        n_queries=len(queries),
        name=name,
        marks=list(marks),
        config={"norm": norm} | {key: value for key, value in options.items() if isinstance(value, (int, str))},
        provenance=provenance(anatomy(model).model),
    )


def _check_marks(i: int, query: MarkedQuery, names: tuple[str, str]) -> None:
    n_tokens = query.input_ids.numel()
    for name, marks in zip(names, (query.entity, query.relation), strict=True):
        if not marks:
            raise BadInput(
                f"Query {i} has no marked {name} positions, so its stages are undefined; mark {names[0]} and "
                f"{names[1]}, or call logit_flow, which needs no marks."
            )
        outside = [position for position in marks if not 0 <= position < n_tokens]
        if outside:
            raise BadInput(f"Query {i} marks position {outside[0]} as {name}, but it has {n_tokens} tokens.")


def stage_credit(flow: LogitFlow, entity: Sequence[int], relation: Sequence[int]) -> Tensor:
    """Return the credit of each stage by layer for one query, and that of all other positions, `[5, L]`."""
    at_entity, at_relation, others = _places(len(flow.input_ids), entity, relation)
    query, value = flow.flow[1:].clamp(min=0).sum(0), flow.flow[0].clamp(min=0)  # (position, layer, kind)
    return torch.stack(
        [
            query[at_entity, :, FFN].sum(0),
            query[at_entity, :, ATTN].sum(0),
            query[at_relation, :, FFN].sum(0),
            query[at_relation, :, ATTN].sum(0) + value.sum((0, 2)),
            query[others].sum((0, 2)),
        ]
    )


def _places(n_tokens: int, entity: Sequence[int], relation: Sequence[int]) -> tuple[list[int], list[int], list[int]]:
    """Return the positions of the entity, of the relation with the end, and all others."""
    at_entity = sorted(set(entity))
    at_relation = sorted({*relation, n_tokens - 1} - set(at_entity))
    return at_entity, at_relation, sorted({*range(n_tokens)} - {*at_entity, *at_relation})
