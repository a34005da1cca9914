"""The measures of the circuit against plain loops on attention made by hand, and the finding that holds them."""

import math
from pathlib import Path

import pytest
import torch

from chainwright._errors import BadInput
from chainwright._finding import Finding
from chainwright.diagnose import Emergence, circuit_measures
from reference import assert_close


def random_attention(n_layers: int, n_rows: int, n_heads: int, n_tokens: int, seed: int = 0) -> torch.Tensor:
    scores = 2 * torch.randn(
        n_layers, n_rows, n_heads, n_tokens, n_tokens, generator=torch.Generator().manual_seed(seed)
    )
    return scores.masked_fill(torch.ones(n_tokens, n_tokens).triu(1).bool(), -torch.inf).softmax(-1)


def plain(attention: list, length: int, kind: str) -> tuple[float, float, float]:
    """Return score, thresholded and invariance of one head's attention (rows of nested lists), in plain Python."""
    e = length + 1
    if kind == "end_of_input":
        places = [(q, e) for q in range(e + 1, 2 * e)]
    else:
        places = [(e + j, 1 + j) for j in range(e - 1)]
    columns = [[row[q][k] for row in attention] for q, k in places]
    every = [value for column in columns for value in column]
    spreads = []
    for column in columns:
        mean = sum(column) / len(column)
        spreads.append(math.sqrt(sum((value - mean) ** 2 for value in column) / len(column)))
    return sum(every) / len(every), sum(v > 0.5 for v in every) / len(every), 1 - sum(spreads) / len(spreads)


@pytest.mark.parametrize("length", [1, 2, 5])
def test_measures_are_those_of_a_plain_loop(length: int) -> None:
    attention = random_attention(2, 4, 3, 2 * length + 3, seed=length)
    found = circuit_measures(attention, length)
    for layer in range(2):
        for head in range(3):
            rows = attention[layer, :, head].tolist()
            for kind in ("end_of_input", "diagonal"):
                want = plain(rows, length, kind)
                names = (kind, f"{kind}_thresholded", f"{kind}_invariance")
                for name, value in zip(names, want, strict=True):
                    assert float(getattr(found, name)[layer, head]) == pytest.approx(value, abs=1e-6), name


def test_a_clean_circuit_has_scores_of_one() -> None:
    length, n_tokens = 4, 11
    attention = torch.zeros(2, 3, 1, n_tokens, n_tokens)
    end = length + 1
    for t in range(length):
        attention[0, :, 0, end + 1 + t, end] = 1.0  # layer 0: every written state looks at the end of the input
        attention[1, :, 0, end + t, 1 + t] = 1.0  # layer 1: where s_t is about to be written looks at x_t
    found = circuit_measures(attention, length)
    assert found.end_of_input.tolist() == [[1.0], [0.0]] and found.diagonal.tolist() == [[0.0], [1.0]]
    assert found.end_of_input_thresholded.tolist() == [[1.0], [0.0]]
    assert found.diagonal_thresholded.tolist() == [[0.0], [1.0]]
    assert bool((found.stacked()[:, 2] == 1).all()), "the same in every sequence"
    shifted = attention.roll(1, dims=-1)
    assert float(circuit_measures(shifted, length).diagonal.max()) == 0.0, "one key off is no circuit"


def test_attention_that_differs_between_sequences_is_less_invariant() -> None:
    length, n_tokens = 2, 6
    attention = torch.zeros(1, 2, 1, n_tokens, n_tokens)
    attention[0, 0, 0, 3, 1] = attention[0, 0, 0, 4, 2] = 1.0  # the first sequence alone
    found = circuit_measures(attention, length)
    assert float(found.diagonal) == 0.5 and float(found.diagonal_invariance) == 0.5
    assert float(found.end_of_input_invariance) == 1.0


def test_attention_of_another_form_is_refused() -> None:
    with pytest.raises(BadInput, match=r"attention must have the shape \[L, N, H, T, T\]; got \[3, 7, 7\]"):
        circuit_measures(torch.zeros(3, 7, 7), 2)
    with pytest.raises(BadInput, match=r"length 4 has 10 tokens up to its last state.*the attention covers 9"):
        circuit_measures(torch.zeros(1, 1, 1, 9, 9), 4)
    with pytest.raises(BadInput, match="a length is at least 1"):
        circuit_measures(torch.zeros(1, 1, 1, 9, 9), 0)


def made() -> Emergence:
    measures = torch.zeros(3, 2, 2, 2, 3, 2, 1)
    measures[:, 0, :, 0, 0, 0, 0] = torch.tensor([0.1, 0.6, 0.7])[:, None]
    measures[:, 0, :, 1, 0, 1, 0] = torch.tensor([0.1, 0.2, 0.9])[:, None]
    return Emergence(
        steps=torch.tensor([0, 50, 100]),
        loss=torch.tensor([float("nan"), 2.0, 0.1]),
        tasks=["copy", "parity"],
        lengths=[2, 3],
        accuracy=torch.tensor([[[0.0, 0.0], [0.0, 0.0]], [[1.0, 0.5], [0.0, 0.0]], [[1.0, 1.0], [0.5, 0.0]]]),
        token_accuracy=torch.ones(3, 2, 2),
        measures=measures,
        maps=torch.zeros(3, 2, 2, 1, 9, 9),
        n_sequences=torch.tensor([[1, 2], [1, 2]]),
    )


def test_curves_follow_the_head_that_ends_up_best() -> None:
    found = made()
    assert found.best_head("end_of_input") == (0, 0) and found.best_head("diagonal") == (1, 0)
    assert_close(found.curve("end_of_input"), torch.tensor([0.1, 0.6, 0.7]))
    assert_close(found.curve("diagonal"), torch.tensor([0.1, 0.2, 0.9]))
    assert_close(found.exact("copy"), torch.tensor([0.0, 0.75, 1.0]))
    assert found.first_step(0.7) == 50 and found.first_step(0.9) == 100 and found.first_step(0.3, "parity") is None
    assert "copy: 1.000 of held-out sequences exact after 100 steps; end-of-input L0H0 0.70, diagonal L1H0 0.90" in (
        found.summary()
    )
    with pytest.raises(BadInput, match="There are no measures of task 'polynomial'; measured: copy, parity"):
        found.exact("polynomial")


def test_emergence_is_saved_and_tabled(tmp_path: Path) -> None:
    found = made()
    loaded = Finding.load(found.save(tmp_path / "e"))
    assert isinstance(loaded, Emergence) and torch.equal(loaded.measures, found.measures)
    rows = found.to_frame().to_pylist()
    assert len(rows) == 3 * 2 * 2
    row = next(r for r in rows if (r["step"], r["task"], r["length"]) == (50, "copy", 3))
    assert (row["accuracy"], row["diagonal_head"], row["n"]) == (0.5, "L1H0", 2)
    assert row["diagonal_score"] == pytest.approx(0.2) and row["end_of_input_score"] == pytest.approx(0.6)
