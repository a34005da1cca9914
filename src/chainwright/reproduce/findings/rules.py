"""How a measured value is held against a published finding: each rule states itself in words and returns a verdict.

The thresholds are ours, and were written down before the adapters of SmolLM2 were measured; a paper says what it saw,
not from where on it would have said otherwise.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

Verdict = Literal["agrees", "agrees in part", "does not agree", "not run", "cannot be tested here", "measured"]


class Rule(ABC):
    """Returns a verdict on a value and its 95% interval.

    Attributes:
        needs_interval: Whether a value alone is not enough.
    """

    needs_interval = False

    @abstractmethod
    def verdict(self, value: float, low: float | None, high: float | None) -> Verdict:
        """Return the verdict; `low` and `high` are None where nothing but the value was measured."""

    @property
    @abstractmethod
    def words(self) -> str:
        """Return the rule as a phrase that continues "The value"."""


@dataclass(frozen=True)
class AtLeast(Rule):
    """Two thresholds that a value is to reach."""

    agrees: float
    part: float

    def verdict(self, value: float, low: float | None, high: float | None) -> Verdict:
        """Return the verdict on the value alone."""
        return "agrees" if value >= self.agrees else "agrees in part" if value >= self.part else "does not agree"

    @property
    def words(self) -> str:
        """Return the rule in words."""
        return f"agrees from {self.agrees:g}, in part from {self.part:g}"


@dataclass(frozen=True)
class AtMost(Rule):
    """Two thresholds that a value is not to exceed."""

    agrees: float
    part: float

    def verdict(self, value: float, low: float | None, high: float | None) -> Verdict:
        """Return the verdict on the value alone."""
        return "agrees" if value <= self.agrees else "agrees in part" if value <= self.part else "does not agree"

    @property
    def words(self) -> str:
        """Return the rule in words."""
        return f"agrees up to {self.agrees:g}, in part up to {self.part:g}"


@dataclass(frozen=True)
class Between(Rule):
    """A range that a value is to lie in, and a wider one for an agreement in part."""

    agrees: tuple[float, float]
    part: tuple[float, float]

    def verdict(self, value: float, low: float | None, high: float | None) -> Verdict:
        """Return the verdict on the value alone."""
        if self.agrees[0] <= value <= self.agrees[1]:
            return "agrees"
        return "agrees in part" if self.part[0] <= value <= self.part[1] else "does not agree"

    @property
    def words(self) -> str:
        """Return the rule in words."""
        inner, outer = (f"from {a:g} to {b:g}" for a, b in (self.agrees, self.part))
        return f"agrees {inner}, in part {outer}"


@dataclass(frozen=True)
class Above(Rule):
    """An effect that is to be larger than zero beyond its interval."""

    needs_interval = True

    def verdict(self, value: float, low: float | None, high: float | None) -> Verdict:
        """Return the verdict on the interval."""
        assert low is not None
        return "agrees" if low > 0 else "does not agree"

    @property
    def words(self) -> str:
        """Return the rule in words."""
        return "agrees if its 95% interval lies above 0"


@dataclass(frozen=True)
class Gain(Rule):
    """A gain that is to be larger than zero beyond its interval, and of the published size at least by half."""

    published: float
    needs_interval = True

    def verdict(self, value: float, low: float | None, high: float | None) -> Verdict:
        """Return the verdict on value and interval."""
        assert low is not None
        if low <= 0:
            return "does not agree"
        return "agrees" if value >= self.published / 2 else "agrees in part"

    @property
    def words(self) -> str:
        """Return the rule in words."""
        return (
            f"agrees if its 95% interval lies above 0 and it is at least {self.published / 2:g}, half of the published "
            "gain; in part if only its interval lies above 0"
        )


@dataclass(frozen=True)
class NoRule(Rule):
    """What the paper does not state and is measured here all the same."""

    def verdict(self, value: float, low: float | None, high: float | None) -> Verdict:
        """Return that it was measured."""
        return "measured"

    @property
    def words(self) -> str:
        """Return the rule in words."""
        return "is held against nothing, since the paper has no such figure"
