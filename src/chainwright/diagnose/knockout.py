"""What each head does to the probability of a token: zero it, look again, take the difference.

Three ways to the same map, from exact to cheap:

- exact: every head is silenced in turn;
- gradient: a first-order estimate for all heads from one backward pass;
- screened: the estimate ranks the heads, and the best-ranked share of them is measured exactly.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

import pyarrow as pa
import torch
from torch import Tensor, nn

from chainwright._errors import BadInput
from chainwright._finding import Finding
from chainwright.diagnose._sweep import knock_out_each
from chainwright.diagnose._sweep_plain import Contexts
from chainwright.diagnose.lens import check_token_ids, in_vocabulary
from chainwright.models.anatomy import Anatomy, anatomy, evaluating
from chainwright.models.capture import Positions, check_ids, forward
from chainwright.models.load import provenance
from chainwright.models.seam import Attend, AttentionCall, Handlers, attach, widened

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

Method = Literal["exact", "gradient", "screened"]


@dataclass(frozen=True, kw_only=True)
class KnockoutEffects(Finding):
    """How much probability a token loses when one head is silenced.

    Attributes:
        baseline: Probability of each row's token with every head in place, `[N]`.
        effect: `baseline` less the probability without the head, `[N, L, H]`; positive: the head pushes the
            token.
        is_exact: Where `effect` was measured and is no estimate, bool `[N, L, H]`.
    """

    baseline: Tensor
    effect: Tensor
    is_exact: Tensor

    def summary(self) -> str:
        """Return the heads with the largest mean effects."""
        mean = self.effect.mean(0)
        best = mean.flatten().topk(min(5, mean.numel()))
        heads = [(int(i) // mean.shape[1], int(i) % mean.shape[1]) for i in best.indices]
        named = ", ".join(
            f"L{layer}H{head} {float(value):+.3f}" for (layer, head), value in zip(heads, best.values, strict=True)
        )
        return f"Mean probability {float(self.baseline.mean()):.3f}; lost most without {named}."

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
            row: One context; left out: the mean over all.

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
) -> KnockoutEffects:
    """Return each head's causal effect on the probability of a token at the last position.

    Args:
        model: A Transformers decoder.
        input_ids: Contexts `[N, T]`, left-padded.
        token_ids: The token whose probability is followed, one a context, `[N]`.
        attention_mask: `[N, T]`, None if no row is padded.
        positions: Silence the head at all positions (the paper's way: also what it wrote into earlier tokens
            is gone) or only at the last.
        method: "exact", "gradient" or "screened".
        share: For "screened", the share of each row's heads that is measured exactly.
        max_bytes: How much memory the variants that are run side by side may take, roughly and besides the model, one
            plain pass and the inputs of its layers; never less than one variant takes. None chooses what is fast on
            the model's device. "gradient" is one pass over all rows and does not follow it.

    Raises:
        BadInput: Shapes do not fit, an id outside the vocabulary, an unknown method, a share outside 0..1, or a
            `max_bytes` below 1.
        UnsupportedModel: The model's layers cannot be run one by one.

    Note:
        Edits that are attached when it is called stay in force, so it shows what single heads do to the edited model;
        "exact" is then slower.
        The gradient estimate is `sum over positions of z . dp/dz`. It ranks heads well and misjudges sizes:
        silencing a head is a large step, and near p = 1 the slope is flat.

    Source: TCR (arXiv 2601.21214), section 3, causal indirect effect by zero ablation.
    """
    if method not in get_args(Method):
        raise BadInput(f"method must be one of {', '.join(get_args(Method))}; got {method!r}.")
    if positions not in get_args(Positions):
        raise BadInput(f"positions must be 'all' or 'last'; got {positions!r}.")
    if not 0 < share <= 1:
        raise BadInput(f"share must be above 0 and at most 1; got {share}.")
    if max_bytes is not None and max_bytes < 1:
        raise BadInput(f"max_bytes must be at least 1, or None; got {max_bytes}.")
    parts = anatomy(model)
    contexts = as_contexts(parts, input_ids, token_ids, attention_mask)
    with evaluating(parts.model):
        return _measure(parts, contexts, positions, method, share, max_bytes)


def as_contexts(parts: Anatomy, input_ids: Tensor, token_ids: Tensor, attention_mask: Tensor | None) -> Contexts:
    """Return checked contexts on the model's device, with one tracked token a row."""
    check_ids(input_ids, attention_mask)
    tracked = check_token_ids(parts, token_ids, len(input_ids))[:, None]
    input_ids = in_vocabulary(parts, "input_ids", input_ids)
    mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask.to(parts.model.device)
    return Contexts(input_ids, mask, tracked)


