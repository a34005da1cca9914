"""The measures of a step map, by hand."""

import math

import pytest
import torch

from chainwright.diagnose.steps.measures import pair_counts, step_measures

# question, three steps of thinking, two of summary
MAP = torch.tensor(
    [
        [4.0, 0, 0, 0, 0, 0],
        [3.0, 1.0, 0, 0, 0, 0],
        [2.0, 2.0, 4.0, 0, 0, 0],
        [1.0, 3.0, 2.0, 2.0, 0, 0],
        [1.0, 1.0, 1.0, 2.0, 5.0, 0],
        [2.0, 0.0, 0.0, 2.0, 3.0, 1.0],
    ]
)
SIZES = [2, 1, 3, 2, 2, 1]
SEGMENTS = ["question", *3 * ["thinking"], *2 * ["summary"]]


def test_measures_by_hand() -> None:
    found = step_measures(torch.stack([MAP, 2 * MAP, MAP, 3 * MAP]), SIZES, SEGMENTS)
    lock_in = ((1 + 3) / 4 + (4 + 2) / 8 + (2 + 2) / 8) / 3
    reach = (3 / 4 + 2 / 8 + (1 + 3) / 8) / 3
    assert found.lock_in.tolist() == pytest.approx(4 * [lock_in])
    assert found.reach.tolist() == pytest.approx(4 * [reach])
    assert found.decay.tolist() == pytest.approx([3, 6, 3, 9])
    assert found.decay_share.tolist() == pytest.approx(4 * [(4 / 10 + 2 / 8) / 2])
    assert float(found.decay_slope) == pytest.approx(6) and abs(float(found.decay_share_slope)) < 1e-9
    assert found.summary_self.tolist() == pytest.approx([4.5, 9, 4.5, 13.5])
    assert found.summary_self_share.tolist() == pytest.approx(4 * [(5 / 10 + 4 / 8) / 2])
    summary = (5 * 4 + 3 * 2 + 1 * 1) / 6
    thinking = (1 * 1 + 2 * 3 + 4 * 9 + 3 * 2 + 2 * 6 + 2 * 4) / 21
    assert found.summary_intensity.tolist() == pytest.approx([summary, 2 * summary, summary, 3 * summary])
    assert found.thinking_intensity[0].item() == pytest.approx(thinking)
    assert found.intensity_ratio.tolist() == pytest.approx(4 * [summary / thinking])
    assert len(found.by_layer()) == 9


def test_the_diagonal_counts_half_of_its_pairs_where_the_map_does() -> None:
    assert pair_counts([2, 3]).tolist() == [[4, 6], [6, 9]]
    assert pair_counts([2, 3], "causal").tolist() == [[3, 6], [6, 6]]


@pytest.mark.parametrize(
    ("segments", "known"),
    [
        (["question", *5 * ["thinking"]], {"lock_in", "reach", "thinking_intensity"}),
        (["question", *5 * ["summary"]], {"summary_self", "summary_self_share", "summary_intensity"}),
        (["question", *5 * ["question"]], set()),
    ],
)
def test_what_a_trace_does_not_have_is_nan(segments: list[str], known: set[str]) -> None:
    found = step_measures(MAP[None], SIZES, segments).by_layer()
    assert {name for name, value in found.items() if not math.isnan(float(value[0]))} == known


def test_rows_without_mass_are_left_out_of_shares() -> None:
    empty = MAP.clone()
    empty[2] = 0
    found = step_measures(empty[None], SIZES, SEGMENTS)
    assert float(found.lock_in[0]) == pytest.approx((1 + 4 / 8) / 2)
    assert bool(step_measures(0 * MAP[None], SIZES, SEGMENTS).lock_in.isnan().all())
