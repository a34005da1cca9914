"""Continuing prefixes of a response from their token ids, over one cache of what they share.

1. A whole response is read once; its keys and values are the trunk.
2. A prefix of it needs no reading: its row of the batch is the trunk up to the prefix's last token, which is fed again
   so that its logits are there. Rows of unequal length are padded on the left.
3. Every row draws its tokens with the noise of `generate`, which depends on the seed, the row's number and the step
   alone. The number of a row follows from its prefix and which of its continuations it is, so a continuation is the
   same whatever else is in the batch, and whether it is made now or after a restart.
4. Rows that have ended leave the batch once they are half of it.

Ids are never decoded and encoded again on the way: other tokens of the same text are another prefix to a model.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache

from chainwright._errors import BadInput
from chainwright.decode.drawing import SeededDraw
from chainwright.decode.sampling import Sampling
from chainwright.models.anatomy import Anatomy, evaluating
from chainwright.models.caches import is_appending, with_cache
from chainwright.models.seam import widened

_TOKENS_AT_ONCE = 2**15
_MOST_ROWS = 256


class Row(NamedTuple):
    """One continuation to make.

    Attributes:
        prefix: The token ids that it continues, question included.
        number: Which of this prefix's continuations it is, from 0.
        limit: Most tokens that it may write.
    """

    prefix: tuple[int, ...]
    number: int
    limit: int


class Written(NamedTuple):
    """What a row wrote, and whether it ended by itself."""

    ids: list[int]
    stopped: bool


def row_number(prefix: Sequence[int], number: int) -> int:
    """Return the number by which a continuation's noise is drawn: a hash of its prefix and its own number."""
    text = f"{','.join(map(str, prefix))}/{number}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


@dataclass
class Trunks:
    """Keys and values of whole responses, from which the rows of their prefixes are made.

    Attributes:
        parts: Anatomy of the model.
        n_read: Tokens that were read to fill them.
    """

    parts: Anatomy
    n_read: int = 0
    _known: dict[tuple[int, ...], list[tuple[Tensor, Tensor]]] = field(default_factory=dict)

    def add(self, ids: Sequence[int]) -> None:
        """Read a response, so that its prefixes can be continued.

        Raises:
            BadInput: The model caches more than keys and values.
        """
        own = DynamicCache(config=self.parts.model.config.get_text_config(decoder=True))
        if not is_appending(own):
            kinds = sorted({type(layer).__name__ for layer in own.layers})
            raise BadInput(
                f"This {self.parts.model.config.model_type} model caches more than keys and values "
                f"({', '.join(kinds)}), which prefixes cannot share; continue them with another completer."
            )
        key = tuple(ids)
        if self._trunk_of(key) is not None:
            return
        cache = DynamicCache()  # layers that keep everything, also where the model attends to a window of it
        tokens = torch.tensor([key], device=self.parts.device)
        self.parts.model(input_ids=tokens, **with_cache(self.parts.model, cache), use_cache=True, logits_to_keep=1)
        self.n_read += len(key)
        self._known[key] = [(layer.keys, layer.values) for layer in cache.layers]

    def clear(self) -> None:
        """Forget all responses."""
        self._known.clear()

    def _trunk_of(self, prefix: tuple[int, ...]) -> list[tuple[Tensor, Tensor]] | None:
        n = len(prefix) - 1  # the last token is fed again
        return next((layers for ids, layers in self._known.items() if ids[:n] == prefix[:n]), None)

    def joined(self, rows: Sequence[Row]) -> DynamicCache:
        """Return a cache with a row for each prefix but its last token, the shorter ones padded in front."""
        trunks = []
        for row in rows:
            if self._trunk_of(row.prefix) is None:
                self.add(row.prefix[:-1] if len(row.prefix) > 1 else row.prefix)
            trunks.append(self._trunk_of(row.prefix))
        lengths = [len(row.prefix) - 1 for row in rows]
        width, cache = max(lengths), DynamicCache()
        if width == 0:
            return cache
        for layer in range(self.parts.n_layers):
            sides = []
            for side in (0, 1):
                like = trunks[0][layer][side]  # type: ignore[index]
                out = like.new_zeros(len(rows), like.shape[1], width, like.shape[3])
                for i, (trunk, n) in enumerate(zip(trunks, lengths, strict=True)):
                    out[i, :, width - n :] = trunk[layer][side][0, :, :n]  # type: ignore[index]
                sides.append(out)
            cache.update(sides[0], sides[1], layer)
        return cache