def baseline_probs(parts: Anatomy, contexts: Contexts) -> Tensor:
    """Return the probability of the tracked tokens with every head in place, `[N, K]`."""
    with torch.no_grad():
        logits = widened(forward(parts, contexts.input_ids, contexts.mask, last_only=True)[:, -1])
    return logits.softmax(-1).gather(-1, contexts.tracked).cpu()


def _measure(
    parts: Anatomy, contexts: Contexts, positions: Positions, method: Method, share: float, max_bytes: int | None
) -> KnockoutEffects:
    shape = (len(contexts.input_ids), parts.n_layers, parts.n_heads)
    if method == "exact":
        wanted = torch.ones(shape, dtype=torch.bool)
        knocked = knock_out_each(parts, contexts, wanted, positions, max_bytes)
        baseline = knocked.baseline[:, 0]
        effect = baseline[:, None, None] - knocked.probs[..., 0]
    else:
        baseline, effect = _gradient(parts, contexts, positions)
        wanted = torch.zeros(shape, dtype=torch.bool)
    if method == "screened":
        wanted = _best_ranked(effect, share)
        knocked = knock_out_each(parts, contexts, wanted, positions, max_bytes)
        baseline = knocked.baseline[:, 0]
        effect = torch.where(wanted, baseline[:, None, None] - knocked.probs[..., 0], effect)
    config = {"method": method, "positions": positions} | ({"share": share} if method == "screened" else {})
    return KnockoutEffects(
        baseline=baseline, effect=effect, is_exact=wanted, config=config, provenance=provenance(parts.model)
    )


def _best_ranked(estimate: Tensor, share: float) -> Tensor:
    flat = estimate.flatten(1).abs()
    n_kept = max(1, round(share * flat.shape[1]))
    kept = torch.zeros_like(flat, dtype=torch.bool)
    kept.scatter_(1, flat.topk(n_kept, dim=1).indices, True)
    return kept.view_as(estimate)


def gradient_effects(parts: Anatomy, contexts: Contexts, positions: Positions) -> Tensor:
    """Return the first-order estimate of every head's effect, `[N, L, H]`, from one backward pass."""
    return _gradient(parts, contexts, positions)[1]


def _gradient(parts: Anatomy, contexts: Contexts, positions: Positions) -> tuple[Tensor, Tensor]:
    """Return the probability of the first tracked token `[N]`, and the estimates `[N, L, H]`."""
    n_rows = len(contexts.input_ids)
    dtype = torch.promote_types(parts.model.dtype, torch.float32)
    gates: dict[int, Tensor] = {
        i: torch.ones(n_rows, parts.n_heads, dtype=dtype, device=parts.model.device, requires_grad=True)
        for i in range(parts.n_layers)
    }

    def gated(call: AttentionCall, attend: Attend) -> Tensor:
        z = attend(call)
        gate = gates[call.layer].to(z)[:, None, :, None]
        if positions == "all":
            return z * gate
        return torch.cat([z[:, :-1], z[:, -1:] * gate], dim=1)

    with torch.enable_grad(), attach(parts.model, Handlers({i: (gated,) for i in gates})):
        logits = widened(forward(parts, contexts.input_ids, contexts.mask, last_only=True)[:, -1])
        probs = logits.softmax(-1).gather(-1, contexts.tracked[:, :1])
        slopes = torch.autograd.grad(probs.sum(), list(gates.values()))
    return probs.detach()[:, 0].cpu(), torch.stack([slope.cpu() for slope in slopes], dim=1)
