"""The knockouts behind head roles: right and wrong contexts in one sweep, over all heads or over those worth measuring.

A small model is measured exactly. In a large one (`LARGE`) all heads are estimated on all contexts, and the share that
ranks highest is measured. Which way was taken is part of the finding's config.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from chainwright._config import Config, Positions
from chainwright.diagnose.contexts import SlotContexts
from chainwright.diagnose.heads._sweep.baseline_pass import Contexts, is_edited
from chainwright.diagnose.heads._sweep.half_products import can_halve
from chainwright.diagnose.heads._sweep.options import check_products, n_screened
from chainwright.diagnose.heads._sweep.run import KnockoutResults, knock_out_each
from chainwright.diagnose.heads._sweep.screening import Estimates, estimate_each, highest_ranked
from chainwright.models.anatomy import Anatomy
from chainwright.models.gradients import has_gradients

# parameters in the layers from which "auto" saves work; the small bundled models have fewer than two million
LARGE = 50_000_000
Tick = Callable[[int, int], None]


class RolesConfig(Config):
    """How many heads each role gets, and how they are silenced and measured."""

    n_answer_writing: int = Field(default=10, ge=0, description="Heads counted as answer-writing.")
    share: float = Field(
        default=0.02, ge=0, le=1, description="Share of all heads that a processing role gets (the paper's top 2%)."
    )
    at_least: int = Field(
        default=3, ge=0, description="Minimum number of heads of a processing role, for models with few heads."
    )
    basic_below: float = Field(
        default=0.1,
        ge=0,
        description="A head is basic when, without it, the mean probability of the predicted token falls below this "
        "share of what it was, in both sets.",
    )
    positions: Positions = Field(default="all", description="Silence heads at all positions, or only at the last.")
    method: Literal["auto", "exact", "screened"] = Field(
        default="auto",
        description="Measure every head, or estimate all and measure those that rank highest; auto screens models with "
        "50 million parameters or more in their layers.",
    )
    measured: float = Field(default=0.25, gt=0, le=1, description="Share of the heads that screening measures.")
    products: Literal["auto", "model", "bfloat16"] = Field(
        default="auto",
        description="Multiply as the model does, or what a knockout changes in bfloat16; auto takes bfloat16 for large "
        "float32 models on processors with instructions for it.",
    )


class RoleSweep(NamedTuple):
    """Predictions in one set of contexts; of heads that were not measured, estimates.

    Attributes:
        baseline: Probability of the predicted and of the right token with every head in place `[N, 2]`.
        probs: The same without each head `[N, L, H, 2]`.
        argmax: The likeliest token without each head `[N, L, H]`; with every head where it was not measured.
    """

    baseline: Tensor
    probs: Tensor
    argmax: Tensor


class RoleSweeps(NamedTuple):
    """Both sets, and what concerns both.

    Attributes:
        correct, erroneous: The sets.
        is_measured: Which heads were measured `[L, H]`.
        writing: Mean answer-writing scores in each set `[L, H]`; None where nothing was read for them.
        config: With every "auto" replaced by what it chose.
    """

    correct: RoleSweep
    erroneous: RoleSweep
    is_measured: Tensor
    writing: tuple[Tensor, Tensor] | None
    config: RolesConfig


def chosen(parts: Anatomy, config: RolesConfig) -> RolesConfig:
    """Return the config with every "auto" replaced by what fits the model.

    Raises:
        BadInput: bfloat16 products do not fit the model or the positions.
    """
    is_large = sum(p.numel() for layer in parts.layers for p in layer.block.parameters()) >= LARGE
    saves = is_large and config.positions == "all" and not is_edited(parts)
    method, products = config.method, config.products
    if method == "auto":
        method = "screened" if saves and has_gradients(parts) else "exact"
    if products == "auto":
        products = "bfloat16" if saves and can_halve(parts) else "model"
    check_products(parts, products, method, config.positions)
    return config.replace(method=method, products=products)


def sweep_sets(
    parts: Anatomy,
    correct: SlotContexts,
    erroneous: SlotContexts,
    config: RolesConfig,
    tick: Tick | None = None,
    max_bytes: int | None = None,
) -> RoleSweeps:
    """Return what the knockouts do in both sets, run together since they share their beginnings.

    Args:
        parts: Anatomy of the model.
        correct: Contexts in which it is right.
        erroneous: Contexts in which it is wrong.
        config: How to measure.
        tick: Called with the knockouts that are done, and their number.
        max_bytes: As in `head_roles`.
    """
    config, n = chosen(parts, config), len(correct)
    contexts = joined(tracked(parts, correct), tracked(parts, erroneous))
    is_measured = torch.ones(parts.n_layers, parts.n_heads, dtype=torch.bool)
    estimates = None
    if config.method == "screened":
        estimates = estimate_each(parts, contexts, max_bytes)
        is_measured = highest_ranked(_criteria(estimates, n), n_screened(config.measured, is_measured.numel()))
    wanted = is_measured.expand(len(contexts.input_ids), -1, -1)
    report = None if tick is None else _Count(tick, int(wanted.sum())).add
    results = knock_out_each(
        parts,
        contexts,
        wanted,
        config.positions,
        max_bytes,
        report=report,
        is_halved=config.products == "bfloat16",
    )
    whole = RoleSweep(*results) if estimates is None else _filled(results, estimates, is_measured)
    parted = [RoleSweep(*(part[rows] for part in whole)) for rows in (slice(0, n), slice(n, None))]
    writing = None if estimates is None else (estimates.writing[:n].mean(0), estimates.writing[n:].mean(0))
    return RoleSweeps(parted[0], parted[1], is_measured, writing, config)


def tracked(parts: Anatomy, contexts: SlotContexts) -> Contexts:
    """Return the contexts on the model's device, with the predicted and the right token as the tracked ones."""
    device = parts.device
    tokens = torch.stack([contexts.predicted_ids, contexts.right_ids], dim=1)
    return Contexts(contexts.input_ids.to(device), contexts.attention_mask.to(device), tokens.to(device))


def joined(a: Contexts, b: Contexts) -> Contexts:
    """Return the rows of both, left-padded to one length."""
    width = max(a.input_ids.shape[1], b.input_ids.shape[1])

    def padded(rows: Tensor) -> Tensor:
        return torch.nn.functional.pad(rows, (width - rows.shape[1], 0))

    return Contexts(
        torch.cat([padded(a.input_ids), padded(b.input_ids)]),
        torch.cat([padded(a.mask), padded(b.mask)]),
        torch.cat([a.tracked, b.tracked]),
    )


class _Count:
    def __init__(self, tick: Tick, total: int):
        self.tick, self.total, self.n_done = tick, total, 0

    def add(self, n: int) -> None:
        self.n_done += n
        self.tick(self.n_done, self.total)


def _criteria(estimates: Estimates, n_correct: int) -> Tensor:
    """Return mean sizes `[3, L, H]`: of the right token in right contexts, and of both tokens in wrong ones."""
    size = estimates.size
    return torch.stack([size[:n_correct, ..., 0].mean(0), *size[n_correct:].mean(0).unbind(-1)])


def _filled(results: KnockoutResults, estimates: Estimates, is_measured: Tensor) -> RoleSweep:
    estimated = (estimates.baseline[:, None, None] - estimates.loss).clamp(0, 1)
    probs = torch.where(is_measured[None, ..., None], results.probs, estimated)
    argmax = torch.where(is_measured, results.argmax, estimates.first[:, None, None])
    return RoleSweep(results.baseline, probs, argmax)
