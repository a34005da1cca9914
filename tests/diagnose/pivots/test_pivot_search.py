"""The search for the fall that is never made good, on values that are known exactly: no model is run."""

from itertools import product
from math import comb, exp
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chainwright._errors import BadInput
from chainwright._stats import always_valid, log_fall_evidence, log_share_evidence
from chainwright.diagnose.pivots.config import PivotConfig, parse_band
from chainwright.diagnose.pivots.search import Search
from chainwright.diagnose.pivots.tally import Tally

N_STEPS, PER_STEP = 10, 6
DROP = PivotConfig().drop
ENDS = list(range(4, 4 + N_STEPS * PER_STEP + 1, PER_STEP))


def play(values: list[float], config: PivotConfig, rng: Random, *, knows: bool = False) -> Search:
    """Search with continuations that end right with probability `values[length - ENDS[0]]`; 0 at the end."""
    search = Search(ENDS, config, {ENDS[-1]: Tally(known=0.0)})
    while wanted := search.wanted():
        for length, n in wanted.items():
            p = values[length - ENDS[0]]
            n_right = sum(rng.random() < p for _ in range(n))
            search.add(length, Tally(known=p) if knows else Tally(n_right, n - n_right))
    return search


def profile(*parts: tuple[int, float]) -> list[float]:
    """Return the values of all prefixes: each part begins at a number of tokens."""
    n = ENDS[-1] - ENDS[0]
    values = [next(v for at, v in reversed(parts) if at <= i) for i in range(n + 1)]
    return [*values[:-1], 0.0]


def true_fall(values: list[float], drop: float) -> int | None:
    """Return by brute force the earliest prefix whose value no later one has, less the drop."""
    falls = (i for i in range(len(values) - 1) if values[i] - max(values[i + 1 :]) > drop)
    return next((ENDS[0] + i for i in falls), None)


@given(at=st.integers(1, ENDS[-1] - ENDS[0] - 1), high=st.sampled_from([1.0, 0.7]), low=st.sampled_from([0.0, 0.1]))
def test_a_single_fall_whose_values_are_known_is_found_to_the_token(at: int, high: float, low: float) -> None:
    values = profile((0, high), (at, low))
    search = play(values, PivotConfig(), Random(0), knows=True)
    assert search.outcome.status == "found" and search.outcome.is_token
    assert search.outcome.fall is not None and search.outcome.fall.before == true_fall(values, DROP)
    assert len(search.tallies) <= 14


@given(st.lists(st.sampled_from([0.0, 0.3, 0.6, 1.0]), min_size=N_STEPS, max_size=N_STEPS))
def test_whatever_is_found_does_fall(levels: list[float]) -> None:
    values = profile((0, 1.0), *((1 + i * PER_STEP, level) for i, level in enumerate(levels)))
    search = play(values, PivotConfig(), Random(0), knows=True)
    fall = search.outcome.fall
    assert search.outcome.status == "found" and fall is not None
    assert values[fall.before - ENDS[0]] - values[fall.after - ENDS[0]] > DROP
    for made_good in search.outcome.made_good:
        assert made_good.back is not None
        assert values[made_good.back - ENDS[0]] >= values[made_good.before - ENDS[0]] - DROP


def test_a_planted_fall_is_found_from_draws_and_costs_a_quarter_of_ten_per_step_end() -> None:
    rng, costs, n_found = Random(1), [], 0
    for _ in range(60):
        at = rng.randrange(1, ENDS[-1] - ENDS[0])
        search = play(profile((0, 1.0), (at, 0.0)), PivotConfig(), rng)
        assert search.outcome.fall is not None and search.outcome.n_to_step is not None
        assert search.outcome.status == "found" and search.outcome.token == "certain"
        n_found += search.outcome.fall.before == ENDS[0] + at - 1
        costs.append(search.outcome.n_to_step)
    assert n_found == 60
    assert sum(costs) / len(costs) <= 10 * len(ENDS) / 4


@pytest.mark.parametrize(("high", "low", "share"), [(0.95, 0.05, 0.9), (0.6, 0.0, 0.75)])
def test_noisy_falls_are_found_most_of_the_time(high: float, low: float, share: float) -> None:
    rng, n_right = Random(2), 0
    config = PivotConfig(to="step", budget=128)
    for _ in range(40):
        at = rng.randrange(1, ENDS[-1] - ENDS[0])
        step = play(profile((0, high), (at, low)), config, rng).outcome.step
        n_right += step is not None and step.before < ENDS[0] + at <= step.after
    assert n_right >= share * 40


