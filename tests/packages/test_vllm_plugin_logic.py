"""The plug-in for vLLM without vLLM: what requests may ask for, its tables, and which cached blocks are shared."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from chainwright_vllm.admission import checked
from chainwright_vllm.caching import block_key
from chainwright_vllm.heads import NotFound, hook_heads, output_projections
from chainwright_vllm.patching import wrap
from chainwright_vllm.scheduling import unacted
from chainwright_vllm.slots import Rows, Slots, Span
from chainwright_vllm.spec import BadRequest, KnockOut, asked
from chainwright_vllm.worker import Report


def _slots(n_layers: int = 2, heads: range = range(4), max_requests: int = 3) -> Slots:
    return Slots(n_layers, heads, 16, max_requests, torch.float32, torch.device("cpu"))


@pytest.mark.parametrize(
    "given",
    [
        {"knock_out": [[1, 2], [0, 3], [1, 2]]},
        {"knock_out": {"heads": [[0, 3], [1, 2]]}},
        '{"knock_out": [[1, 2], [0, 3]]}',
    ],
)
def test_every_form_of_a_wish_is_the_same(given: Any) -> None:
    assert asked({"chainwright": given}) == KnockOut(((0, 3), (1, 2)))


def test_a_record_is_read_back_as_it_was() -> None:
    spec = KnockOut(((0, 3),), "last", 0.5)
    assert asked({"chainwright": spec.record()}) == spec
    assert asked({"chainwright": json.dumps(spec.record())}) == spec


@pytest.mark.parametrize("extra_args", [None, {}, {"other": 1}])
def test_who_asks_for_nothing_gets_nothing(extra_args: Any) -> None:
    assert asked(extra_args) is None


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("{", "must be a JSON object"),
        ("[1]", "must be an object"),
        (7, "must be an object"),
        ({1, 2}, "must be plain JSON"),
        ({}, "asks for nothing"),
        ({"nock_out": []}, "no setting 'nock_out'"),
        ({"repair": 3}, "repair must be the name of one that the server offers"),
        ({"repair": "tcr-reasoner", "knock_out": [[0, 0]]}, "not both"),
        ({"knock_out": []}, "at least one head"),
        ({"knock_out": {}}, "at least one head"),
        ({"knock_out": "all"}, "must be a list"),
        ({"knock_out": [[1]]}, "pair of whole numbers"),
        ({"knock_out": [[1, -2]]}, "pair of whole numbers"),
        ({"knock_out": [[1, 2.0]]}, "pair of whole numbers"),
        ({"knock_out": [[True, 0]]}, "pair of whole numbers"),
        ({"knock_out": {"heads": [[0, 0]], "positions": "first"}}, "positions must be"),
        ({"knock_out": {"heads": [[0, 0]], "scale": float("nan")}}, "finite number"),
        ({"knock_out": {"heads": [[0, 0]], "layer": 1}}, "no setting 'layer'"),
    ],
)
def test_a_malformed_wish_is_refused_in_one_sentence(given: Any, said: str) -> None:
    with pytest.raises(BadRequest, match=r"^[^\n]+$") as caught:
        asked({"chainwright": given})
    assert said in str(caught.value)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 9) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["knock_out", "heads"]), inner),
    max_leaves=6,
)


@given(json_values)
def test_whatever_is_sent_is_read_or_refused(given: Any) -> None:
    try:
        spec = asked({"chainwright": given})
    except BadRequest:
        return
    assert spec is None or asked({"chainwright": spec.record()}) == spec


def _config(**settings: Any) -> Any:
    """Return a VllmConfig for a model of 2 layers x 4 heads, as far as the plug-in reads one."""
    model = SimpleNamespace(
        get_total_num_hidden_layers=lambda: 2,
        model_arch_config=SimpleNamespace(total_num_attention_heads=4),
        get_hidden_size=lambda: 8,
        hf_text_config=SimpleNamespace(model_type="llama"),
        get_total_num_kv_heads=lambda: 4,
        get_vocab_size=lambda: 10,
        enforce_eager=True,
    )
    parallel = {"pipeline_parallel_size": 1, "tensor_parallel_size": 1, "enable_dbo": False}
    return SimpleNamespace(
        model_config=model,
        parallel_config=SimpleNamespace(**{name: settings.get(name, value) for name, value in parallel.items()}),
        scheduler_config=SimpleNamespace(async_scheduling=settings.get("async_scheduling", False)),
        speculative_config=settings.get("speculative_config"),
        kv_transfer_config=None,
    )


def test_heads_are_checked_against_the_model_and_the_rest_of_the_arguments_stays() -> None:
    extra_args = {"chainwright": '{"knock_out": [[1, 3]]}', "other": 1}
    assert checked(extra_args, _config()) == {"chainwright": KnockOut(((1, 3),)).record(), "other": 1}
    with pytest.raises(BadRequest, match=r"no head \[2, 0\]: the model has layers 0 to 1 with heads 0 to 3 each"):
        checked({"chainwright": {"knock_out": [[2, 0]]}}, _config())
    with pytest.raises(BadRequest, match="pipeline"):
        checked(extra_args, _config(pipeline_parallel_size=2))
    with pytest.raises(BadRequest, match="--enable-dbo"):
        checked(extra_args, _config(enable_dbo=True))
    with pytest.raises(BadRequest, match="the plug-in's own"):
        checked({**extra_args, "chainwright_run": ["a", 0]}, _config())


def test_the_tables_say_what_each_token_is_multiplied_by() -> None:
    slots = _slots()
    first, second = KnockOut(((0, 1),)), KnockOut(((0, 0), (1, 3)), scale=0.5)
    slots.fill([Span(0, 2, first), Span(3, 5, second)])
    kept = slots.keep.index_select(0, slots.slot[:6])
    due = torch.ones(6, 2, 4)
    due[0:2, 0, 1] = 0
    due[3:5, 0, 0] = due[3:5, 1, 3] = 0.5
    assert torch.equal(kept, due)
    slots.fill([Span(0, 1, second)])  # a shorter pass leaves nothing behind
    assert slots.slot.tolist() == [int(slots.slot[0]), *[0] * 15]
    slots.fill(())
    assert not slots.slot.any()


def test_a_rank_silences_its_own_heads_only() -> None:
    slots = _slots(heads=range(4, 8))
    slots.fill([Span(0, 1, KnockOut(((0, 1), (0, 6))))])
    assert slots.keep[slots.slot[0], 0].tolist() == [1, 1, 0, 1]


def test_rows_are_shared_kept_and_given_to_who_needs_them() -> None:
    rows = Rows(3)
    a, b, c = (((((0, i),)), 0.0) for i in range(3))
    assert [(row, new) for _, row, new in rows.take([a, b, a])] == [(1, True), (2, True)]
    assert [(row, new) for _, row, new in rows.take([a])] == [(1, False)]
    assert [(row, new) for _, row, new in rows.take([c])] == [(2, True)]  # b's, which was used longest ago
    assert [(row, new) for _, row, new in rows.take([a, c])] == [(1, False), (2, False)]
    with pytest.raises(ValueError, match="3 different sets"):
        rows.take([a, b, c])


@given(st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=4), max_size=30))
def test_whatever_comes_each_pass_has_the_rows_that_it_asks_for(passes: list[list[int]]) -> None:
    slots = _slots(n_layers=10, max_requests=4)
    for heads in passes:
        slots.fill([Span(i, i + 1, KnockOut(((layer, 0),))) for i, layer in enumerate(heads)])
        kept = slots.keep.index_select(0, slots.slot[: len(heads)])
        assert kept[:, :, 0].argmin(1).tolist() == heads
        assert (kept == 0).sum() == len(heads)


class _Block(nn.Module):
    def __init__(self, n: int = 8):
        super().__init__()
        self.self_attn, self.mlp = nn.Module(), nn.Module()
        self.self_attn.o_proj, self.mlp.o_proj = nn.Linear(n, n, bias=False), nn.Linear(n, n)


class _Model(nn.Module):
    def __init__(self, n_layers: int = 2):
        super().__init__()
        self.model = nn.Module()
        self.model.layers = nn.ModuleList(_Block() for _ in range(n_layers))


@pytest.mark.parametrize("shape", [(6, 8), (1, 6, 8)])
def test_the_hook_silences_z_before_the_projection(shape: tuple[int, ...]) -> None:
    model, slots = _Model(), _slots()
    hook_heads(model, slots)
    slots.fill([Span(2, 4, KnockOut(((1, 1),)))])
    z, projection = torch.randn(shape), model.model.layers[1].self_attn.o_proj
    silenced = z.clone()
    silenced[..., 2:4, 2:4] = 0
    assert slots.unfired([0, 1]) == [0, 1]
    assert torch.allclose(projection(z), silenced @ projection.weight.T)
    assert slots.unfired([0, 1]) == [0]


def test_a_model_without_an_output_projection_is_named() -> None:
    model = _Model()
    assert list(output_projections(model, 2)) == [0, 1]
    with pytest.raises(NotFound, match="layer 2 should have one output projection"):
        output_projections(model, 3)
    model.model.layers[1].self_attn.dense = nn.Linear(8, 8)
    with pytest.raises(NotFound, match=r"has \['model.layers.1.self_attn.o_proj', 'model.layers.1.self_attn.dense'\]"):
        output_projections(model, 2)


@dataclass
class _Request:
    extra_args: Any
    num_prompt_tokens: int = 40
    sampling_params: Any = field(init=False)

    def __post_init__(self) -> None:
        self.sampling_params = SimpleNamespace(extra_args=self.extra_args)


def test_blocks_that_hold_an_edited_position_are_not_shared() -> None:
    def wish(**how: Any) -> dict[str, Any]:
        return {"chainwright": {"knock_out": {"heads": [[0, 0]], **how}}}

    assert block_key(_Request(None), 16) == []
    assert block_key(_Request(wish()), 16) == block_key(_Request(wish()), 32) != []
    assert block_key(_Request(wish()), 16) != block_key(_Request(wish(scale=0.5)), 16)
    last = _Request(wish(positions="last"))  # position 39 is the first that is edited
    assert block_key(last, 32) == block_key(last, 39) == []
    assert block_key(last, 40) != []
    longer = _Request(wish(positions="last"), num_prompt_tokens=45)  # its 40 to 43 are not edited, those of `last` are
    assert block_key(longer, 48) != block_key(last, 48)
    assert block_key(_Request(wish(), num_prompt_tokens=45), 48) == block_key(_Request(wish()), 48)


def test_who_did_not_act_is_named() -> None:
    wish = {"chainwright": {"knock_out": [[0, 0]]}}
    requests = {"a": _Request(wish), "b": _Request(wish), "c": _Request(None), "d": _Request(wish)}
    scheduled = {"a": 1, "b": 1, "c": 1, "gone": 1}
    assert list(unacted(requests, scheduled, None)) == ["a", "b"]
    assert unacted(requests, scheduled, Report({"a"}, {"b": "Why."})) == {"b": "Why."}
    assert unacted(requests, scheduled, Report({"a", "b"})) == {}


def test_a_place_is_wrapped_once_and_must_be_there() -> None:
    class Owner:
        def double(self, x: int) -> int:
            return 2 * x

    for _ in range(2):
        wrap(Owner, "double", lambda own: lambda self, x: own(self, x) + 1)
    assert Owner().double(3) == 7
    with pytest.raises(RuntimeError, match="does not fit this version of vLLM: Owner has no triple"):
        wrap(Owner, "triple", lambda own: own)
