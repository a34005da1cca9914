"""Does a step map show what matters? Cut the attention from one step to another and measure what the answer loses.

1. Draw pairs (step i, earlier step j) of a trace.
2. For each pair, cut the attention from i's tokens to j's in one band of layers at a time, and measure how much the
   log-probability of a span (the summary) falls.
3. Correlate these effects with the saliency of the pairs in that band, by rank.

Where the correlation is near zero, the map says nothing about what the answer depends on. A cut also redistributes the
query's attention over the other tokens, and later steps may carry the same information, so an effect of zero does not
prove that a step is useless.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import pyarrow as pa
import scipy
import torch
from torch import Tensor, nn

from chainwright._errors import BadInput
from chainwright._finding import Finding
from chainwright._registry import register
from chainwright._stats import percentile_interval
from chainwright.diagnose.steps.saliency import StepSaliency, step_saliency
from chainwright.edits import Cut, CutAttention, edit
from chainwright.models._probe import evaluating
from chainwright.models.anatomy import Anatomy, anatomy
from chainwright.models.capture import final_states
from chainwright.models.load import provenance
from chainwright.models.residual import unembed
from chainwright.traces import Trace

_TOKENS_AT_ONCE = 2**13


@register("finding", "StepCauses")
@dataclass(frozen=True, kw_only=True)
class StepCauses(Finding):
    """The causal effect of cutting step pairs, next to their saliency; P pairs, B bands of layers.

    Attributes:
        effect: Drop in the mean log-probability of the span when a pair is cut in a band, nats, `[P, B]`.
        saliency: Mean saliency of the pair over the band's layers, `[P, B]`.
        pairs: (trace, step, earlier step).
        bands: First and last layer (half-open) of each band.
        rank_correlation: Spearman's, per band `[B]`; NaN where one side is constant.
        p: Its p-value `[B]`; only a guide, since pairs of one trace are not independent.
    """

    effect: Tensor
    saliency: Tensor
    pairs: list[list[int]]
    bands: list[list[int]]
    rank_correlation: Tensor
    p: Tensor

    def summary(self) -> str:
        """Return the rank correlation of each band, in a sentence."""
        each = [
            f"layers {first}-{last - 1}: {rho:+.2f}"
            for (first, last), rho in zip(self.bands, self.rank_correlation.tolist(), strict=True)
        ]
        return f"Rank correlation of saliency with causal effect over {len(self.pairs)} step pairs: {', '.join(each)}."

    def intervals(self, n_resamples: int = 500, seed: int = 0) -> Tensor:
        """Return 95% bootstrap intervals of `rank_correlation` `[B, 2]`, resampling whole traces rather than pairs.

        NaN for a band without a correlation, and for all bands with fewer than two traces.
        """
        rows: dict[int, list[int]] = {}
        for i, (trace, _, _) in enumerate(self.pairs):
            rows.setdefault(trace, []).append(i)
        traces, random = list(rows), Random(seed)
        if len(traces) < 2:
            return torch.full((len(self.bands), 2), float("nan"))
        drawn = [[i for t in random.choices(traces, k=len(traces)) for i in rows[t]] for _ in range(n_resamples)]
        return torch.stack([self._interval(band, drawn) for band in range(len(self.bands))])

    def _interval(self, band: int, drawn: Sequence[Sequence[int]]) -> Tensor:
        return torch.tensor(
            percentile_interval([_spearman(self.saliency[i, band], self.effect[i, band])[0] for i in drawn])
        )

    def separation(self, least: float = 0.01) -> Tensor:
        """Return how well saliency separates the pairs that matter from the others, `[B, 2]`.

        The first column is the number of pairs that cost at least `least` nats when cut; the second is the probability
        that such a pair has a higher saliency than another one (NaN if either group is empty). Most cuts change
        nothing but rounding, and these dominate a rank correlation over all pairs.
        """
        return torch.stack([_separated(s, e >= least) for s, e in zip(self.saliency.T, self.effect.T, strict=True)])

    def to_frame(self) -> pa.Table:
        """Return one row per pair and band."""
        rows: list[dict[str, Any]] = [
            {
                "trace": trace,
                "step": step,
                "from_step": earlier,
                "band": f"{first}-{last - 1}",
                "effect": float(self.effect[i, b]),
                "saliency": float(self.saliency[i, b]),
            }
            for i, (trace, step, earlier) in enumerate(self.pairs)
            for b, (first, last) in enumerate(self.bands)
        ]
        return pa.Table.from_pylist(rows)


def step_causes(
    model: nn.Module, traces: Sequence[Trace], *, n_pairs: int = 40, n_bands: int = 2, seed: int = 0
) -> StepCauses:
    """Return how far the step maps of some traces agree with the effects of cuts.

    Saliency is computed for the summary's loss, the effect on the summary's log-probability.

    Args:
        model: A Transformers decoder.
        traces: Traces with a summary and at least two steps before it.
        n_pairs: Step pairs drawn over all traces.
        n_bands: Number of equal bands that the layers are divided into.
        seed: Seed of the draw.

    Raises:
        BadInput: A trace has no summary or a single step, or a number is below 1.
    """
    parts = anatomy(model)
    if not traces or n_pairs < 1 or not 1 <= n_bands <= parts.n_layers:
        raise BadInput(
            f"step_causes needs a trace, at least one pair, and 1 to {parts.n_layers} bands of layers; got "
            f"{len(traces)} traces, n_pairs={n_pairs} and n_bands={n_bands}."
        )
    bands = [[b * parts.n_layers // n_bands, (b + 1) * parts.n_layers // n_bands] for b in range(n_bands)]
    pairs = _draw(traces, n_pairs, seed)
    maps = {i: step_saliency(model, traces[i], target="span") for i in sorted({trace for trace, _, _ in pairs})}
    effect = torch.zeros(len(pairs), n_bands)
    with evaluating(parts.model), torch.no_grad():
        for i in maps:
            mine = [row for row, pair in enumerate(pairs) if pair[0] == i]
            effect[mine] = _effects(parts, traces[i], [pairs[row] for row in mine], bands)
    saliency = torch.stack([_of_pair(maps[trace], step, earlier, bands) for trace, step, earlier in pairs])
    correlations = [_spearman(saliency[:, b], effect[:, b]) for b in range(n_bands)]
    return StepCauses(
        effect=effect,
        saliency=saliency,
        pairs=[list(pair) for pair in pairs],
        bands=bands,
        rank_correlation=torch.tensor([rho for rho, _ in correlations]),
        p=torch.tensor([p for _, p in correlations]),
        config={"n_pairs": n_pairs, "n_bands": n_bands, "seed": seed},
        provenance=provenance(parts.model),
    )


def _separated(saliency: Tensor, matters: Tensor) -> Tensor:
    n, high, low = int(matters.sum()), saliency[matters], saliency[~matters]
    return torch.tensor([n, ((high[:, None] > low).double() + 0.5 * (high[:, None] == low)).mean()])


def _spearman(a: Tensor, b: Tensor) -> tuple[float, float]:
    if len(a) < 3 or bool((a == a[0]).all()) or bool((b == b[0]).all()):
        return float("nan"), float("nan")
    test = scipy.stats.spearmanr(a.numpy(), b.numpy())
    return float(test.statistic), float(test.pvalue)


def _draw(traces: Sequence[Trace], n_pairs: int, seed: int) -> list[tuple[int, int, int]]:
    every: list[tuple[int, int, int]] = []
    for i, trace in enumerate(traces):
        if trace.summary.start == trace.summary.end or len(trace.steps) < 2:
            raise BadInput(f"Trace {i} has no summary, or no step before it, so no effect can be measured; omit it.")
        # a tool wrote its message, so nothing that the model did there can be cut
        models = [step for step, is_models in enumerate(trace.is_models_step) if is_models]
        every += [(i, step, earlier) for step in models for earlier in range(step)]
    return sorted(Random(seed).sample(every, min(n_pairs, len(every))))


def _of_pair(saliency: StepSaliency, step: int, earlier: int, bands: Sequence[Sequence[int]]) -> Tensor:
    return torch.stack([saliency.map[first:last, step, earlier].mean() for first, last in bands])


def _effects(
    parts: Anatomy, trace: Trace, pairs: Sequence[tuple[int, int, int]], bands: Sequence[Sequence[int]]
) -> Tensor:
    """Return the effects of cuts in one trace `[pairs, bands]`, several cuts per pass."""
    whole = float(_mean_logprob(parts, trace, 1)[0])
    at_once = max(1, _TOKENS_AT_ONCE // len(trace))
    effects = torch.zeros(len(pairs), len(bands))
    for b, (first, last) in enumerate(bands):
        for start in range(0, len(pairs), at_once):
            rows = pairs[start : start + at_once]
            cuts = [Cut(trace.steps[step], trace.steps[earlier]) for _, step, earlier in rows]
            with edit(parts.model, CutAttention(cuts, range(first, last))):
                effects[start : start + len(rows), b] = whole - _mean_logprob(parts, trace, len(rows))
    return effects


def _mean_logprob(parts: Anatomy, trace: Trace, n_rows: int) -> Tensor:
    """Return the mean log-probability of the summary in `n_rows` copies of the trace, `[n_rows]`."""
    ids = trace.input_ids.to(parts.device)
    hidden = final_states(parts, ids.expand(n_rows, -1))
    here = slice(max(1, trace.summary.start) - 1, trace.summary.end - 1)
    log_probs = unembed(parts, hidden[:, here].flatten(0, 1)).log_softmax(-1)
    tokens = ids[here.start + 1 : here.stop + 1].repeat(n_rows)
    return log_probs.gather(-1, tokens[:, None]).view(n_rows, -1).mean(1).cpu()
