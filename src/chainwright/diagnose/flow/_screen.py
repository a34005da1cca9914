"""An upper bound on a token's log-probability for many residual vectors, without unembedding them.

`log p(t) = logit(t) - log sum exp(all logits)`, so a lower bound on the sum gives an upper bound on log p. A vector
x + v, where v is what one neuron writes, is compared with x, whose logits y are known:

1. The terms of the K likeliest tokens at x and of the target are exact: K inner products per vector.
2. The terms of all other tokens together are at least `Z exp(p . (y' - y))`, with Z their sum at x and p their
   probabilities at x (Jensen's inequality). Where logits are linear in what the output head is given, that is one more
   inner product, with the mean of the tokens' rows under p. With a softcap these terms are dropped.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from chainwright.models.anatomy import Anatomy
from chainwright.models.output_head import OutputHead, output_head
from chainwright.models.residual import unembed
from chainwright.models.seam import widened

_BLOCK = 8192  # tokens whose rows are widened at once
_CAPPED = 8  # as many times more tokens with a term of their own where the others have none


class _Others(NamedTuple):
    """All tokens without a term of their own: log of their sum `[B]`, and their mean row `[B, D]`."""

    log_sum: Tensor
    mean: Tensor


@dataclass(frozen=True)
class Screen:
    """Bounds on the log-probability of one token around some vectors.

    Attributes:
        token: The target.
        normed: The vectors, after the final norm, `[B, D]`.
        log_probs: The token's log-probability at each of them, `[B]`.
        head: The output head; None if it was not recognised, which makes every bound infinite.
        ids: Tokens with a term of their own, `[B, K]`.
        others: The rest of the vocabulary.
        room: What rounding may add to a log-probability, nats.
    """

    token: int
    normed: Tensor
    log_probs: Tensor
    head: OutputHead | None
    ids: Tensor
    others: _Others
    room: float

    def upper(self, base: int, normed: Tensor) -> Tensor:
        """Return an upper bound on the token's log-probability for vectors near one of those known.

        Args:
            base: The number of the known vector.
            normed: Vectors after the final norm, `[R, D]`.

        Returns:
            `[R]`, nats; infinite where nothing is known.
        """
        if self.head is None:
            return normed.new_full((len(normed),), torch.inf)
        terms = [self.head.logits(normed, self.ids[base])]
        if self.head.cap is None:
            change = widened(self.head.given(normed)) - widened(self.head.given(self.normed[base]))
            others = self.others.log_sum[base] + self.head.scale * (change @ self.others.mean[base])
            terms.append(others[:, None])
        own = int((self.ids[base] == self.token).nonzero()[0])
        bound = torch.cat(terms, dim=1).log_softmax(-1)[:, own] + self.room
        return bound.nan_to_num(nan=torch.inf, posinf=torch.inf, neginf=-torch.inf)


def screen(parts: Anatomy, token: int, normed: Tensor, *, n_tokens: int, n_rows: int) -> Screen:
    """Return bounds around some vectors, whose logits are read in full.

    Args:
        parts: Anatomy of the model.
        token: The target.
        normed: The vectors, after the final norm, `[B, D]`.
        n_tokens: K, how many tokens have a term of their own; eight times as many with a softcap.
        n_rows: Vectors unembedded at once.
    """
    head: OutputHead | None = None
    log_probs, ids, others, largest = [], [], [], 0.0
    for i, part in enumerate(pieces(normed, n_rows)):
        logits = unembed(parts, part)
        log_probs.append(logits.log_softmax(-1)[:, token])
        if i == 0:
            head = output_head(parts, part, logits)
            head = head if head is not None and bool(head.is_plain[token]) else None
        if head is not None:
            plain = logits.masked_fill(~head.is_plain, -torch.inf)
            ids.append(_own_tokens(plain, token, n_tokens * (1 if head.cap is None else _CAPPED)))
            others.append(_others(plain, ids[-1], head.weight))
            largest = max(largest, float(logits[:, head.is_plain].abs().max()))
    empty = normed.new_empty(0)
    return Screen(
        token=token,
        normed=normed,
        log_probs=torch.cat(log_probs),
        head=head,
        ids=torch.cat(ids) if ids else empty.long(),
        others=_Others(*(torch.cat(each) for each in zip(*others, strict=True))) if others else _Others(empty, empty),
        room=4 * normed.shape[-1] ** 0.5 * torch.finfo(widened(empty).dtype).eps * largest,
    )


def _own_tokens(logits: Tensor, token: int, n: int) -> Tensor:
    """Return the likeliest tokens and the target, `[B, K]`."""
    ids = logits.topk(min(n, int(logits[0].isfinite().sum()))).indices
    is_missing = ~(ids == token).any(-1)
    ids[is_missing, -1] = token
    return ids


def _others(logits: Tensor, own: Tensor, weight: Tensor) -> _Others:
    others = logits.scatter(-1, own, -torch.inf)
    top = others.amax(-1, keepdim=True).nan_to_num(neginf=0.0)  # no token left: their sum is zero
    terms = (others - top).exp()
    total = terms.sum(-1, keepdim=True)
    mean = torch.zeros(len(logits), weight.shape[1], dtype=logits.dtype, device=logits.device)
    for start in range(0, len(weight), _BLOCK):
        rows = slice(start, start + _BLOCK)
        mean += terms[:, rows] @ widened(weight[rows])
    return _Others((top + total.log())[:, 0], mean / total.clamp_min(torch.finfo(total.dtype).tiny))


def pieces(rows: Tensor, n: int) -> Iterator[Tensor]:
    """Yield rows in pieces of at most `n`."""
    yield from (rows[i : i + n] for i in range(0, len(rows), n))
