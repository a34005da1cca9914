"""A repair: at doubtful tokens, the mean distribution of the model without each of a few heads decides."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from chainwright.edits import Head
from chainwright.models.anatomy import Anatomy
from chainwright.repair.base import Origin
from chainwright.repair.tcr.detector import detector_settings, restore_detector
from chainwright.repair.tcr.token_repair import CorrectingRepair, Detector, Seen, Without


class Committee(CorrectingRepair):
    """At each flagged token, reads the next token without each head and takes the mean distribution.

    Attributes:
        heads: The (layer, head) pairs that are knocked out, each alone.
        detector: Flags the tokens; any registered detector.
    """

    kind = "committee"

    def __init__(self, heads: Sequence[Head], detector: Detector, *, origin: Origin | None = None):
        super().__init__(origin)
        self.heads: list[Head] = [(int(layer), int(head)) for layer, head in heads]
        self.detector = detector

    def corrected(self, parts: Anatomy, seen: Seen, without: Without) -> Tensor:
        """Return the log of the mean distribution, `[N, V]`."""
        n = len(seen.logits)
        logits = without([(row, head) for row in range(n) for head in self.heads])
        return logits.view(n, len(self.heads), -1).softmax(-1).mean(1).log()

    def describe(self) -> str:
        """Return what the repair does, for its card."""
        return f"At doubtful tokens, the mean distribution without each of {len(self.heads)} heads decides."

    def settings(self) -> dict[str, Any]:
        """Return the heads and the detector's settings."""
        return {"heads": [list(head) for head in self.heads], "detector": detector_settings(self.detector)}

    @classmethod
    def restore(cls, settings: Mapping[str, Any], tensors: Mapping[str, Tensor], origin: Origin) -> Committee:
        """Return the repair that `settings` describe."""
        return cls(settings["heads"], restore_detector(settings["detector"], tensors), origin=origin)
