"""Intervals against their definition: over many draws they hold the true value as often as they say."""

from __future__ import annotations

from random import Random

import pytest

from chainwright._stats import median_interval, wilson


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
