"""Confidence intervals of shares and of medians."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from scipy.stats import binom, binomtest


class Interval(NamedTuple):
    """A confidence interval; that of a share has both ends in 0..1."""

    low: float
    high: float


def wilson(n_right: int, n: int, confidence: float = 0.95) -> Interval:
    """Return the Wilson score interval of a share."""
    found = binomtest(n_right, n).proportion_ci(confidence, method="wilson")
    return Interval(float(found.low), float(found.high))


def median_interval(values: Sequence[float], confidence: float = 0.95) -> Interval | None:
    """Return the interval of a median between two of the values, None where there are too few of them for one.

    It holds for any distribution: the number of values below the median is binomial, and the two values are the
    innermost pair, as far from the lowest as from the highest, that has at least the confidence. For 95% it takes six.

    Args:
        values: Independent draws.
        confidence: How often such an interval is to hold the median.
    """
    ordered, n = sorted(values), len(values)
    outside = (1 - confidence) / 2
    below = int(binom.ppf(outside, n, 0.5))  # the fewest values below the median that are not too unlikely
    if n == 0 or below == 0:
        return None
    return Interval(ordered[below - 1], ordered[n - below])