def continued(
    trunks: Trunks,
    rows: Sequence[Row],
    *,
    sampling: Sampling,
    seed: int,
    ends: set[int],
    batch_size: int | None = None,
    on_rows: Callable[[int], None] = lambda n: None,
) -> list[Written]:
    """Return what each row writes, in their order.

    Args:
        trunks: The model, and the responses that it has read.
        rows: The continuations to make.
        sampling: How tokens are drawn.
        seed: Decides the noise together with the rows' own numbers.
        ends: Tokens that end a response.
        batch_size: Rows decoded together; None chooses by their length.
        on_rows: Called with a number of rows that are done.
    """
    written: dict[int, Written] = {}
    with evaluating(trunks.parts.model), torch.no_grad():
        for batch in _batches(rows, batch_size):
            made = _decode(trunks, [rows[i] for i in batch], sampling, seed, ends)
            written.update(zip(batch, made, strict=True))
            on_rows(len(batch))
    return [written[i] for i in range(len(rows))]


def _batches(rows: Sequence[Row], batch_size: int | None) -> Iterator[list[int]]:
    """Yield indices of rows of like length together, the longest first."""
    order = sorted(range(len(rows)), key=lambda i: (-rows[i].limit, -len(rows[i].prefix), i))
    while order:
        longest = len(rows[order[0]].prefix) + rows[order[0]].limit
        size = batch_size or max(1, min(_MOST_ROWS, _TOKENS_AT_ONCE // longest))
        yield order[:size]
        order = order[size:]


@dataclass
class _Live:
    """The rows of a batch that have not ended: their places in it, and what the next pass needs."""

    places: list[int]
    numbers: list[int]
    tokens: Tensor  # (row, 1)
    mask: Tensor  # (row, position)
    positions: Tensor  # (row, 1)
    cache: Any

    def penalised(self, scores: Tensor, rows: Sequence[Row], out: Sequence[list[int]], penalty: float | None) -> Tensor:
        """Return scores in which the tokens that each row has already are less likely."""
        if penalty in (None, 1.0):
            return scores
        for i, place in enumerate(self.places):
            known = torch.tensor(sorted({*rows[place].prefix, *out[place]}), device=scores.device)
            own = scores[i, known]
            scores[i, known] = torch.where(own < 0, own * penalty, own / penalty)
        return scores

    def keep(self, kept: list[int]) -> None:
        """Drop all rows but some."""
        at = torch.tensor(kept, device=self.tokens.device)
        self.places, self.numbers = [self.places[i] for i in kept], [self.numbers[i] for i in kept]
        self.tokens, self.mask, self.positions = self.tokens[at], self.mask[at], self.positions[at]
        slim = copy.copy(self.cache)
        slim.layers = [copy.copy(layer) for layer in self.cache.layers]
        for layer in slim.layers:
            layer.keys, layer.values = layer.keys[at], layer.values[at]
        self.cache = slim


def _decode(trunks: Trunks, rows: list[Row], sampling: Sampling, seed: int, ends: set[int]) -> list[Written]:
    model, device = trunks.parts.model, trunks.parts.device
    cache = trunks.joined(rows)
    lengths = torch.tensor([len(row.prefix) for row in rows], device=device)
    width = int(lengths.max())
    live = _Live(
        places=list(range(len(rows))),
        numbers=[row_number(row.prefix, row.number) for row in rows],
        tokens=torch.tensor([[row.prefix[-1]] for row in rows], device=device),
        mask=(torch.arange(width, device=device) >= width - lengths[:, None]).long(),
        positions=lengths[:, None] - 1,
        cache=cache,
    )
    out: list[list[int]] = [[] for _ in rows]
    has_ended = [False] * len(rows)
    is_over = [row.limit < 1 for row in rows]
    draw = SeededDraw(live.numbers, sampling, seed, 0) if sampling.temperature > 0 else None
    step = 0
    while not all(is_over[i] for i in live.places):
        logits = model(
            input_ids=live.tokens,
            attention_mask=live.mask,
            position_ids=live.positions,
            **with_cache(model, live.cache),
            use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1]
        scores = live.penalised(widened(logits).float(), rows, out, sampling.repetition_penalty)
        if draw is not None:
            draw.rows = live.numbers
            scores = draw(scores.new_empty(len(scores), step), scores)  # of the ids it needs their number alone
        tokens = scores.argmax(-1)
        step += 1
        for token, place in zip(tokens.tolist(), live.places, strict=True):
            if not is_over[place]:
                out[place].append(token)
                has_ended[place] = token in ends
                is_over[place] = has_ended[place] or len(out[place]) >= rows[place].limit
        live.tokens, live.positions = tokens[:, None], live.positions + 1
        live.mask = torch.cat([live.mask, live.mask.new_ones(len(live.mask), 1)], dim=1)
        going = [i for i, place in enumerate(live.places) if not is_over[place]]
        if going and 2 * len(going) <= len(live.places):
            live.keep(going)
    return [Written(ids, ended) for ids, ended in zip(out, has_ended, strict=True)]
