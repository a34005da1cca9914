"""All heads at once from one backward pass: the derivative of a probability with respect to each head's gate.

Every head's z is multiplied by a gate of 1; the gradient of the probability with respect to the gate is the sum over
positions of z . dp/dz, the first-order estimate of the loss when the head is silenced. No gradients are computed for
the weights. The forward pass also serves as the baseline pass of the exact forms.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from chainwright._config import Positions
from chainwright.diagnose.heads._sweep.baseline_pass import BaselinePass, Contexts, record
from chainwright.diagnose.heads._sweep.options import ONE_BY_ONE
from chainwright.models.anatomy import Anatomy, frozen
from chainwright.models.capture import Reader
from chainwright.models.gradients import check_gradients
from chainwright.models.seam import Attend, AttentionCall, Handlers, attach, attached_handlers


class Slopes(NamedTuple):
    """The baseline pass, the probability of the first tracked token `[N]`, and its derivatives `[N, L, H]`."""

    plain: BaselinePass
    probs: Tensor
    slopes: Tensor


def gradient_pass(parts: Anatomy, contexts: Contexts, positions: Positions) -> Slopes:
    """Return the derivatives for all heads from one forward and one backward pass.

    Raises:
        UnsupportedModel: No gradients flow through the model.
    """
    check_gradients(parts, "A sweep with method='gradient' or 'screened'", f"{ONE_BY_ONE}, or ")
    n_rows = len(contexts.input_ids)
    dtype = torch.promote_types(parts.model.dtype, torch.float32)
    gates: dict[int, Tensor] = {
        i: torch.ones(n_rows, parts.n_heads, dtype=dtype, device=parts.device, requires_grad=True)
        for i in range(parts.n_layers)
    }

    def gated(call: AttentionCall, attend: Attend) -> Tensor:
        z = attend(call)
        gate = gates[call.layer].to(z)[:, None, :, None]
        if positions == "all":
            return z * gate
        return torch.cat([z[:, :-1], z[:, -1:] * gate], dim=1)

    outside = attached_handlers(parts.model)
    with torch.enable_grad(), frozen(parts.model), attach(parts.model, Handlers({i: (gated,) for i in gates})):
        plain = record(parts, contexts, outside, keys=positions == "last" and not outside.by_layer)
        probs = plain.logits.softmax(-1).gather(-1, contexts.tracked[:, :1])
        slopes = torch.autograd.grad(probs.sum(), list(gates.values()))
    plain = BaselinePass(plain.calls, plain.logits.detach())
    return Slopes(plain, probs.detach()[:, 0].cpu(), torch.stack([slope.cpu() for slope in slopes], dim=1))


class SplitSlopes(NamedTuple):
    """The baseline pass, and what each head's gates do, one on all positions but the last and one on the last.

    Attributes:
        plain: With keys and values, as the sweep of the last position reads it.
        slopes: Derivatives of each tracked token's probability with respect to both gates `[N, L, H, K, 2]`.
    """

    plain: BaselinePass
    slopes: Tensor


def split_slopes(parts: Anatomy, contexts: Contexts, reader: Reader | None = None) -> SplitSlopes:
    """Return the derivatives of each tracked token's probability, from a forward pass and a backward pass per token.

    Args:
        parts: Anatomy of the model.
        contexts: Rows to run.
        reader: Reads the forward pass.

    Raises:
        UnsupportedModel: No gradients flow through the model.
    """
    check_gradients(parts, "Screening heads by their slopes", "use method='exact', or ")
    n_rows, n_tracked = contexts.tracked.shape
    dtype = torch.promote_types(parts.model.dtype, torch.float32)
    gates = [
        torch.ones(n_rows, parts.n_heads, 2, dtype=dtype, device=parts.device, requires_grad=True)
        for _ in range(parts.n_layers)
    ]

    def gated(call: AttentionCall, attend: Attend) -> Tensor:
        z = attend(call)
        earlier, last = gates[call.layer].to(z)[:, None, :, :, None].unbind(3)
        return torch.cat([z[:, :-1] * earlier, z[:, -1:] * last], dim=1)

    outside = attached_handlers(parts.model)
    handlers = Handlers({i: (gated,) for i in range(parts.n_layers)})
    with torch.enable_grad(), frozen(parts.model), attach(parts.model, handlers):
        plain = record(parts, contexts, outside, keys=not outside.by_layer, reader=reader)
        probs = plain.logits.softmax(-1).gather(-1, contexts.tracked).sum(0)
        slopes = [torch.autograd.grad(probs[k], gates, retain_graph=k < n_tracked - 1) for k in range(n_tracked)]
    plain = BaselinePass(plain.calls, plain.logits.detach())
    by_token = torch.stack([torch.stack([slope.cpu() for slope in one], dim=1) for one in slopes], dim=3)
    return SplitSlopes(plain, by_token)
