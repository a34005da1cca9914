"""Each head's causal effect on the probability of a token: silence it and take the difference.

Three ways to the same map, from exact to cheap:

- exact: every head is silenced in turn;
- gradient: a first-order estimate for all heads from one backward pass;
- screened: the estimate ranks the heads, and the top-ranked share of them is measured exactly.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import torch
from torch import Tensor, nn

from chainwright._config import Positions
from chainwright._errors import BadInput
from chainwright._finding import Finding
from chainwright._progress import progress_bar
from chainwright._registry import register
from chainwright.diagnose.heads._sweep.baseline_pass import Contexts
from chainwright.diagnose.heads._sweep.options import (
    Method,
    Products,
    check_options,
    check_products,
    n_measured,
    n_screened,
)
from chainwright.diagnose.heads._sweep.run import gradient_each, knock_out_each
from chainwright.diagnose.heads.lens import check_token_ids, in_vocabulary
from chainwright.models.anatomy import Anatomy, anatomy, evaluating
from chainwright.models.capture import check_ids
from chainwright.models.load import provenance

if TYPE_CHECKING:
    from plotly.graph_objects import Figure


@register("finding", "KnockoutEffects")
@dataclass(frozen=True, kw_only=True)
class KnockoutEffects(Finding):
    """How much probability a token loses when one head is silenced.

    Attributes:
        baseline: Probability of each row's token with every head in place, `[N]`.
        effect: `baseline` minus the probability without the head, `[N, L, H]`; positive: the head supports the
            token.
        is_exact: Where `effect` was measured rather than estimated, bool `[N, L, H]`.
    """

    baseline: Tensor
    effect: Tensor
    is_exact: Tensor

    def summary(self) -> str:
        """Return the mean probability and the heads with the largest mean effects, in a sentence."""
        mean = self.effect.mean(0)
        best = mean.flatten().topk(min(5, mean.numel()))
        heads = [(int(i) // mean.shape[1], int(i) % mean.shape[1]) for i in best.indices]
        named = ", ".join(
            f"L{layer}H{head} {float(value):+.3f}" for (layer, head), value in zip(heads, best.values, strict=True)
        )
        return f"Mean probability {float(self.baseline.mean()):.3f}; largest mean loss when silenced: {named}."

    def to_frame(self) -> pa.Table:
        """Return one row for each context and head."""
        n_rows, n_layers, n_heads = self.effect.shape
        row, layer, head = torch.meshgrid(*map(torch.arange, (n_rows, n_layers, n_heads)), indexing="ij")
        return pa.table(
            {
                "row": row.flatten().tolist(),
                "layer": layer.flatten().tolist(),
                "head": head.flatten().tolist(),
                "baseline": self.baseline[row.flatten()].tolist(),
                "effect": self.effect.flatten().tolist(),
                "is_exact": self.is_exact.flatten().tolist(),
            }
        )

    def plot(self, row: int | None = None) -> Figure:
        """Return the effects as a map, layer against head.

        Args:
            row: One context; by default the mean over all.

        Raises:
            BadInput: There is no such context.
        """
        from chainwright.figures import heat_of

        if row is not None and not 0 <= row < len(self.effect):
            raise BadInput(f"row must be between 0 and {len(self.effect) - 1}; got {row}.")
        return heat_of(self.effect.mean(0) if row is None else self.effect[row], "probability lost")


def knockout_effects(
    model: nn.Module,
    input_ids: Tensor,
    token_ids: Tensor,
    *,
    attention_mask: Tensor | None = None,
    positions: Positions = "all",
    method: Method = "exact",
    share: float = 0.25,
    max_bytes: int | None = None,
    products: Products = "model",
    progress: bool = False,
) -> KnockoutEffects:
    """Return each head's causal effect on the probability of a token at the last position.

    Args:
        model: A Transformers decoder.
        input_ids: Contexts `[N, T]`, left-padded.
        token_ids: The token whose probability is measured, one per context, `[N]`.
        attention_mask: `[N, T]`, None if no row is padded.
        positions: Silence the head at all positions (as in the paper: what it wrote at earlier tokens is removed
            too) or only at the last.
        method: "exact", "gradient" or "screened".
        share: For "screened", the share of each row's heads that is measured exactly.
        max_bytes: Approximate memory, besides the model, for the variants that run side by side, and for the records
            of the rows that run together; one row and one variant always run. None chooses what is fast on the
            model's device. `plan_knockout_effects` estimates the result.
        products: "model" multiplies as the model does. "bfloat16", for float32 models and positions "all", multiplies
            what differs from the pass with every head in place in bfloat16: on processors with instructions for it
            about 1.6 times as fast, with effects rounded to two or three digits.
        progress: Show a progress bar on a terminal. If interrupted, the model is restored.

    Raises:
        BadInput: Shapes do not fit, an id is outside the vocabulary, the method is unknown, the share is outside
            0..1, `max_bytes` is below 1, or `products` does not fit the model or the other options.
        UnsupportedModel: The model's layers cannot be run one by one.

    Note:
        Edits that are attached when it is called stay in force, so it measures what single heads do in the edited
        model; "exact" is then slower.
        The gradient estimate is `sum over positions of z . dp/dz`. It ranks heads well but misjudges sizes: silencing
        a head is a large step, and near p = 1 the slope is flat.

    Source: TCR (arXiv 2601.21214), section 3, causal indirect effect by zero ablation.
    """
    check_options(method, positions, share, max_bytes)
    parts = anatomy(model)
    check_products(parts, products, method, positions)
    contexts = as_contexts(parts, input_ids, token_ids, attention_mask)
    total = n_measured(parts, len(contexts.input_ids), method, share)
    with evaluating(parts.model), progress_bar("knockouts", total, shown=progress) as bar:
        baseline, effect, is_exact = _measure(
            parts, contexts, positions, method, share, max_bytes, bar.advance, is_halved=products == "bfloat16"
        )
    config: dict[str, Any] = {"method": method, "positions": positions, "max_bytes": max_bytes}
    config |= {"products": products} if products != "model" else {}
    return KnockoutEffects(
        baseline=baseline,
        effect=effect,
        is_exact=is_exact,
        config=config | ({"share": share} if method == "screened" else {}),
        provenance=provenance(parts.model),
    )


def as_contexts(parts: Anatomy, input_ids: Tensor, token_ids: Tensor, attention_mask: Tensor | None) -> Contexts:
    """Return checked contexts on the model's device, with one tracked token per row."""
    check_ids(input_ids, attention_mask)
    tracked = check_token_ids(parts, token_ids, len(input_ids))[:, None]
    input_ids = in_vocabulary(parts, "input_ids", input_ids)
    mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask.to(parts.device)
    return Contexts(input_ids, mask, tracked)


