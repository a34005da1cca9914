"""The loss of chains after their questions, where questions begin alike: the common part is read once per batch.

1. The rows of a batch begin with the same tokens (system prompt, instruction, often half of the question). The model
   reads them once, with gradients, and each row attends to the keys and values of that one reading.
2. The rest of each row follows, padded on the right, which no row's own tokens can attend to.
3. Logits are computed for the tokens of the chains alone, and the loss is their mean cross-entropy.

The loss and its gradients are those of whole rows read one by one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from chainwright.lab.lora import Layout

_IGNORED = -100
_ROWS_AT_ONCE = 160  # of a vocabulary of 49,152; fewer make the matrix products slow, more the passes over the logits


class Row(NamedTuple):
    """A question and the response that is to be learned, as token ids."""

    prompt: list[int]
    chain: list[int]


class ChainLoss(NamedTuple):
    """What a batch of rows came to.

    Attributes:
        loss: Mean cross-entropy over the tokens of the chains.
        is_right: Whether every token of a row's chain was the likeliest; greedy decoding would then write this chain.
        n_tokens: Tokens of the chains.
    """

    loss: Tensor
    is_right: list[bool]
    n_tokens: int


class _TokenLoss(torch.autograd.Function):
    """Mean cross-entropy of the unembedding's logits, and the likeliest tokens, without keeping any logits.

    The gradient is computed on the way forward, a few rows at a time, so that the logits stay in the cache.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, unembed: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        total, likeliest, gradients = hidden.new_zeros((), dtype=torch.float32), [], []
        for part, wanted in zip(torch.split(hidden, _ROWS_AT_ONCE), torch.split(labels, _ROWS_AT_ONCE), strict=True):
            logits = (part @ unembed.T).float()
            top = logits.max(-1, keepdim=True)
            of_label = logits.gather(-1, wanted[:, None])
            sums = logits.sub_(top.values).exp_().sum(-1, keepdim=True)
            total += (sums.log() + top.values - of_label).sum()
            p = logits.div_(sums).scatter_add_(-1, wanted[:, None], -torch.ones_like(of_label))
            gradients.append(p.to(unembed.dtype) @ unembed)
            likeliest.append(top.indices[:, 0])
        ctx.save_for_backward(torch.cat(gradients) / len(labels))
        return total / len(labels), torch.cat(likeliest)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (of_hidden,) = ctx.saved_tensors
        return of_hidden * gradients[0].to(of_hidden.dtype), None, None


def chain_loss(model: PreTrainedModel, rows: Sequence[Row]) -> ChainLoss:
    """Return the loss over the chains of some rows, and which chains greedy decoding would get right.

    Args:
        model: A model with an `Adapter`.
        rows: Questions and chains.
    """
    n_common = _n_common([row.prompt for row in rows])
    rest, labels = _suffixes(rows, n_common)
    layout = Layout(n_common, *rest.shape)
    input_ids = torch.cat([torch.tensor(rows[0].prompt[:n_common], dtype=torch.long), rest.flatten()])[None]
    place = model.device
    hidden: Tensor = model.base_model(
        input_ids.to(place), position_ids=layout.positions().to(place), use_cache=False, layout=layout
    ).last_hidden_state
    counted = labels != _IGNORED
    wanted = labels[counted].to(place)
    unembed = model.get_output_embeddings().weight
    loss, likeliest = _TokenLoss.apply(hidden[0, n_common:][counted.flatten().to(place)], unembed, wanted)  # type: ignore[no-untyped-call]
    is_wrong = torch.zeros_like(counted).masked_scatter(counted, (likeliest != wanted).cpu())
    return ChainLoss(loss, (~is_wrong.any(-1)).tolist(), len(wanted))


def _n_common(prompts: Sequence[list[int]]) -> int:
    """Return how many tokens all prompts begin with, fewer than any prompt has: its last token predicts the chain."""
    longest = min(len(prompt) for prompt in prompts) - 1
    return next((i for i in range(longest) if len({prompt[i] for prompt in prompts}) > 1), longest)


def _suffixes(rows: Sequence[Row], n_common: int) -> tuple[Tensor, Tensor]:
    """Return what follows the common tokens, padded on the right, and for each position the token it predicts."""
    width = max(len(row.prompt) + len(row.chain) for row in rows) - n_common
    input_ids = torch.zeros(len(rows), width, dtype=torch.long)
    labels = torch.full((len(rows), width), _IGNORED)
    for i, row in enumerate(rows):
        ids = torch.tensor([*row.prompt[n_common:], *row.chain])
        input_ids[i, : len(ids)] = ids
        labels[i, len(ids) - len(row.chain) - 1 : len(ids) - 1] = torch.tensor(row.chain)
    return input_ids, labels
