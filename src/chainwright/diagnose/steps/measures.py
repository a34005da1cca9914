"""A step map in a few numbers per layer: shallow lock-in, reach, deep decay, and the authors' intensities.

The measures use the map's rows as they are: a row's mass is the sum over key steps of the mean influence per pair of
tokens. Rows without any mass are omitted from the means of shares; where no row remains, the value is NaN.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

QUESTION, THINKING, SUMMARY = "question", "thinking", "summary"
SEGMENTS = (QUESTION, THINKING, SUMMARY)


@dataclass(frozen=True)
class StepMeasures:
    """Measures of one trace, each `[L]` float64 unless noted otherwise; NaN where the trace has no such steps.

    Attributes:
        lock_in: Share of a thinking row's mass on its own and the previous step, mean over the thinking rows.
        reach: Share of it on the question and on steps older than the previous one, mean over the thinking rows. For
            the first thinking step the previous step is the question, which then counts in both.
        decay: Mass from thinking to summary: a summary row's mass on thinking steps, mean over the summary rows.
        decay_share: The same as a share of the rows' mass, which can be compared between layers.
        decay_slope: Slope of `decay` per layer over the deepest half of the layers, a scalar.
        decay_share_slope: The same for `decay_share`.
        summary_self: A summary row's mass on summary steps, mean over the summary rows.
        summary_self_share: The same as a share.
        summary_intensity: Mean influence per pair of tokens inside the summary, without pairs hidden by causality.
        thinking_intensity: The same inside the thinking.
        intensity_ratio: `summary_intensity / thinking_intensity`.

    Source: Step-Saliency (arXiv 2604.06695). Departure: the authors' block means count the hidden half of the pairs.
    """

    lock_in: Tensor
    reach: Tensor
    decay: Tensor
    decay_share: Tensor
    decay_slope: Tensor
    decay_share_slope: Tensor
    summary_self: Tensor
    summary_self_share: Tensor
    summary_intensity: Tensor
    thinking_intensity: Tensor
    intensity_ratio: Tensor

    def by_layer(self) -> dict[str, Tensor]:
        """Return the measures that have one value per layer."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: value for name, value in values.items() if value.dim() == 1}


def step_measures(step_map: Tensor, sizes: Sequence[int], segments: Sequence[str], pairs: str = "all") -> StepMeasures:
    """Return the measures of a step map.

    Args:
        step_map: `[L, S, S]`.
        sizes: Tokens of each step.
        segments: The segment of each step, of `SEGMENTS`.
        pairs: Which token pairs the means on the map's diagonal are over, as in `step_saliency`.
    """
    values = step_map.double()
    thinking = torch.tensor([name == THINKING for name in segments])
    summary = torch.tensor([name == SUMMARY for name in segments])
    decay, decay_share = _mass_on(values, summary, thinking)
    summary_self, summary_self_share = _mass_on(values, summary, summary)
    sums = values * pair_counts(sizes, pairs)
    summary_intensity = _intensity(sums, sizes, summary)
    thinking_intensity = _intensity(sums, sizes, thinking)
    return StepMeasures(
        lock_in=_mean_rows(row_shares(values)[0], thinking),
        reach=_mean_rows(row_shares(values)[1], thinking),
        decay=decay,
        decay_share=decay_share,
        decay_slope=_deep_slope(decay),
        decay_share_slope=_deep_slope(decay_share),
        summary_self=summary_self,
        summary_self_share=summary_self_share,
        summary_intensity=summary_intensity,
        thinking_intensity=thinking_intensity,
        intensity_ratio=summary_intensity / thinking_intensity,
    )


def pair_counts(sizes: Sequence[int], pairs: str = "all") -> Tensor:
    """Return how many token pairs each entry of a map is the mean over, `[S, S]` float64."""
    n = torch.tensor(sizes, dtype=torch.float64)
    counts = n[:, None] * n
    if pairs == "causal":
        counts.diagonal().copy_(n * (n + 1) / 2)
    return counts


def row_shares(values: Tensor) -> tuple[Tensor, Tensor]:
    """Return lock-in and reach of every row, both `[L, S]`; NaN for a row without mass."""
    total = values.sum(-1)
    own = values.diagonal(dim1=1, dim2=2)
    previous = torch.cat([torch.zeros_like(own[:, :1]), values.diagonal(-1, dim1=1, dim2=2)], dim=1)
    older = values.tril(-2).sum(-1)
    reach = older.clone()
    if values.shape[-1] > 1:
        reach[:, 1] = values[:, 1, 0]
    return (own + previous) / total, reach / total


def _mean_rows(values: Tensor, rows: Tensor) -> Tensor:
    return values[:, rows].nanmean(1)


def _mass_on(values: Tensor, rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mass of some rows on some columns, and its share of their whole mass, as means over the rows `[L]`."""
    if not bool(rows.any() and columns.any()):
        nothing = torch.full(values.shape[:1], float("nan"), dtype=values.dtype)
        return nothing, nothing
    mass = values[:, rows][:, :, columns].sum(-1)
    return mass.mean(1), (mass / values[:, rows].sum(-1)).nanmean(1)


def _intensity(sums: Tensor, sizes: Sequence[int], steps: Tensor) -> Tensor:
    n = sum(size for size, chosen in zip(sizes, steps.tolist(), strict=True) if chosen)
    total = sums[:, steps][:, :, steps].sum((1, 2))
    return total / (n * (n + 1) / 2) if n else torch.full_like(total, float("nan"))


def _deep_slope(values: Tensor) -> Tensor:
    """Return the least-squares slope over the deepest half of the layers; NaN with fewer than two."""
    deep = values[len(values) // 2 :]
    if len(deep) < 2:
        return torch.tensor(float("nan"), dtype=values.dtype)
    depth = torch.arange(len(deep), dtype=values.dtype)
    depth = depth - depth.mean()
    return (depth * (deep - deep.mean())).sum() / (depth * depth).sum()
