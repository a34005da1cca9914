"""The logits of a few tokens alone, where a model's output head is simple enough to be computed token by token.

`residual.unembed` is the model's own code and gives the logits of the whole vocabulary. Here the head is recognised
from logits that it gave: `logits = f(scale * (W h + b))` with a plain weight, and f either nothing or a softcap.
Tokens whose logits are not computed like that (some models hide a few) are marked.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from chainwright.models.anatomy import Anatomy
from chainwright.models.seam import widened
from chainwright.models.sharding import present

# of the largest logit; the rounding of a product, not of what cancels in it
_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-5}


@dataclass(frozen=True)
class OutputHead:
    """An output head whose logits can be computed for some tokens alone.

    Attributes:
        weight: `[V, D]`; not copied, unless it is gathered from ranks.
        bias: `[V]`, or None.
        unembed_scale: What the final norm's output is multiplied by first.
        scale: What the head's products are multiplied by.
        cap: The softcap, or None.
        is_plain: Whether each token's logit is computed like that, `[V]`.
    """

    weight: Tensor
    bias: Tensor | None
    unembed_scale: float
    scale: float
    cap: float | None
    is_plain: Tensor

    def given(self, normed: Tensor) -> Tensor:
        """Return what the head is given for vectors after the final norm."""
        return (normed * self.unembed_scale).to(self.weight.dtype)

    def logits(self, normed: Tensor, token_ids: Tensor) -> Tensor:
        """Return the logits of some tokens `[K]` for vectors taken after the final norm `[R, D]`, as `[R, K]`."""
        bias = None if self.bias is None else self.bias[token_ids]
        return self.behind(nn.functional.linear(self.given(normed), self.weight[token_ids], bias))

    def every(self, normed: Tensor) -> Tensor:
        """Return the logits of the whole vocabulary, `[R, V]`."""
        return self.behind(nn.functional.linear(self.given(normed), self.weight, self.bias))

    def behind(self, products: Tensor) -> Tensor:
        """Return what the model makes of the products `W h + b`."""
        scaled = widened(products) if self.scale == 1 else widened(products) * self.scale
        return scaled if self.cap is None else self.cap * torch.tanh(scaled / self.cap)


def output_head(parts: Anatomy, normed: Tensor, logits: Tensor) -> OutputHead | None:
    """Return a model's output head, recognised from logits that it gave, or None if it is of another kind.

    Args:
        parts: Anatomy of the model.
        normed: Vectors after the final norm, `[R, D]`.
        logits: What `unembed` returns for them, `[R, V]`.
    """
    head = parts.model.get_output_embeddings()
    if type(head) is not nn.Linear or head.weight.is_meta or head.weight.shape != (logits.shape[1], normed.shape[1]):
        return None
    weight, bias = present(head.weight.detach()), None if head.bias is None else present(head.bias.detach())
    cap = getattr(parts.model.config.get_text_config(), "final_logit_softcapping", None)
    every = torch.ones(logits.shape[1], dtype=torch.bool, device=logits.device)
    found = OutputHead(weight, bias, parts.unembed_scale, 1.0, cap, every)
    products = widened(nn.functional.linear(found.given(normed), weight, bias))
    if cap is None:
        # most tokens have the same ratio, whatever is done to a few of them; that of a row of zeros (padding) is NaN
        found = replace(found, scale=float((logits[0] / products[0]).nanmedian()))
    tolerance = _TOLERANCE.get(weight.dtype, 0.01) * logits.abs().amax(-1, keepdim=True)
    is_plain = ((found.behind(products) - logits).abs() <= tolerance).all(0)
    return replace(found, is_plain=is_plain) if is_plain.float().mean() > 0.5 else None
