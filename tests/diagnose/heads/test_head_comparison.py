"""Two models side by side, with ranks and overlaps worked out by hand."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from chainwright._errors import BadInput
from chainwright._finding import Finding
from chainwright.diagnose import HeadRoles, compare_heads

MAPS = ("writing_correct", "writing_erroneous", "effect_correct", "rectification", "corrected", "kept")


def roles(effect: list[list[float]], wrong: list[list[int]]) -> HeadRoles:
    tensor = torch.tensor(effect)
    maps = {name: tensor.clone() for name in MAPS}
    return HeadRoles(
        **maps, effect_erroneous=tensor, answer_writing=[[0, 0]], correct_processing=[], erroneous_processing=wrong,
        basic=[], n_correct=3, n_erroneous=3, provenance={"model": "m"},
    )  # fmt: skip


def test_overlap_rank_correlation_and_disagreement_by_hand(tmp_path: Path) -> None:
    first = roles([[0.1, 0.2], [0.3, 0.4]], [[1, 1], [1, 0]])
    second = roles([[0.4, 0.2], [0.3, 0.1]], [[0, 0], [1, 0]])
    found = compare_heads(first, second)
    row = next(r for r in found.roles if r["role"] == "erroneous_processing")
    assert (row["first"], row["second"], row["both"]) == (2, 2, 1)
    assert row["overlap"] == pytest.approx(1 / 3) and row["by_chance"] == pytest.approx(1 / 3)
    assert next(r for r in found.roles if r["role"] == "basic")["overlap"] is None
    # ranks 0 1 2 3 and 3 1 2 0: d = 3, 0, 0, 3; 1 - 6 * 18 / (4 * 15) = -0.8
    assert [r["rank_correlation"] for r in found.scores] == pytest.approx([-0.8] * 5)
    assert found.disagreement.tolist() == [[0.75, 0.0], [0.0, -0.75]]
    assert "erroneous-processing 1 of 2 and 2 shared" in found.summary()
    assert found.to_frame().num_rows == 9
    again = Finding.load(found.save(tmp_path / "found"))
    assert again.summary() == found.summary()


def test_a_model_agrees_with_itself_and_others_must_have_its_shape() -> None:
    one = roles([[0.1, 0.2], [0.3, 0.4]], [[1, 1]])
    found = compare_heads(one, replace(one))
    assert all(r["rank_correlation"] == pytest.approx(1) for r in found.scores)
    assert not found.disagreement.any()
    with pytest.raises(BadInput, match="2 x 2 and 1 x 2 heads"):
        compare_heads(one, roles([[0.1, 0.2]], [[0, 0]]))
