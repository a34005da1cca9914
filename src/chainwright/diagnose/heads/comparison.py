"""Two models of one architecture side by side: do the same heads have the same roles?

Meant for two checkpoints with shared ancestry (a base model and its RL-trained version, an early and a late stage of
training), whose heads correspond one to one because they started from the same weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import scipy
from torch import Tensor

from chainwright._errors import BadInput
from chainwright._finding import Finding
from chainwright._registry import register
from chainwright.diagnose.heads.roles import HeadRoles

_MAPS = ("writing_correct", "writing_erroneous", "effect_correct", "effect_erroneous", "rectification")
_ROLES = ("answer_writing", "correct_processing", "erroneous_processing", "basic")


@register("finding", "HeadComparison")
@dataclass(frozen=True, kw_only=True)
class HeadComparison(Finding):
    """How far the roles of heads agree between two models.

    Attributes:
        roles: One entry per role: `role`, `first` and `second` (number of heads that have it in each model), `both`,
            `overlap` (shared heads over all heads that have it in either; None where no head has it) and `by_chance`
            (approximately the mean overlap of as many heads drawn at random).
        scores: One entry per score: `score`, `rank_correlation` (Spearman over all heads) and `p`.
        disagreement: Rank of each head's erroneous-processing effect in the second model minus that in the first, as
            a share of all heads, `[L, H]`: positive where it supports the wrong token more in the second.
    """

    roles: list[dict[str, Any]]
    scores: list[dict[str, Any]]
    disagreement: Tensor

    def summary(self) -> str:
        """Return the shared heads of each role and the rank correlation of each score, in words."""
        parts = []
        for row in self.roles:
            if row["overlap"] is not None:
                name = row["role"].replace("_", "-")
                parts.append(f"{name} {row['both']} of {row['first']} and {row['second']} shared")
        ranks = ", ".join(f"{r['score'].replace('_', ' ')} {r['rank_correlation']:+.2f}" for r in self.scores)
        return f"Heads: {'; '.join(parts)}. Rank correlation: {ranks}."

    def to_frame(self) -> pa.Table:
        """Return one row per role and one per score."""
        empty = {
            "first": None,
            "second": None,
            "both": None,
            "overlap": None,
            "by_chance": None,
            "rank_correlation": None,
        }
        rows = [{"what": r["role"], **empty, **{k: v for k, v in r.items() if k != "role"}} for r in self.roles]
        rows += [{"what": r["score"], **empty, "rank_correlation": r["rank_correlation"]} for r in self.scores]
        return pa.Table.from_pylist(rows)


def compare_heads(first: HeadRoles, second: HeadRoles) -> HeadComparison:
    """Return how far the roles of heads agree between two models, at one kind of slot.

    Args:
        first: Roles in one model.
        second: Roles in the other, at the same kind of slot.

    Raises:
        BadInput: The models have different numbers of layers or heads.
    """
    shapes = [tuple(roles.rectification.shape) for roles in (first, second)]
    if shapes[0] != shapes[1]:
        raise BadInput(
            f"The models have {shapes[0][0]} x {shapes[0][1]} and {shapes[1][0]} x {shapes[1][1]} heads; heads can "
            "only be compared one to one between models of one architecture."
        )
    ranks = [_ranks(roles.effect_erroneous) for roles in (first, second)]
    return HeadComparison(
        roles=[_overlap(role, getattr(first, role), getattr(second, role), ranks[0].numel()) for role in _ROLES],
        scores=[_correlation(name, getattr(first, name), getattr(second, name)) for name in _MAPS],
        disagreement=(ranks[1] - ranks[0]) / ranks[0].numel(),
        provenance=_sources(first, second),
    )


def _sources(first: HeadRoles, second: HeadRoles) -> dict[str, str]:
    sides = (("first", first), ("second", second))
    return {f"{side} {name}": value for side, roles in sides for name, value in roles.provenance.items()}


def _ranks(scores: Tensor) -> Tensor:
    return scores.flatten().argsort(stable=True).argsort(stable=True).float().view_as(scores)


def _overlap(role: str, first: list[list[int]], second: list[list[int]], n_heads: int) -> dict[str, Any]:
    a, b = ({tuple(head) for head in heads} for heads in (first, second))
    union, expected = len(a | b), len(a) * len(b) / n_heads
    return {
        "role": role,
        "first": len(a),
        "second": len(b),
        "both": len(a & b),
        "overlap": len(a & b) / union if union else None,
        "by_chance": expected / (len(a) + len(b) - expected) if union else None,
    }


def _correlation(name: str, first: Tensor, second: Tensor) -> dict[str, Any]:
    test = scipy.stats.spearmanr(first.flatten().numpy(), second.flatten().numpy())
    return {"score": name, "rank_correlation": float(test.statistic), "p": float(test.pvalue)}
