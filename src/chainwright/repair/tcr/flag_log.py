"""A detector that writes down which tokens it flagged."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from chainwright.repair.base import Repair
from chainwright.repair.tcr.token_repair import CorrectingRepair, Detector, Seen
from chainwright.traces import Trace


class NotingDetector:
    """Flags what another detector flags, and keeps where that was.

    Attributes:
        detector: The one that decides.
    """

    def __init__(self, detector: Detector):
        self.detector = detector
        self._flagged: dict[tuple[int, ...], list[tuple[int, ...]]] = {}

    @classmethod
    def put_into(cls, repair: Repair | None) -> NotingDetector | None:
        """Let a repair's detector be watched, and return the watcher; None for a repair without a detector."""
        if not isinstance(repair, CorrectingRepair):
            return None
        repair.detector = noting = cls(repair.detector)
        return noting

    @property
    def min_entropy(self) -> float:
        """What the other detector never flags."""
        return self.detector.min_entropy

    @property
    def reads_hidden(self) -> bool:
        """Whether the other detector reads hidden states."""
        return self.detector.reads_hidden

    def flags(self, seen: Seen) -> Tensor:
        """Return what the other detector says."""
        found = self.detector.flags(seen)
        for row in found.nonzero()[:, 0].tolist():
            prompt, context = seen.prompts[row], seen.contexts[row]
            self._flagged.setdefault(tuple(prompt), []).append(tuple(context[len(prompt) :]))
        return found

    def tokens(self, traces: Sequence[Trace]) -> list[list[int]]:
        """Return which tokens of each response were flagged, counted from its first."""
        return [self._tokens(trace) for trace in traces]

    def _tokens(self, trace: Trace) -> list[int]:
        ids = trace.input_ids.tolist()
        response = tuple(ids[trace.response_start :])
        written = self._flagged.get(tuple(ids[: trace.response_start]), [])
        # the same prompt may have been answered twice: what was written before the flag tells whose it is
        return sorted({n for before in written if (n := len(before)) < len(response) and response[:n] == before})
