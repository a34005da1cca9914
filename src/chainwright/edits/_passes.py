"""One forward pass of the decoder, and one row of the batch that goes through it: what a run keeps of both."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field, replace
from itertools import count

from torch import Tensor

UNSEEN = (
    "The cache holds {} tokens that this edit has not seen; attach it before the prompt is read, and start with an "
    "empty cache."
)


_SERIALS = count()


@dataclass
class Row:
    """One row of the batch.

    Attributes:
        ids: Its tokens, prompt and response, without padding.
        n_prompt: How many of them are the prompt.
        is_done: Whether it has written an end token.
        n_checked: How many of them were searched for end tokens.
        acting: The owners of the edits and repairs that act in it, where rows of one batch differ; None for all.
        serial: Its number, which stays the same when it changes places.
        n_extra_tokens: Tokens that repairs ran again for it.
    """

    ids: list[int]
    n_prompt: int
    is_done: bool = False
    n_checked: int = 0
    acting: frozenset[Hashable] | None = None
    serial: int = field(default_factory=_SERIALS.__next__, compare=False)
    n_extra_tokens: int = 0

    def acts(self, owner: Hashable) -> bool:
        """Return whether what belongs to `owner` acts in this row; what has no owner acts in all."""
        return owner is None or self.acting is None or owner in self.acting

    def copy(self) -> Row:
        """Return a row that continues from here by itself."""
        return replace(self, ids=list(self.ids))

    def truncate(self, n_tokens: int) -> None:
        """Forget all tokens from position `n_tokens` on."""
        if n_tokens < len(self.ids):
            del self.ids[n_tokens:]
            self.is_done = self.is_done and self.n_checked <= n_tokens
            self.n_checked = min(self.n_checked, n_tokens)

    def check_end(self, n_confirmed: int, ends: frozenset[int], pads: frozenset[int] | None) -> bool:
        """Search the tokens up to `n_confirmed` for end tokens; return whether a row that seemed finished continued.

        Args:
            n_confirmed: Tokens that can no longer be taken back.
            ends: The end tokens.
            pads: What may follow one; None where an end token is certain to end the row.
        """
        was_done = self.is_done
        for token in self.ids[self.n_checked : n_confirmed]:
            continues = self.is_done and pads is not None and token not in pads
            self.is_done = token in ends or (self.is_done and not continues)
        self.n_checked = max(self.n_checked, n_confirmed)
        return was_done and not self.is_done


@dataclass
class Pass:
    """One forward pass of the decoder.

    Attributes:
        n_past: Slots that were filled before it.
        n_new: Slots that it fills.
        n_candidates: How many of those hold candidates of assisted decoding, which may be taken back.
        first: The slot of each row's first token; those before it are padding.
        windows: Slot of the first key that a layer is given, for the layers that look through a sliding window.
        is_prompt: Whether it continues the prompt, as `generate` does when it reads one in pieces.
        is_aside: Whether it only asks what the model would say otherwise; see `Run.aside`.
        last: Index of each row's last token among the new ones, `[N]`, -1 in a row that has none; None where it is the
            last one in every row, as it is with padding on the left.
    """

    n_past: int = 0
    n_new: int = 0
    n_candidates: int = 0
    first: list[int] = field(default_factory=list)
    windows: dict[int, int] = field(default_factory=dict)
    is_prompt: bool = False
    is_aside: bool = False
    last: Tensor | None = None

    @property
    def n_confirmed(self) -> int:
        """Return the slots that are filled after it, without candidates."""
        return self.n_past + self.n_new - self.n_candidates

    def offset(self, layer: int) -> int:
        """Return the slot of the first key that a layer is given."""
        return self.windows.get(layer, 0)