@pytest.mark.parametrize(
    "values",
    [
        profile(*((i * PER_STEP, 1 - DROP * i if i < 5 else 0.0) for i in range(N_STEPS))),  # falls of just the drop
        profile((0, 0.2)),
        profile(*((i, 1 - i / (N_STEPS * PER_STEP)) for i in range(N_STEPS * PER_STEP))),
    ],
    ids=["stairs", "low", "slope"],
)
def test_a_fall_that_is_not_there_is_claimed_at_most_at_the_error_rate(values: list[float]) -> None:
    rng, n_false, n_runs = Random(3), 0, 60
    for _ in range(n_runs):
        outcome = play(values, PivotConfig(error_rate=0.05), rng).outcome
        fall = outcome.step if outcome.status == "found" else None
        n_false += fall is not None and values[fall.before - ENDS[0]] - values[fall.after - ENDS[0]] <= DROP
    assert n_false <= 0.05 * n_runs


def test_a_fall_that_is_made_good_is_noted_and_the_later_one_found() -> None:
    # the first look, in the middle, is low; the recheck behind it is not
    values = profile((0, 1.0), (8, 0.0), (33, 1.0), (52, 0.0))
    outcome = play(values, PivotConfig(), Random(4), knows=True).outcome
    assert outcome.fall is not None and outcome.fall.before == ENDS[0] + 51 == true_fall(values, DROP)
    assert [(f.before, f.after) for f in outcome.made_good] == [(ENDS[1], ENDS[2])]


def test_a_right_response_and_one_that_never_succeeds_cost_little() -> None:
    right = Search(ENDS, PivotConfig(), {ENDS[-1]: Tally(known=1.0)})
    assert right.wanted() == {} and right.outcome.status == "right"
    rare = play(profile((0, 0.0)), PivotConfig(), Random(0))
    assert rare.outcome.status == "rare" and rare.n_spent == 4 * 4


def test_a_value_that_rises_before_it_falls_is_found_from_a_low_start() -> None:
    outcome = play(profile((0, 0.0), (20, 1.0), (47, 0.0)), PivotConfig(), Random(0), knows=True).outcome
    assert outcome.fall is not None and outcome.fall.before == ENDS[0] + 46


@given(seed=st.integers(0, 10**6), budget=st.integers(1, 60), high=st.floats(0, 1), low=st.floats(0, 1))
@settings(max_examples=40)
def test_no_search_spends_more_than_its_budget(seed: int, budget: int, high: float, low: float) -> None:
    config = PivotConfig(budget=budget, n_most=9)
    search = play(profile((0, high), (25, low)), config, Random(seed))
    assert search.n_spent <= budget
    assert all(tally.n_spent <= 9 for tally in search.tallies.values())


def test_counts_that_were_made_before_are_used_and_not_charged() -> None:
    search = Search(ENDS, PivotConfig(budget=10), {ENDS[0]: Tally(8, 0), ENDS[-1]: Tally(known=0.0)})
    assert ENDS[0] not in search.wanted() and search.n_spent == 0


def test_every_step_end_is_continued_as_often_as_asked() -> None:
    search = play(profile((0, 1.0), (25, 0.0)), PivotConfig(per_boundary=5, to="step"), Random(0))
    assert {length: t.n for length, t in search.tallies.items() if t.known is None} == dict.fromkeys(ENDS[:-1], 5)
    assert search.outcome.step is not None and search.outcome.step.before == ENDS[4]


def test_cut_continuations_count_for_neither_side() -> None:
    search = Search(ENDS, PivotConfig(), {ENDS[-1]: Tally(known=0.0)})
    while wanted := search.wanted():
        for length, n in wanted.items():
            search.add(length, Tally(n_cut=n))
    assert search.outcome.status in ("rare", "undecided")
    assert all(tally.n == 0 for length, tally in search.tallies.items() if length != ENDS[-1])


