"""Decoding with a correction the naive way: no cache, no hooks, every knockout a full pass over the whole prefix."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from transformers import PreTrainedModel

from chainwright.edits import KnockOut, edit

Rank = Callable[[list[int]], list[tuple[int, int]]]


def entropy(logits: Tensor) -> float:
    log_probs = logits.log_softmax(-1)
    return float(-(log_probs.exp() * log_probs).sum())


def voted(rows: list[Tensor]) -> Tensor:
    """Return the log of the mean distribution of those that voted for the winner."""
    probs = [row.softmax(-1) for row in rows]
    votes = [int(p.argmax()) for p in probs]
    majority = [v for v in votes if 2 * votes.count(v) > len(votes)]
    mean = sum(probs) / len(probs)
    winner = majority[0] if majority else max(votes, key=lambda v: float(mean[v]))
    chosen = [p for p, v in zip(probs, votes, strict=True) if v == winner]
    return (sum(chosen) / len(chosen)).log()


@torch.no_grad()
def next_logits(model: PreTrainedModel, ids: list[int], tau: float, rank: Rank, **knock_out: object) -> Tensor:
    """Return the next-token logits of one row, corrected if their entropy is above tau."""
    whole = torch.tensor([ids])
    own = model(input_ids=whole, use_cache=False).logits[0, -1]
    heads = rank(ids)
    if entropy(own) <= tau or not heads:
        return own
    without = []
    for head in heads:
        with edit(model, KnockOut({head}, **knock_out)):
            without.append(model(input_ids=whole, use_cache=False).logits[0, -1])
    return voted(without)


def decode(
    model: PreTrainedModel,
    prompt: list[int],
    n_new: int,
    tau: float,
    rank: Rank,
    draw: Callable[[Tensor, int], int] | None = None,
    end_id: int | None = None,
    **knock_out: object,
) -> list[int]:
    """Return the new tokens of one row; `draw` takes logits and step, None is greedy."""
    ids = list(prompt)
    for step in range(n_new):
        logits = next_logits(model, ids, tau, rank, **knock_out)
        ids.append(int(logits.argmax()) if draw is None else draw(logits, step))
        if ids[-1] == end_id:
            break
    return ids[len(prompt) :]
