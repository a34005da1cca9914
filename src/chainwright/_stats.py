"""Confidence intervals of shares, medians and means, and Holm's correction for several tests.

Every interval and correction of the package is computed here, so that two tables never differ in their method.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import scipy  # its parts are loaded when they are first used, which takes a second
from numpy.typing import ArrayLike, NDArray


class Interval(NamedTuple):
    """A confidence interval; that of a share has both ends in 0..1."""

    low: float
    high: float


def wilson(n_right: int, n: int, confidence: float = 0.95) -> Interval:
    """Return the Wilson score interval of the share `n_right / n`; `n` must be at least 1."""
    ends = scipy.stats.binomtest(n_right, n).proportion_ci(confidence, method="wilson")
    return Interval(float(ends.low), float(ends.high))


# Shares that end near 0 or 1 are decided by few draws with a prior that expects them there, and others not much later.
_PRIOR = 0.2


def _log_mixture(n_right: int, n: int) -> float:
    """Return the log-likelihood of a sequence of draws, averaged over shares from Beta(0.2, 0.2)."""
    return float(scipy.special.betaln(n_right + _PRIOR, n - n_right + _PRIOR) - scipy.special.betaln(_PRIOR, _PRIOR))


def _log_likelihood(share: float, n_right: int, n: int) -> float:
    return float(scipy.special.xlogy(n_right, share) + scipy.special.xlog1py(n - n_right, -share))


def always_valid(n_right: int, n: int, confidence: float = 0.95) -> Interval:
    """Return an interval of a share that holds at every number of draws at once, however often it is looked at.

    It is a share's confidence sequence by the method of mixtures: the shares whose likelihood is more than
    `1 - confidence` of the mixture's. Without draws it is everything.
    """
    best = n_right / n if n else 0.5
    floor = _log_mixture(n_right, n) + float(np.log(1 - confidence))

    def above(share: float) -> float:
        # the ends, where a likelihood is zero, count as far below
        return max(_log_likelihood(share, n_right, n), -1e9) - floor

    low = 0.0 if above(0.0) >= 0 else float(scipy.optimize.brentq(above, 0.0, best))
    high = 1.0 if above(1.0) >= 0 else float(scipy.optimize.brentq(above, best, 1.0))
    return Interval(low, high)


@lru_cache(maxsize=2**14)
def log_fall_evidence(before: tuple[int, int], after: tuple[int, int], fall: float, *, is_larger: bool = True) -> float:
    """Return the log of an e-value against "the share falls by at most `fall`" from one sample to another.

    Its expectation is at most 1 as long as that holds, whenever the draws end, so a value of `1 / error_rate` is
    reached with at most that probability (Ville). It divides the mixture likelihood of both samples by the largest
    likelihood under the hypothesis.

    Args:
        before: (number right, number of draws) of the first sample.
        after: The same of the second.
        fall: The fall in question.
        is_larger: Whether the evidence is for a fall larger than that; otherwise for one that is smaller.

    Source: universal inference (Wasserman, Ramdas and Balakrishnan 2020), with a fixed mixture as the numerator.
    """
    (k, n), (j, m) = before, after
    if not n or not m:
        return 0.0

    def loss(share: float) -> float:
        return -_log_likelihood(share, k, n) - _log_likelihood(min(1.0, max(0.0, share - fall)), j, m)

    free = _log_likelihood(k / n, k, n) + _log_likelihood(j / m, j, m)
    is_possible = (k / n - j / m <= fall) if is_larger else (k / n - j / m >= fall)
    most = (
        free
        if is_possible
        else -float(
            scipy.optimize.minimize_scalar(
                loss, bounds=(max(0.0, fall), min(1.0, 1 + fall)), method="bounded", options={"xatol": 1e-6}
            ).fun
        )
    )
    return _log_mixture(k, n) + _log_mixture(j, m) - most


def log_share_evidence(n_right: int, n: int, limit: float, *, is_above: bool) -> float:
    """Return the log of an e-value against "the share is at most `limit`", or at least that if not `is_above`."""
    if not n:
        return 0.0
    best = min(n_right / n, limit) if is_above else max(n_right / n, limit)
    return _log_mixture(n_right, n) - _log_likelihood(min(1.0, max(0.0, best)), n_right, n)


def median_interval(values: Sequence[float], confidence: float = 0.95) -> Interval | None:
    """Return a distribution-free interval of the median, or None if there are too few values for one.

    The number of values below the median is binomial; the interval runs between the innermost pair of order
    statistics, symmetric in rank, with at least the nominal coverage. For 95% that takes six values.

    Args:
        values: Independent draws.
        confidence: Nominal coverage.
    """
    ordered, n = sorted(values), len(values)
    outside = (1 - confidence) / 2
    below = int(scipy.stats.binom.ppf(outside, n, 0.5))  # the fewest values below the median that are not too unlikely
    if n == 0 or below == 0:
        return None
    return Interval(ordered[below - 1], ordered[n - below])


def resamples(n: int, n_resamples: int, seed: int, *, values_at_once: int = 2**20) -> Iterator[NDArray[np.int64]]:
    """Yield the rows of a bootstrap, a few resamples at a time: indices `[R', n]`, drawn with replacement from 0..n-1.

    The indices do not depend on how many rows come at once, so memory stays bounded and the figures stay the same.

    Args:
        n: Number of units (problems, pairs, chains) in the sample.
        n_resamples: Total number of rows R.
        seed: Decides the draws.
        values_at_once: About how many indices one block holds.
    """
    generator = np.random.default_rng(seed)
    rows_at_once = max(1, values_at_once // max(1, n))
    for start in range(0, n_resamples, rows_at_once):
        yield generator.integers(0, n, size=(min(rows_at_once, n_resamples - start), n))


def bootstrap_interval(values: ArrayLike, *, n_resamples: int, seed: int, confidence: float = 0.95) -> Interval:
    """Return the percentile bootstrap interval of a mean.

    Args:
        values: Independent units, `[n]`.
        n_resamples: Number of resamples.
        seed: Decides them.
        confidence: Nominal coverage.
    """
    sample = np.asarray(values)
    means = [sample[rows].mean(1) for rows in resamples(len(sample), n_resamples, seed)]
    return percentile_interval(np.concatenate(means), confidence)


def cluster_interval(
    values: ArrayLike, clusters: Sequence[int], *, n_resamples: int, seed: int, confidence: float = 0.95
) -> Interval:
    """Return the percentile bootstrap interval of a mean over values that belong together, such as those of a problem.

    Whole clusters are resampled, with all of their values.

    Args:
        values: The values, `[n]`.
        clusters: The cluster of each value, any whole numbers.
        n_resamples: Number of resamples.
        seed: Decides them.
        confidence: Nominal coverage.
    """
    _, place = np.unique(np.asarray(clusters), return_inverse=True)
    sizes = np.bincount(place)
    if len(sizes) == len(place):
        return bootstrap_interval(values, n_resamples=n_resamples, seed=seed, confidence=confidence)
    sums = np.bincount(place, weights=np.asarray(values, dtype=float))
    means = [sums[rows].sum(1) / sizes[rows].sum(1) for rows in resamples(len(sizes), n_resamples, seed)]
    return percentile_interval(np.concatenate(means), confidence)


def percentile_interval(statistics: ArrayLike, confidence: float = 0.95) -> Interval:
    """Return the central percentiles of a statistic over bootstrap resamples, ignoring NaN; NaN if all of them are.

    Args:
        statistics: The statistic of each resample, `[R]`.
        confidence: Share of the resamples inside the interval.
    """
    known = np.asarray(statistics)
    known = known[~np.isnan(known)]
    if not len(known):
        return Interval(float("nan"), float("nan"))
    outside = round((1 - confidence) / 2, 12)  # 0.025, which 1 - 0.95 misses by rounding
    low, high = np.quantile(known, (outside, 1 - outside))
    return Interval(float(low), float(high))


def holm_rejections(p_values: Sequence[float], significance: float) -> list[int]:
    """Return which hypotheses Holm's step-down method rejects, by rising p-value.

    Args:
        p_values: One per hypothesis.
        significance: Family-wise error rate.

    Source: Holm, A simple sequentially rejective multiple test procedure (1979).
    """
    rejected: list[int] = []
    for rank, i in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        if p_values[i] * (len(p_values) - rank) > significance:
            break
        rejected.append(i)
    return rejected
