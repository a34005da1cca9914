"""What detectors, selectors and verifiers read of tokens, while decoding and in whole traces alike."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Seen(NamedTuple):
    """What is known of some tokens before they are chosen.

    Attributes:
        hidden: What the read layers put out at the last position, `[N, R, D]`; R = 0 where nothing reads them.
        logits: The model's own next-token logits `[N, V]`, float32.
        contexts: All tokens so far, one list a row.
        prompts: The first of them that are the prompt.
        lens: The two likeliest tokens in earlier layers (`TwoBest`), `[N, R', 3]`; None where nothing reads them.
    """

    hidden: Tensor
    logits: Tensor
    contexts: Sequence[Sequence[int]]
    prompts: Sequence[Sequence[int]]
    lens: Tensor | None = None

    def take(self, rows: Sequence[int]) -> Seen:
        """Return some of the tokens."""
        at = torch.tensor(list(rows), dtype=torch.long, device=self.logits.device)
        picked = [[group[i] for i in rows] for group in (self.contexts, self.prompts)]
        lens = None if self.lens is None else self.lens[at]
        return Seen(self.hidden[at], self.logits[at], picked[0], picked[1], lens)
