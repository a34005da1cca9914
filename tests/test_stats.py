"""Intervals against their definition: over many draws they hold the true value as often as they say."""

from __future__ import annotations

import tracemalloc
from math import isnan
from random import Random

import numpy as np
import pytest

from chainwright._stats import (
    bootstrap_interval,
    holm_rejections,
    median_interval,
    percentile_interval,
    resamples,
    wilson,
)


def test_an_interval_of_a_share_by_hand() -> None:
    low, high = wilson(4, 5)
    assert low == pytest.approx(0.3755, abs=1e-4)
    assert high == pytest.approx(0.9638, abs=1e-4)


@pytest.mark.parametrize(("n", "places"), [(6, (0, 5)), (8, (0, 7)), (9, (1, 7)), (20, (5, 14))])
def test_an_interval_of_a_median_ends_at_known_places(n: int, places: tuple[int, int]) -> None:
    """The tables of the sign test: 6 to 8 values take the extremes, 9 the second from each end, 20 the sixth."""
    assert median_interval([float(i) for i in reversed(range(n))]) == places


def test_too_few_values_have_no_interval() -> None:
    assert median_interval([]) is None
    assert median_interval([1.0, 2.0, 3.0, 4.0, 5.0]) is None


def test_the_interval_holds_the_median_as_often_as_it_says() -> None:
    draw = Random(0)
    hits = 0
    for _ in range(2000):
        low, high = median_interval([draw.expovariate(1.0) for _ in range(11)]) or (0.0, 0.0)
        hits += low <= 0.6931 <= high  # ln 2
    assert hits / 2000 >= 0.945


@pytest.mark.parametrize(("n", "n_resamples", "at_once"), [(7, 50, 10), (40, 1000, 2**20), (3, 11, 1)])
def test_resamples_are_the_same_however_many_come_at_once(n: int, n_resamples: int, at_once: int) -> None:
    whole = np.random.default_rng(5).integers(0, n, size=(n_resamples, n))
    blocks = list(resamples(n, n_resamples, 5, values_at_once=at_once))
    assert np.array_equal(np.concatenate(blocks), whole)
    assert max(block.size for block in blocks) <= max(at_once, n)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_bootstrap_interval_is_the_one_of_the_whole_table_of_draws(dtype: type) -> None:
    values = np.random.default_rng(1).normal(size=73).astype(dtype)
    drawn = np.random.default_rng(3).integers(0, 73, size=(2000, 73))
    want = np.quantile(values[drawn].mean(1), (0.025, 0.975))
    assert bootstrap_interval(values, n_resamples=2000, seed=3) == tuple(want)


def test_a_bootstrap_of_many_units_stays_small() -> None:
    tracemalloc.start()
    low, high = bootstrap_interval(np.ones(50_000), n_resamples=400, seed=0)  # 160 MB if drawn at once
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (low, high) == (1.0, 1.0) and peak < 60e6


def test_percentiles_leave_out_what_has_no_value() -> None:
    assert percentile_interval([float("nan"), *range(41)]) == (1.0, 39.0)
    assert all(isnan(end) for end in percentile_interval([float("nan")]))


def test_holm_by_hand() -> None:
    """Four tests at 5%: 0.01 against 0.0125, 0.013 against 0.0167, then 0.03 against 0.025 ends it."""
    assert holm_rejections([0.03, 0.01, 0.04, 0.013], 0.05) == [1, 3]
    assert holm_rejections([0.02, 0.02, 0.02], 0.05) == []
    assert holm_rejections([], 0.05) == []