def test_a_step_that_the_model_did_not_write_is_not_split() -> None:
    can_split = [True] * N_STEPS
    can_split[4] = False
    search = Search(ENDS, PivotConfig(), {ENDS[-1]: Tally(known=0.0)}, can_split=can_split)
    values = profile((0, 1.0), (27, 0.0))
    while wanted := search.wanted():
        for length in wanted:
            search.add(length, Tally(known=values[length - ENDS[0]]))
    assert search.outcome.status == "found" and not search.outcome.is_token
    assert search.outcome.fall == search.outcome.step == (ENDS[4], ENDS[5], None)


@pytest.mark.parametrize(("p", "q"), [(0.25, 0.0), (1.0, 0.75), (0.6, 0.35), (0.5, 0.5), (0.3, 0.9)])
@pytest.mark.parametrize(("n", "m"), [(5, 5), (8, 3)])
def test_the_evidence_for_a_fall_has_an_expectation_of_at_most_one_without_it(
    p: float, q: float, n: int, m: int
) -> None:
    total = sum(
        comb(n, k) * p**k * (1 - p) ** (n - k) * comb(m, j) * q**j * (1 - q) ** (m - j)
        * exp(log_fall_evidence((k, n), (j, m), 0.25))
        for k, j in product(range(n + 1), range(m + 1))
    )  # fmt: skip
    assert total <= 1 + 1e-6


@pytest.mark.parametrize("p", [0.0, 0.1, 0.25])
def test_the_evidence_for_a_share_has_an_expectation_of_at_most_one_below_it(p: float) -> None:
    total = sum(
        comb(9, k) * p**k * (1 - p) ** (9 - k) * exp(log_share_evidence(k, 9, 0.25, is_above=True)) for k in range(10)
    )
    assert total <= 1 + 1e-9


def test_evidence_grows_with_a_real_fall_and_says_nothing_without_draws() -> None:
    assert log_fall_evidence((0, 0), (0, 5), 0.25) == 0.0
    assert log_fall_evidence((12, 12), (0, 12), 0.25) > log_fall_evidence((6, 6), (0, 6), 0.25) > 3
    assert log_fall_evidence((12, 12), (12, 12), 0.25) < 0
    assert log_fall_evidence((20, 20), (20, 20), 0.25, is_larger=False) > 3


@pytest.mark.parametrize("p", [0.0, 0.1, 0.5, 0.9])
def test_always_valid_intervals_hold_at_every_number_of_draws(p: float) -> None:
    """The probability that an interval ever misses is computed exactly, by following those that have not yet."""
    reached, missed = {0: 1.0}, 0.0
    for n in range(1, 26):
        step: dict[int, float] = {}
        for k, share in reached.items():
            step[k] = step.get(k, 0.0) + share * (1 - p)
            step[k + 1] = step.get(k + 1, 0.0) + share * p
        is_in = {k: always_valid(k, n).low - 1e-9 <= p <= always_valid(k, n).high + 1e-9 for k in step}
        missed += sum(share for k, share in step.items() if not is_in[k])
        reached = {k: share for k, share in step.items() if is_in[k]}
    assert missed <= 0.05


def test_always_valid_intervals_end_at_0_and_1_and_shrink() -> None:
    assert always_valid(0, 0) == (0.0, 1.0)
    assert always_valid(8, 8).high == 1.0 and always_valid(0, 8).low == 0.0
    assert always_valid(4, 8).low < always_valid(20, 40).low < 0.5 < always_valid(20, 40).high


@pytest.mark.parametrize("text", ["0.2", "0.9-0.2", "0.5-0.5", "a-b", "0.2-1.5", ""])
def test_a_malformed_band_is_refused_in_one_sentence(text: str) -> None:
    with pytest.raises(BadInput, match=r"two rising shares between 0 and 1, such as 0\.2-0\.9"):
        parse_band(text)


def test_a_band_is_read() -> None:
    assert parse_band("0.2-0.9") == (0.2, 0.9) == parse_band(" .2 : .9 ")
    with pytest.raises(BadInput, match="band must be two rising shares"):
        PivotConfig(band=(0.9, 0.2))


def test_greedy_decoding_of_several_continuations_is_refused() -> None:
    with pytest.raises(BadInput, match="At temperature 0 every continuation of a prefix is the same"):
        PivotConfig(temperature=0.0)
