"""What the continuations of a prefix came to, and whether one prefix is worth less than another."""

from __future__ import annotations

import math
from dataclasses import dataclass

from chainwright._stats import Interval, always_valid, log_fall_evidence, log_share_evidence


@dataclass(frozen=True)
class Tally:
    """How the continuations of one prefix ended.

    Attributes:
        n_right: Those with the right answer.
        n_wrong: Those with a wrong one, or with none that could be read.
        n_cut: Those that the token limit ended; they tell nothing of the prefix's value and are counted apart.
        n_unread: Of `n_wrong`, those without an answer that could be read.
        known: The value where no continuation is needed: at the end of a judged response, and from a completer that
            says whether a prefix can still come right. None where it is estimated.
    """

    n_right: int = 0
    n_wrong: int = 0
    n_cut: int = 0
    n_unread: int = 0
    known: float | None = None

    @property
    def n(self) -> int:
        """Return the number of continuations that count."""
        return self.n_right + self.n_wrong

    @property
    def n_spent(self) -> int:
        """Return the number of all continuations."""
        return self.n + self.n_cut

    @property
    def value(self) -> float:
        """Return the share that ended right; NaN before any did end."""
        if self.known is not None:
            return self.known
        return self.n_right / self.n if self.n else math.nan

    @property
    def shrunk(self) -> float:
        """Return the value as a search may rely on it: away from 0 and 1 by what is not known yet."""
        return min(0.98, max(0.02, self.known if self.known is not None else (self.n_right + 0.5) / (self.n + 1)))

    def interval(self, confidence: float = 0.95) -> Interval:
        """Return an interval of the value that holds however often it was looked at."""
        if self.known is not None:
            return Interval(self.known, self.known)
        return always_valid(self.n_right, self.n, confidence)

    def plus(self, other: Tally) -> Tally:
        """Return both together."""
        return Tally(
            self.n_right + other.n_right,
            self.n_wrong + other.n_wrong,
            self.n_cut + other.n_cut,
            self.n_unread + other.n_unread,
            self.known if other.known is None else other.known,
        )


def log_evidence_of_fall(before: Tally, after: Tally, drop: float) -> float:
    """Return the log e-value for a value that falls by more than `drop`; infinite where both are known."""
    if before.known is not None and after.known is not None:
        return math.inf if before.known - after.known > drop else -math.inf
    if after.known is not None:
        return log_share_evidence(before.n_right, before.n, after.known + drop, is_above=True)
    if before.known is not None:
        return log_share_evidence(after.n_right, after.n, before.known - drop, is_above=False)
    return log_fall_evidence((before.n_right, before.n), (after.n_right, after.n), drop)


def log_evidence_of_none(before: Tally, after: Tally, drop: float) -> float:
    """Return the log e-value for a value that falls by less than `drop`, or not at all."""
    if before.known is not None and after.known is not None:
        return -math.inf if before.known - after.known > drop else math.inf
    if after.known is not None:
        return log_share_evidence(before.n_right, before.n, after.known + drop, is_above=False)
    if before.known is not None:
        return log_share_evidence(after.n_right, after.n, before.known - drop, is_above=True)
    return log_fall_evidence((before.n_right, before.n), (after.n_right, after.n), drop, is_larger=False)
