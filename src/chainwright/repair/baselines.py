"""What a correction is to be compared with: doing something simpler at the same tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from chainwright.models.anatomy import Anatomy
from chainwright.repair.base import Origin
from chainwright.repair.correcting import CorrectingRepair, Detector, Seen, Without
from chainwright.repair.detector import detector_settings, restore_detector


class RemoveAndResample(CorrectingRepair):
    """At a flagged token, drops the token that the model would have taken: greedy decoding takes its second choice.

    Source: TCR (arXiv 2601.21214), section 5, as a baseline.
    """

    kind = "remove-and-resample"

    def __init__(
        self,
        detector: Detector,
        *,
        layers: Sequence[int] = (),
        end_ids: Sequence[int] = (),
        origin: Origin | None = None,
    ):
        super().__init__(origin)
        self.detector = detector
        self.layers = tuple(layers)
        self.end_ids = tuple(end_ids)

    def corrected(self, parts: Anatomy, seen: Seen, without: Without) -> Tensor:
        """Return the logits without the likeliest token."""
        return seen.logits.scatter(-1, seen.logits.argmax(-1, keepdim=True), float("-inf"))

    def describe(self) -> str:
        """Return what the repair does."""
        return "Takes the model's second choice at flagged tokens: a baseline."

    def settings(self) -> dict[str, Any]:
        """Return the detector's settings and what it reads."""
        return {
            "layers": list(self.layers),
            "end_ids": list(self.end_ids),
            "detector": detector_settings(self.detector),
        }

    def tensors(self) -> dict[str, Tensor]:
        """Return the detector's tensors."""
        network = getattr(self.detector, "network", None)
        return {} if network is None else {f"detector.{key}": value for key, value in network.state_dict().items()}

    @classmethod
    def restore(cls, settings: Mapping[str, Any], tensors: Mapping[str, Tensor], origin: Origin) -> RemoveAndResample:
        """Return the repair that `settings` and `tensors` describe."""
        kept = {name.removeprefix("detector."): value for name, value in tensors.items()}
        detector = restore_detector(settings["detector"], kept)
        return cls(detector, layers=settings["layers"], end_ids=settings["end_ids"], origin=origin)
