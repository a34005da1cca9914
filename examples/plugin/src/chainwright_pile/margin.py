"""A detector: a token is doubtful when the two likeliest tokens are almost equally likely."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from chainwright import BadInput
from chainwright.repair.tcr.token_repair import Seen


@dataclass(frozen=True)
class MarginDetector:
    """Flags a token when the best token's probability is less than `margin` above the second best's."""

    margin: float = 0.2
    min_entropy: float = -1.0  # no token is ruled out by its entropy
    reads_hidden: bool = False

    def __post_init__(self) -> None:
        """Refuse a margin that no two probabilities can have."""
        if not 0 <= self.margin <= 1:
            raise BadInput(f"margin must be a difference of probabilities, from 0 to 1; got {self.margin}.")

    def flags(self, seen: Seen) -> Tensor:
        """Return which tokens are doubtful, bool `[N]`."""
        best = seen.logits.softmax(-1).topk(2, dim=-1).values
        return best[:, 0] - best[:, 1] < self.margin

    def settings(self) -> dict[str, Any]:
        """Return what `restore` needs."""
        return {"margin": self.margin}

    @classmethod
    def restore(cls, settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> MarginDetector:
        """Return the detector with saved settings; it has no tensors."""
        return cls(settings["margin"])
