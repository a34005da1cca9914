"""A tokenizer for the tiny models, and runs over rows of unequal length with and without caches."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel, StaticCache

from families import D_VOCAB, left_padded

SPECIAL = {3: "\n", 4: "answer", 5: "</think>", 6: "<think>", 7: ". ", 8: " "}


class Words:
    """Decodes every id by itself; the first ids are what segments and steps hang on."""

    all_special_ids = (0, 1, 2)

    def __call__(self, text: str, **kwargs: object) -> dict:
        raise AssertionError("nothing is tokenised again")

    def decode(self, ids: list[int], **kwargs: object) -> str:
        return "".join("" if i < 3 else SPECIAL.get(i, f"w{i}") for i in ids)

    def convert_tokens_to_ids(self, token: str) -> int | None:
        return next((i for i, text in SPECIAL.items() if text == token), None)

    def convert_ids_to_tokens(self, token_id: int) -> str:
        return SPECIAL.get(token_id, f"w{token_id}")


def response(n_tokens: int, seed: int, *, closes_at: int | None = None) -> Tensor:
    """Return random words in lines of about four, with `</think>` at one place."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(9, D_VOCAB, (n_tokens,), generator=generator)
    ids[torch.rand(n_tokens, generator=generator) < 0.25] = 3
    ids[0] = 20
    if closes_at is not None:
        ids[closes_at] = 5
    return ids


def rows_of(n_prompts: tuple[int, ...] = (6, 9, 4), n_new: int = 14) -> tuple[list[Tensor], tuple[int, ...]]:
    """Return prompts with responses that stand in different segments at the same time, and the prompts' lengths."""
    rows = []
    for i, n in enumerate(n_prompts):
        prompt = torch.randint(9, D_VOCAB, (n,), generator=torch.Generator().manual_seed(50 + i))
        prompt[-1] = 6
        rows.append(torch.cat([prompt, response(n_new, i, closes_at=(None, 8, 4)[i % 3])]))
    return rows, n_prompts


@torch.no_grad()
def uncached(model: PreTrainedModel, rows: list[Tensor]) -> Tensor:
    """Return the logits of a padded batch in one pass."""
    ids, mask = left_padded(rows)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    return model(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False).logits


def make_cache(kind: str, model: PreTrainedModel, n_slots: int):
    if kind == "static":
        return StaticCache(config=model.config, max_cache_len=n_slots)
    return DynamicCache(config=model.config)


@torch.no_grad()
def cached(model: PreTrainedModel, rows: list[Tensor], n_new: int, kind: str = "dynamic", chunk: int = 1) -> Tensor:
    """Return the same logits from a prefill and then `chunk` tokens a pass."""
    ids, mask = left_padded(rows)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    width = ids.shape[1]
    cache = make_cache(kind, model, width)
    borders = [0, *range(width - n_new, width, chunk), width]
    logits = []
    for a, b in pairwise(borders):
        out = model(
            input_ids=ids[:, a:b],
            attention_mask=mask[:, :b],
            position_ids=positions[:, a:b],
            past_key_values=cache,
            use_cache=True,
        )
        logits.append(out.logits)
    return torch.cat(logits, dim=1)
