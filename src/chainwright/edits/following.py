"""Following a run through its forward passes: which token stands in which slot, and in which segment and step it is.

Edits that act on segments or steps need to know them while the model decodes. A slot is a column of the padded batch;
what stands in it is kept by number, so that

- a pass over a prompt, one token at a time, several at a time and a whole trace at once are all the same;
- tokens that speculative decoding takes back are forgotten: the next pass starts at an earlier slot;
- beams that change places are followed: the cache tells when it is reordered.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from chainwright._errors import BadInput
from chainwright.traces.live import KnownRow, LiveRow, LiveSteps, Place


@dataclass
class Pass:
    """One forward pass.

    Attributes:
        n_past: Slots that were filled before it.
        n_new: Slots that it fills.
        first: The slot of each row's first token; those before it are padding.
        places: For each row the places of its new tokens; None stands for padding. Positions in a place count from
            the row's first token.
        windows: Slot of the first key that a layer is given, for the layers that look through a sliding window.
    """

    n_past: int
    n_new: int
    first: list[int]
    places: list[list[Place | None]]
    windows: dict[int, int]

    def offset(self, layer: int) -> int:
        """Return the slot of the first key that a layer is given."""
        return self.windows.get(layer, 0)


class Follower:
    """The run so far.

    Attributes:
        how: How responses are read; None where the places are known beforehand.
        n_question: Tokens of each row's question, or None: then the first pass is the question.
        known: The places of each row, or None.
        latest: The pass that is running.
        rows: The tokens and places of each row.
        on_new_run: Called when a run begins.
        on_reorder: Called with the indices when rows change places.
    """

    def __init__(
        self,
        how: LiveSteps | None,
        n_question: Sequence[int] | None = None,
        known: Sequence[KnownRow] | None = None,
    ):
        self.how = how
        self.n_question = n_question
        self.known = known
        self.rows: list[LiveRow] | list[KnownRow] = []
        self.first: list[int] = []
        self.latest = Pass(0, 0, [], [], {})
        self.on_new_run: list[Callable[[], None]] = []
        self.on_reorder: list[Callable[[Tensor], None]] = []
        self._cache: Any = None

    def before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Take in a pass that is about to run.

        Raises:
            BadInput: The model is run on embeddings, or goes on from a cache that was filled before.
        """
        given = _by_name(module, args, kwargs)
        ids, cache = given.get("input_ids"), given.get("past_key_values")
        if ids is None:
            raise BadInput("This edit reads the tokens, but the model is being run on embeddings; pass input_ids.")
        n_past = 0 if cache is None else int(cache.get_seq_length())
        n_rows, n_new = ids.shape
        if n_past == 0:
            self._begin(n_rows, _first_slots(given.get("attention_mask"), n_rows, n_new))
        elif len(self.rows) != n_rows or n_past > self.first[0] + len(self.rows[0].ids):
            raise BadInput(
                f"The cache holds {n_past} tokens that this edit has not seen; attach it before the prompt is read, "
                "and start with an empty cache."
            )
        self._watch(cache)
        places = [self._extend(row, new, n_past) for row, new in enumerate(ids.tolist())]
        # asked now, since the layers change the cache as they run
        self.latest = Pass(n_past, n_new, list(self.first), places, _windows(cache, n_new))

    def _begin(self, n_rows: int, first: list[int]) -> None:
        known: Sequence[int | None] = self.n_question or [None]
        if self.known is not None:
            known = [0] * len(self.known)
        if n_rows % len(known):
            raise BadInput(
                f"The lengths of {len(known)} questions were given, but the batch has {n_rows} rows; give one a row, "
                "or a batch that is a multiple of them."
            )
        repeats = n_rows // len(known)
        if self.known is not None:
            self.rows = [row.copy() for row in self.known for _ in range(repeats)]
        else:
            if self.how is None:
                raise BadInput("This edit reads the response while it is written; give it steps=LiveSteps(tokenizer).")
            self.rows = [self.how.row(n) for n in known for _ in range(repeats)]
        self.first = first
        for told in self.on_new_run:
            told()

    def _extend(self, row: int, new: list[int], n_past: int) -> list[Place | None]:
        first, known = self.first[row], self.rows[row]
        known.truncate(max(0, n_past - first))
        n_padding = max(0, min(len(new), first - n_past))
        return [None] * n_padding + list(known.extend(new[n_padding:]))

    def _watch(self, cache: Any) -> None:
        """Be told when the rows of a cache change places."""
        if cache is None or cache is self._cache:
            return
        self._cache, own = cache, cache.reorder_cache

        def reorder(beam_idx: Tensor, *args: Any, **kwargs: Any) -> Any:
            self.reorder(beam_idx)
            return own(beam_idx, *args, **kwargs)

        cache.reorder_cache = reorder

    def reorder(self, order: Tensor) -> None:
        """Put row `order[i]` in the place of row i."""
        chosen = order.tolist()
        self.rows = [self.rows[i].copy() for i in chosen]
        self.first = [self.first[i] for i in chosen]
        for told in self.on_reorder:
            told(order)


def _by_name(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of a forward pass by their names."""
    if not args:
        return kwargs
    given = inspect.signature(module.forward).bind_partial(*args, **kwargs).arguments
    return {**given.get("kwargs", {}), **given}


def _windows(cache: Any, n_new: int) -> dict[int, int]:
    layers = enumerate(getattr(cache, "layers", ()))
    return {i: int(layer.get_mask_sizes(n_new)[1]) for i, layer in layers if getattr(layer, "is_sliding", False)}


def _first_slots(mask: Any, n_rows: int, n_new: int) -> list[int]:
    """Return how many columns of padding stand before each row's first token."""
    if isinstance(mask, dict):
        mask = next(iter(mask.values()))
    if mask is None:
        return [0] * n_rows
    if mask.dim() == 2:
        shown = mask[:, :n_new].bool()
    else:  # a token sees itself, padding does not
        own = mask[:, 0, :, :n_new].diagonal(dim1=1, dim2=2)
        shown = own if own.dtype == torch.bool else own > torch.finfo(own.dtype).min / 2
        shown = shown.expand(n_rows, -1)
    if not bool(shown[:, -1].all()) or bool((shown.long().diff(dim=-1) < 0).any()):
        raise BadInput("Rows must be padded on the left: in some row a token stands before a masked position.")
    return [int(n) for n in (~shown).sum(1)]


__all__ = ["Follower", "LiveSteps", "Pass"]