def _measure(
    parts: Anatomy,
    contexts: Contexts,
    positions: Positions,
    method: Method,
    share: float,
    max_bytes: int | None,
    report: Callable[[int], None],
    *,
    is_halved: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return baseline `[N]`, effects `[N, L, H]`, and where they were measured."""
    if method == "exact":
        wanted = torch.ones(len(contexts.input_ids), parts.n_layers, parts.n_heads, dtype=torch.bool)
        results = knock_out_each(parts, contexts, wanted, positions, max_bytes, report, is_halved=is_halved)
        baseline = results.baseline[:, 0]
        return baseline, baseline[:, None, None] - results.probs[..., 0], wanted
    choose = partial(_top_ranked, share=share) if method == "screened" else None
    screened = gradient_each(parts, contexts, positions, choose, max_bytes, report, is_halved=is_halved)
    measured = screened.baseline[:, None, None] - screened.measured.probs[..., 0]
    return screened.baseline, torch.where(screened.wanted, measured, screened.estimate), screened.wanted


def _top_ranked(estimate: Tensor, share: float) -> Tensor:
    """Return where a row's estimate is among its largest, whatever the sign, bool `[N, L, H]`."""
    flat = estimate.flatten(1).abs()
    is_chosen = torch.zeros_like(flat, dtype=torch.bool)
    is_chosen.scatter_(1, flat.topk(n_screened(share, flat.shape[1]), dim=1).indices, True)
    return is_chosen.view_as(estimate)
