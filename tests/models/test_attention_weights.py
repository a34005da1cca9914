"""Attention weights computed from a call: masks, softcaps, sinks and position biases, on hand-made calls."""

from types import SimpleNamespace

import pytest
import torch

from chainwright.models.attention_weights import attn_pattern
from chainwright.models.seam import AttentionCall
from reference import assert_close, assert_equal


def call(n_query: int, n_key: int, mask: torch.Tensor | None, **options: object) -> AttentionCall:
    """Return a call in which all scores are zero, so that each row is uniform over what it sees."""
    q, k = torch.zeros(1, 2, n_query, 4), torch.ones(1, 1, n_key, 4)
    module = SimpleNamespace(is_causal=True)
    return AttentionCall(module, 0, q, k, k, mask, {"scaling": 1.0, **options})  # type: ignore[arg-type]


def test_pattern_without_mask_is_causal_from_the_upper_left() -> None:
    # as in the prefill of a static cache, whose last keys are still empty
    got = attn_pattern(call(2, 4, None))[0, 1]
    assert_close(got, torch.tensor([[1, 0, 0, 0], [0.5, 0.5, 0, 0]]))


def test_pattern_of_one_query_without_mask_sees_every_key() -> None:
    assert_close(attn_pattern(call(1, 4, None))[0, 0], torch.full((1, 4), 0.25))


def test_pattern_of_a_bidirectional_call_sees_every_key() -> None:
    assert_close(attn_pattern(call(2, 2, None, is_causal=False))[0, 0], torch.full((2, 2), 0.5))


@pytest.mark.parametrize("hidden", [torch.finfo(torch.float32).min, -torch.inf, -1e9])
def test_pattern_follows_float_masks(hidden: float) -> None:
    mask = torch.tensor([[0.0, hidden, hidden], [0.0, hidden, 0.0]])[None, None]
    assert_close(attn_pattern(call(2, 3, mask))[0, 0], torch.tensor([[1, 0, 0], [0.5, 0, 0.5]]))


def test_pattern_adds_finite_float_masks_to_the_scores() -> None:
    mask = torch.tensor([[0.0, 3.0]]).log1p()[None, None]  # weights 1 and 4
    assert_close(attn_pattern(call(1, 2, mask))[0, 0], torch.tensor([[0.2, 0.8]]))


def test_pattern_of_a_row_that_sees_nothing_is_zero() -> None:
    mask = torch.tensor([[False, False], [True, False]])[None, None]
    assert_equal(attn_pattern(call(2, 2, mask))[0, 0], torch.tensor([[0.0, 0], [1, 0]]))


def test_pattern_of_a_model_with_sinks_sums_to_less_than_one() -> None:
    # head 0: sink of weight 2 beside two keys of weight 1; head 1: of weight 0.5
    got = attn_pattern(call(1, 2, None, s_aux=torch.tensor([2.0, 0.5]).log()))[0, :, 0]
    assert_close(got, torch.tensor([[0.25, 0.25], [0.4, 0.4]]))


def test_pattern_follows_softcap_and_scaling() -> None:
    q, k = torch.tensor([[[[2.0]]]]), torch.tensor([[[[3.0], [0.0]]]])
    one = AttentionCall(SimpleNamespace(), 0, q, k, k, None, {"scaling": 0.5, "softcap": 2.0})  # type: ignore[arg-type]
    want = torch.tensor([2 * torch.tanh(torch.tensor(1.5)), 0.0]).softmax(0)
    assert_close(attn_pattern(one)[0, 0, 0], want)
