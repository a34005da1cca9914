"""The candidate heads: a few heads of which, at most errors, one would fix the token if it were silent.

1. For each key error type of each task, heads that push the wrong token are located (`head_roles`).
2. They are pooled, and each is silenced at errors and at right tokens of the lessons: what does it fix, what does it
   leave right?
3. A greedy set cover chooses among them: each time the head that covers most of what is not yet covered.

Source: TCR (arXiv 2601.21214), section 4, which covers (task, error type) pairs. Departure: counting the errors that a
head fixes is offered too, and is the default, since a head can belong to a type and fix little of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from chainwright._errors import BadInput
from chainwright._finding import Finding
from chainwright._registry import register
from chainwright.diagnose.contexts import correct_contexts, erroneous_contexts
from chainwright.diagnose.errors import first_errors
from chainwright.diagnose.heads.role_sweep import RolesConfig
from chainwright.diagnose.heads.roles import HeadRoles, head_roles
from chainwright.diagnose.right_tokens import PIVOT
from chainwright.edits import Head
from chainwright.models.anatomy import anatomy
from chainwright.models.load import provenance
from chainwright.repair.tcr.config import CandidateConfig
from chainwright.repair.tcr.training_data import Outcomes, lessons_of, outcomes
from chainwright.scoring import score_all
from chainwright.traces import Trace

Roles = Mapping[tuple[str, str], HeadRoles]


@register("finding", "Candidates")
@dataclass(frozen=True, kw_only=True)
class Candidates(Finding):
    """The candidate heads and what they reach.

    Attributes:
        heads: The heads in the order in which they were taken, as [layer, head].
        rows: One per pooled head: `layer`, `head`, `fixed` (share of errors that it fixes), `kept` (share of doubtful
            right tokens that stay right), `rectification` (what right tokens gain in wrong contexts, mean over the
            types it was located in), `types` (those), `is_chosen`.
        coverage: Share of errors that at least one of the first 1, 2, ... heads fixes.
        any_head: Share of errors that at least one head of the pool fixes.
        types: Key error types as "task: type", each with the heads located in it.
        n_errors, n_right: Tokens that were counted.
    """

    heads: list[list[int]]
    rows: list[dict[str, Any]]
    coverage: list[float]
    any_head: float
    types: dict[str, list[list[int]]]
    n_errors: int
    n_right: int

    def summary(self) -> str:
        """Return the chosen heads in words."""
        chosen = {(r["layer"], r["head"]): r for r in self.rows}
        parts = []
        for layer, head in self.heads:
            row = chosen[layer, head]
            parts.append(f"L{layer}H{head} (fixes {row['fixed']:.0%}, keeps {row['kept']:.0%})")
        return (
            f"{len(self.heads)} candidate heads from {len(self.types)} error types: {', '.join(parts)}. At "
            f"{self.coverage[-1]:.0%} of {self.n_errors} errors at least one of them fixes the token (any of the "
            f"{len(self.rows)} pooled heads: {self.any_head:.0%})."
        )

    def to_frame(self) -> pa.Table:
        """Return one row per pooled head."""
        return pa.Table.from_pylist([{**row, "types": ", ".join(row["types"])} for row in self.rows])


def find_candidates(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    traces: Sequence[Trace],
    *,
    config: CandidateConfig | None = None,
    roles: Roles | None = None,
    tick: Callable[[int, int], None] = lambda done, total: None,
) -> Candidates:
    """Return the candidate heads of a model.

    Args:
        model: A Transformers decoder.
        tokenizer: Its tokenizer.
        traces: Its traces of problems, with errors among them.
        config: Sizes.
        roles: Head roles by (task, key error type), where they are known already (`located_roles`).
        tick: Called with (how much is done, of how much).

    Raises:
        BadInput: No trace has an error, or no key error type has enough of them.
    """
    settings = config or CandidateConfig()
    roles = roles or located_roles(model, tokenizer, traces, settings, tick)
    pool = list(dict.fromkeys((h[0], h[1]) for found in roles.values() for h in found.erroneous_processing))
    if not pool:
        raise BadInput("At no key error type does any head push the wrong token, so there are no candidate heads.")
    parts = anatomy(model)
    counted = _spread(lessons_of(tokenizer, traces), settings.n_lessons)
    generator = torch.Generator().manual_seed(settings.seed)

    def doubtful(entropy: Tensor, is_right: Tensor, features: Tensor) -> Tensor:
        return ~is_right | ((entropy > 0.01) & (torch.rand(len(entropy), generator=generator) < settings.right_share))

    found = outcomes(parts, counted, pool, layers=(), doubtful=doubtful, positions=settings.positions, tick=tick)
    return _chosen(found, pool, roles, settings, provenance(parts.model))


def _spread(items: list[Any], n: int) -> list[Any]:
    n_taken = min(n, len(items))
    return [items[i * len(items) // n_taken] for i in range(n_taken)]


def located_roles(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    traces: Sequence[Trace],
    config: CandidateConfig,
    tick: Callable[[int, int], None] = lambda done, total: None,
) -> dict[tuple[str, str], HeadRoles]:
    """Return the head roles of every (task, key error type) with enough errors.

    Raises:
        BadInput: No type has enough of them.
    """
    table = first_errors(traces)
    kinds = [(task, kind) for task, found in table.key_types.items() for kind in found]
    roles: dict[tuple[str, str], HeadRoles] = {}
    scores = score_all(model, traces) if any(kind == PIVOT for _, kind in kinds) else None
    for i, (task, kind) in enumerate(kinds):
        tick(i, len(kinds))
        try:
            found = erroneous_contexts(tokenizer, traces, task, kind, max(config.n_contexts, config.min_errors))
            wrong = found.take(slice(config.n_contexts))
            right = correct_contexts(traces, wrong, config.n_contexts, scores=scores)
        except BadInput:
            continue  # no error of the type whose right token is known, or no right slot of its kind
        if len(found) >= config.min_errors:
            how = RolesConfig(positions=config.positions)
            roles[task, kind] = head_roles(model, right, wrong, config=how, max_bytes=config.sweep_bytes)
    if not roles:
        raise BadInput(
            f"No key error type has {config.min_errors} first errors with a known right token among these "
            f"{len(traces)} traces; make more traces, of hops at which the model is sometimes right and sometimes "
            "wrong."
        )
    return roles


def _chosen(
    found: Outcomes,
    pool: list[Head],
    roles: Roles,
    config: CandidateConfig,
    source: dict[str, str],
) -> Candidates:
    is_error = ~found.is_right[found.doubtful]
    fixes, keeps = found.labels[is_error, :-1], found.labels[~is_error, :-1]
    types = {f"{task}: {kind}": role.erroneous_processing for (task, kind), role in roles.items()}
    located = torch.tensor([[[*head] in heads for head in pool] for heads in types.values()])
    rectified = torch.stack([torch.stack([r.rectification[h] for h in pool]) for r in roles.values()])
    gains = (rectified * located).sum(0) / located.sum(0).clamp(min=1)
    order = greedy_cover(fixes if config.cover == "samples" else located, gains, config.max_heads)
    covered = [float(fixes[:, order[: i + 1]].any(1).float().mean()) for i in range(len(order))]
    rows = [
        {
            "layer": head[0],
            "head": head[1],
            "fixed": float(fixes[:, k].float().mean()),
            "kept": float(keeps[:, k].float().mean()),
            "rectification": float(gains[k]),
            "types": [name for name, heads in types.items() if [*head] in heads],
            "is_chosen": k in order,
        }
        for k, head in enumerate(pool)
    ]
    return Candidates(
        heads=[list(pool[k]) for k in order],
        rows=rows,
        coverage=covered,
        any_head=float(fixes.any(1).float().mean()),
        types=types,
        n_errors=len(fixes),
        n_right=len(keeps),
        config=config.record(),
        provenance=source,
    )


def greedy_cover(covers: Tensor, gains: Tensor, max_columns: int) -> list[int]:
    """Return columns that together cover the rows of a table, taken greedily.

    Args:
        covers: Which rows each column covers, bool `[rows, columns]`.
        gains: What breaks ties, higher is better, `[columns]`.
        max_columns: Most columns to take; at least one is taken.
    """
    left = torch.ones(len(covers), dtype=torch.bool)
    order: list[int] = []
    while len(order) < max_columns:
        counts = (covers & left[:, None]).sum(0)
        best = max(range(covers.shape[1]), key=lambda k: (int(counts[k]), float(gains[k])))
        if int(counts[best]) == 0 and order:
            break
        order.append(best)
        left &= ~covers[:, best]
    return order
