"""Estimates of all heads' effects on several tokens, by which the heads to measure are chosen.

Two cheap quantities see different parts of an effect. Silencing a head at the last position alone is exact and costs
about a forward pass for all heads together; the slope along a head's gate includes the earlier positions but is a
linearisation. A head ranks by the larger of the two.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from chainwright.diagnose.heads._sweep.baseline_pass import Contexts, Group, groups, is_edited
from chainwright.diagnose.heads._sweep.gradient import split_slopes
from chainwright.diagnose.heads._sweep.run import BACKWARD, BYTES_KEPT, Sweep, bytes_per_token, kind_of
from chainwright.diagnose.heads.lens import writing_scores
from chainwright.models.anatomy import Anatomy
from chainwright.models.capture import Reader


class Estimates(NamedTuple):
    """What is known of every head without silencing it at all positions; losses of K tracked tokens.

    Attributes:
        baseline: Probability with every head in place `[N, K]`.
        first: The likeliest token then `[N]`.
        last: Probability lost when the head is silenced at the last position alone, measured `[N, L, H, K]`.
        slope: First-order estimate at all positions `[N, L, H, K]`.
        earlier: The part of `slope` that belongs to the positions before the last `[N, L, H, K]`.
        writing: Answer-writing scores on the first tracked token `[N, L, H]`.
    """

    baseline: Tensor
    first: Tensor
    last: Tensor
    slope: Tensor
    earlier: Tensor
    writing: Tensor

    @property
    def loss(self) -> Tensor:
        """Return the estimated loss: measured at the last position, first-order at the earlier ones."""
        return self.last + self.earlier

    @property
    def size(self) -> Tensor:
        """Return what heads are ranked by: the larger of the two, whatever the sign."""
        return torch.maximum(self.last.abs(), self.slope.abs())


def estimate_each(parts: Anatomy, contexts: Contexts, max_bytes: int | None = None) -> Estimates:
    """Return estimates for every head, from a forward pass, a backward pass per token and a last-position sweep.

    Raises:
        UnsupportedModel: No gradients flow through the model, or its layers cannot be run one by one.
    """
    n_rows = len(contexts.input_ids)
    wanted = torch.ones(n_rows, parts.n_layers, parts.n_heads, dtype=torch.bool)
    sweep = Sweep(parts, contexts, "last", max_bytes)
    baseline, probs, _ = sweep.results
    slopes, first = torch.zeros(*probs.shape, 2, dtype=probs.dtype), torch.zeros(n_rows, dtype=torch.long)
    writing = torch.zeros(probs.shape[:-1])
    for group in _groups(parts, contexts, max_bytes):
        # one forward pass serves the slopes, the sweep of the last position and what each head writes
        reader = Reader(parts, tuple(group.contexts.input_ids.shape), "last", residual=True)
        plain, slopes[group.rows] = split_slopes(parts, group.contexts, reader)
        first[group.rows] = plain.logits.argmax(-1).cpu()
        with torch.no_grad():
            read = reader.result(plain.logits[:, None])
            writing[group.rows] = writing_scores(parts, read, group.contexts.tracked[:, 0]).float()
            sweep.measure(group, wanted[group.rows], plain)
    last = baseline[:, None, None] - probs
    return Estimates(baseline, first, last, slopes.sum(-1), slopes[..., 0], writing)


def _groups(parts: Anatomy, contexts: Contexts, max_bytes: int | None) -> Iterator[Group]:
    """Yield rows of similar length that track one token, then such rows with several, which each take a backward pass.

    Rows of an edited model stay together.
    """
    if is_edited(parts):
        yield Group(torch.arange(len(contexts.input_ids)), contexts)
        return
    max_tokens = (max_bytes or BYTES_KEPT[kind_of(parts)]) // (bytes_per_token(parts) * BACKWARD)
    is_single = (contexts.tracked == contexts.tracked[:, :1]).all(1)
    for wanted in (True, False):
        (rows,) = (is_single == wanted).nonzero(as_tuple=True)
        if len(rows):
            ids, mask, tracked = (part[rows] for part in contexts)
            some = Contexts(ids, mask, tracked[:, :1] if wanted else tracked)
            yield from (Group(rows.cpu()[group.rows], group.contexts) for group in groups(some, max_tokens))


def highest_ranked(sizes: Tensor, n: int) -> Tensor:
    """Return the heads that rank highest by any of several criteria, bool `[L, H]`.

    Args:
        sizes: Each criterion's size of each head `[C, L, H]`.
        n: How many heads to return; the criteria take turns.
    """
    ranks = sizes.flatten(1).argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    # a head's turn: its best rank over the criteria, then the criterion that gives it
    turn = ranks.min(0).values * len(sizes) + ranks.argmin(0)
    is_chosen = torch.zeros(sizes[0].numel(), dtype=torch.bool)
    is_chosen[turn.argsort(stable=True)[:n]] = True
    return is_chosen.view(sizes.shape[1:])
