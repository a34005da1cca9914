"""Two processes that share a model find what one process finds: edits, measurements, fingerprints, decoding."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from families import tiny
from ranks import run_ranks
from sharded import CHECKS, DECODED, FITTED

# relative to the largest number of a tensor; sums over ranks round in another order
ROOM = 1e-5
_EVERY = list(CHECKS)
_SOME = ["fingerprints", "sizes", "knocked_out", "bridged", "captured", "saliency", "flow"]
_SIZES = dict(
    num_hidden_layers=3,
    hidden_size=48,
    intermediate_size=64,
    vocab_size=61,
    num_attention_heads=4,
    num_key_value_heads=2,
)
_ENDS = dict(bos_token_id=1, eos_token_id=2, pad_token_id=0)
# spread by key/value heads; all heads in every rank; a softcap, windows and tied embeddings; experts cut in two; fused;
# a sink per head, which the attention function reads from the module
FAMILIES = {
    "qwen3": (_EVERY, {}),
    "phi3": (_SOME, {}),
    "gemma2": (_SOME, {}),
    "mixtral": (_SOME, dict(_SIZES, num_local_experts=4)),
    "gpt_neox": (_SOME, {}),
    "granite_swa": ([*_SOME, "swept"], dict(_SIZES, **_ENDS, sliding_window=6)),
}
_IN_CI = ("qwen3", "phi3", "mixtral")


def assert_same(found: list[dict[str, str | float]], room: float = ROOM) -> None:
    """Fail unless every rank found no difference from one process."""
    for rank, differences in enumerate(found):
        wrong = {name: off for name, off in differences.items() if isinstance(off, str) or not off <= room}
        assert not wrong, f"rank {rank}: {wrong}"


@pytest.mark.parametrize(
    "family", [family if family in _IN_CI else pytest.param(family, marks=pytest.mark.slow) for family in FAMILIES]
)
def test_a_spread_model_is_edited_and_measured_like_one(family: str, tmp_path: Path) -> None:
    names, changes = FAMILIES[family]
    tiny(family, **changes).save_pretrained(tmp_path)
    assert_same(run_ranks("sharded:differences", str(tmp_path), names))


def test_repairs_of_a_spread_model_decode_the_same_texts() -> None:
    assert_same(run_ranks("sharded:decoding", 3, list(DECODED)))


@pytest.mark.slow
def test_fits_and_head_searches_of_a_spread_model_find_the_same() -> None:
    assert_same(run_ranks("sharded:fitting", list(FITTED)), room=1e-3)


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_repairs_of_a_model_on_two_gpus_decode_the_same_texts() -> None:
    assert_same(run_ranks("sharded:decoding", 3, list(DECODED), on_gpus=True), room=1e-3)
