"""Following a decoding run from its forward passes alone: which tokens stand in which row, and which rows are done.

What cannot be followed is refused in one sentence: beams and candidates (rows change places or tokens are taken back),
embeddings instead of ids, caches that write in place, and caches that were filled before the repair was attached.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor

from chainwright._errors import BadInput
from chainwright.repair.tcr._ablated_cache import is_plain

_HOW = "decode with greedy search or sampling and the default cache"


class Rows:
    """The rows of the current run.

    Attributes:
        ids: Each row's tokens, prompt and response, without padding.
        prompts: Each row's tokens when decoding began.
        is_done: Rows in which the model has written an end token.
        is_decoding: Whether the prompt is over.
        n_slots: Columns of the padded sequence so far.
    """

    def __init__(self, end_ids: Collection[int]):
        self.end_ids = frozenset(end_ids)
        self.ids: list[list[int]] = []
        self.prompts: list[list[int]] = []
        self.is_done: list[bool] = []
        self.is_decoding = False
        self.n_slots = 0
        self._trail: Tensor | None = None

    def check(self, input_ids: Tensor | None, cache: Any) -> None:
        """Raise BadInput if a forward pass that is about to run is none that can be followed."""
        if input_ids is None:
            raise BadInput("A repair reads the tokens, but this model is being run on embeddings; pass input_ids.")
        if cache is None:
            return
        if not is_plain(cache):
            raise BadInput(f"A repair cannot follow a {type(cache).__name__}; {_HOW}.")
        n_cached = int(cache.get_seq_length())
        if n_cached == 0:
            return
        if not self.ids:
            raise BadInput(
                f"The cache holds {n_cached} tokens from before the repair was attached; start with an empty cache."
            )
        now, then = _trail(cache), self._trail
        is_moved = now is not None and then is not None and not torch.equal(now, then)
        n_new = input_ids.shape[1]
        if n_cached != self.n_slots or len(input_ids) != len(self.ids) or is_moved or (self.is_decoding and n_new > 1):
            raise BadInput(
                "A repair cannot follow beam search or assisted decoding, in which rows change places and tokens are "
                f"taken back; {_HOW}."
            )

    def follow(self, input_ids: Tensor, mask: Tensor | None, cache: Any) -> bool:
        """Take in a forward pass that has run; return whether a new run began with it."""
        n_new = input_ids.shape[1]
        is_new = int(cache.get_seq_length()) == n_new
        if is_new:
            self.ids = [[] for _ in range(len(input_ids))]
            self.is_done = [False] * len(input_ids)
            self.is_decoding, self.n_slots = False, 0
        elif n_new == 1 and not self.is_decoding:
            self.is_decoding = True
        self._append(input_ids, mask if not self.is_decoding else None)
        if not self.is_decoding:
            self.prompts = [list(ids) for ids in self.ids]
        self.n_slots += n_new
        self._trail = _trail(cache)
        return is_new

    def _append(self, input_ids: Tensor, mask: Tensor | None) -> None:
        if mask is None:
            for row, ids in enumerate(input_ids.tolist()):
                if self.is_done[row]:
                    continue
                self.ids[row] += ids
                self.is_done[row] = self.is_decoding and ids[-1] in self.end_ids
            return
        if mask.dim() != 2:
            raise BadInput(f"A repair needs an attention mask of shape [rows, tokens]; got {list(mask.shape)}.")
        shown = mask[:, -input_ids.shape[1] :].bool()
        if not bool(shown[:, -1].all()) or bool((mask.long().diff(dim=-1) < 0).any()):
            raise BadInput("Rows must be padded on the left: in some row a token stands before a masked position.")
        for row, (ids, seen) in enumerate(zip(input_ids.tolist(), shown.tolist(), strict=True)):
            self.ids[row] += [i for i, is_seen in zip(ids, seen, strict=True) if is_seen]


def _trail(cache: Any) -> Tensor | None:
    """Return what the last layer keeps of each row's last token: another number when rows change places."""
    if len(cache.layers[-1].keys) == 1:
        return None
    return cache.layers[-1].keys[:, 0, -1].clone()  # type: ignore[no-any-return]
