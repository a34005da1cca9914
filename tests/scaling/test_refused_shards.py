"""Models that cannot be spread, or are spread in a way that is not supported, are refused in one sentence."""

from __future__ import annotations

from pathlib import Path

import pytest

from chainwright._errors import BadInput
from chainwright.models import load_model
from chainwright.models.load import BUNDLED
from chainwright.models.sharding import check_heads
from families import tiny
from ranks import run_ranks

_SPREAD = {"layers.*.self_attn.q_proj": "colwise", "layers.*.self_attn.k_proj": "colwise"}


def test_models_spread_by_hand_serving_and_ranks_with_other_tokens_are_refused() -> None:
    for by_hand, served, apart in run_ranks("sharded:refusals", str(BUNDLED / "reasoner")):
        assert "spread over 2 processes, and not by tensor parallelism over all of them" in by_hand
        assert "requests reach only one of them; serve it from one" in served
        assert "The 2 ranks that share this model run different tokens" in apart


@pytest.mark.parametrize(
    ("changes", "n_ranks", "says"),
    [
        ({"num_attention_heads": 4, "num_key_value_heads": 4}, 8, "8 ranks are more than the 4 heads of this llama"),
        (
            {"num_attention_heads": 6, "num_key_value_heads": 6, "head_dim": 8},
            4,
            "The 6 heads of this llama model do not divide among 4 ranks; use 1 or 2 or 3 or 6.",
        ),
        (
            {"num_attention_heads": 4, "num_key_value_heads": 1},
            2,
            "2 ranks are more than the 1 key/value heads of this llama model, and each rank needs at least one; use at "
            "most 1 ranks.",
        ),
    ],
)
def test_heads_that_do_not_divide_are_refused(changes: dict, n_ranks: int, says: str) -> None:
    with pytest.raises(BadInput, match=says):
        check_heads(tiny("llama", **changes).config, _SPREAD, n_ranks)


def test_a_plan_that_leaves_the_heads_in_every_rank_needs_no_division() -> None:
    check_heads(tiny("phi3").config, {"layers.*.self_attn.qkv_proj": "colwise_gather_output"}, 3)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"tp_plan": "auto"}, "this process is in none; start the program with torchrun"),
        ({"tp_plan": "mine"}, "tp_plan must be 'auto'"),
        ({"tp_plan": "auto", "device_map": "auto"}, "pass only one"),
        ({"device_map": "auto", "device": "cpu"}, "both say where the model goes"),
        ({"device_map": "auto", "adapter": "somewhere"}, "An adapter is merged on one device"),
    ],
)
def test_options_that_contradict_each_other_are_refused(options: dict, says: str) -> None:
    with pytest.raises(BadInput, match=says):
        load_model("reasoner", **options)


def test_a_family_without_a_plan_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny("gpt2").save_pretrained(tmp_path)
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "2")):
        monkeypatch.setenv(name, value)
    with pytest.raises(BadInput, match="no plan for spreading gpt2 models over ranks; load it with device_map='auto'"):
        load_model(tmp_path, tp_plan="auto")
