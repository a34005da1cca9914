"""StepFlow in the plug-in for vLLM, without vLLM: Chainwright's own formulas, saved settings, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import chainwright as cw
from chainwright.edits._floor import bridge_factors
from chainwright.edits.bridge import _bounds
from chainwright.edits.momentum import Momentum, _Sites
from chainwright.traces.live import Place
from chainwright.traces.segments import Span
from chainwright_vllm import stepflow
from chainwright_vllm.bridging import Flowing, Flows
from chainwright_vllm.caching import block_key
from chainwright_vllm.spec import BadRequest, ModelShape, UseStepFlow, asked
from chainwright_vllm.stepflow import averaged, bounds, bridged, load_stepflow

SHAPE = ModelShape(8, 4)


@given(st.integers(1, 9), st.integers(-1, 12), st.integers(0, 14))
def test_the_bounds_are_chainwrights(question_end: int, thinking_end: int, position: int) -> None:
    place = Place(question_end, thinking_end, None)
    assert tuple(bounds(place, position)) == tuple(_bounds(place, 0, position))


def test_the_floor_is_chainwrights() -> None:
    weights = (3 * torch.randn(4, 3, 12, generator=torch.Generator().manual_seed(0))).softmax(-1)
    where = [stepflow.Bounds(0, 5, 12), stepflow.Bounds(4, 9, 12), stepflow.Bounds(0, 0, 0)]
    floors = torch.tensor([0.9, 0.6, 0.3, 0.0])
    added = bridged(weights, where, floors)
    n_changed = 0
    for head in range(4):
        for query, at in enumerate(where):
            due = weights[head, query].clone()
            tau = min(float(floors[head]), ((at.border - at.start) / max(1, at.end - at.start)) ** 0.5)
            on, own = slice(at.start, at.border), slice(at.border, at.end)
            factors = bridge_factors(due[on].sum(), due[own].sum(), tau)
            n_changed += bool(factors.is_needed)
            due[on] *= factors.bridge
            due[own] *= factors.own
            torch.testing.assert_close(weights[head, query] + added[head, query], due, rtol=1e-5, atol=1e-6)
    assert 2 <= n_changed <= 7
    torch.testing.assert_close(added.sum(-1), torch.zeros(4, 3), rtol=0, atol=1e-6)


@pytest.mark.parametrize("window", [None, 2])
@pytest.mark.parametrize("into_summary", [False, True])
@pytest.mark.parametrize("place", [Place(4, -1, Span(5, 9)), Place(4, 9, Span(5, 9)), Place(4, -1, None)])
def test_the_averaged_tokens_are_chainwrights(place: Place, window: int | None, into_summary: bool) -> None:
    flow = SimpleNamespace(window=window, into_summary=into_summary)
    sites = _Sites(None, Momentum((0,), None, 0.1, window, into_summary), None)  # type: ignore[arg-type]
    due = sites._site(SimpleNamespace(first=[0]), 0, 0, place)  # type: ignore[arg-type]
    assert averaged(place, flow) == (range(0) if due is None else range(due.start, due.end))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("own", "floors", "momentum"),
    [
        (cw.StepFlow(), {0: 0.15, 1: 0.15}, {6, 7}),
        (cw.StepFlow((1, -1), (), (0.2, 0.4)), {1: 0.2, 7: 0.4}, set()),
        (cw.StepFlow((1,), (-2,), 0.0, 0.5, 3, into_summary=True, min_chars=9), {}, {6}),
        (cw.StepFlow((2,), None, alpha=0.0), {2: 0.15}, set()),
    ],
)
def test_settings_are_read_as_chainwright_means_them(tmp_path: Path, own: Any, floors: Any, momentum: Any) -> None:
    own.save_pretrained(tmp_path / "flow")
    flow = load_stepflow(str(tmp_path / "flow"), SHAPE)
    assert flow.floors == {layer: (floor,) * 4 for layer, floor in floors.items()}
    assert flow.momentum == momentum
    assert flow.layers == momentum | set(floors)
    for name in ("alpha", "window", "into_summary", "style", "min_chars"):
        assert getattr(flow, name) == getattr(own, name)


def test_floors_of_heads_are_read(tmp_path: Path) -> None:
    cw.StepFlow(bridge_heads=[(1, 2, 0.8), (-1, 0, 0.5)], momentum_layers=()).save_pretrained(tmp_path / "flow")
    assert load_stepflow(str(tmp_path / "flow"), SHAPE).floors == {1: (0, 0, 0.8, 0), 7: (0.5, 0, 0, 0)}
    for shape, said in ((ModelShape(1, 4), "layer 1, and the model has 1"), (ModelShape(8, 2), "head 2, and the")):
        with pytest.raises(BadRequest, match=said):
            load_stepflow(str(tmp_path / "flow"), shape)


def test_what_does_not_make_a_stepflow_is_refused(tmp_path: Path) -> None:
    cw.StepFlow().save_pretrained(tmp_path / "flow")
    record = json.loads((tmp_path / "flow" / "repair.json").read_text())
    del record["settings"]["alpha"]
    (tmp_path / "flow" / "repair.json").write_text(json.dumps(record))
    with pytest.raises(BadRequest, match=r"is damaged \(KeyError: 'alpha'\)"):
        load_stepflow(str(tmp_path / "flow"), SHAPE)


def test_what_reads_the_text_must_be_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BadRequest, match=r"^chainwright: StepFlow cannot read this model's text \([^\n]+\)\.$"):
        stepflow.reader(str(tmp_path), str(tmp_path), "auto", None)
    # the name of a module that is not there makes import_module raise ImportError
    monkeypatch.setattr(stepflow, "import_module", lambda name: __import__(f"{name}_is_missing"))
    with pytest.raises(BadRequest, match=r"which cannot be imported here .*; install it beside vLLM"):
        stepflow.reader(str(tmp_path), str(tmp_path), "auto", 7)


def test_blocks_of_the_response_are_of_its_own_and_of_one_length_of_prompt() -> None:
    def request(n_prompt: int) -> Any:
        spec = UseStepFlow("/a/flow")
        args = {"chainwright": spec.record()}
        assert asked(args) == spec
        return SimpleNamespace(sampling_params=SimpleNamespace(extra_args=args), num_prompt_tokens=n_prompt)

    assert block_key(request(40), 40) == []
    assert block_key(request(40), 41) != []
    assert block_key(request(40), 64) != block_key(request(41), 64)


def _flows(**of_impl: Any) -> tuple[Flows, Any]:
    settings = {
        "sliding_window": -1, "sinks": None, "alibi_slopes": None, "logits_soft_cap": 0, "is_fp8_kv_cache": False,
        "kv_sharing_target_layer_name": None, "num_heads": 2, "scale": 0.5,
    }  # fmt: skip
    impl = type("CPUAttentionBackendImpl", (), {**settings, **of_impl})()
    context = {"model.layers.0.self_attn.attn": SimpleNamespace(impl=impl)}
    runner = SimpleNamespace(
        compilation_config=SimpleNamespace(static_forward_context=context),
        model_config=SimpleNamespace(get_total_num_hidden_layers=lambda: 1),
        requests={},
    )
    return Flows(runner), impl


@pytest.mark.parametrize(
    ("of_impl", "said"),
    [({"sliding_window": 8}, "sliding window or sinks"), ({"logits_soft_cap": 30.0}, "a bias or a cap"),
     ({"is_fp8_kv_cache": True}, "rounded")],
)  # fmt: skip
def test_attention_that_cannot_be_followed_is_named(of_impl: Any, said: str) -> None:
    assert _flows()[0].refusal is None
    refusal = _flows(**of_impl)[0].refusal
    assert refusal is not None
    assert "layer 0" in refusal
    assert said in refusal


def test_missing_keys_and_layers_that_did_not_run_are_noticed() -> None:
    flows, impl = _flows()
    flow = stepflow.StepFlow({0: (0.9, 0.9)}, frozenset(), 0.0, None, False, "auto", None)
    q, k, v = torch.randn(3, 4, 2, 3, generator=torch.Generator().manual_seed(0))
    places = [Place(2, -1, None)] * 4
    flows.begin([Flowing("a", 0, 4, 0, places, flow)])
    assert flows.unfired("a", flow) == [0]
    flows.act(0, impl, q, k, v, torch.zeros(4, 6))
    assert flows.unfired("a", flow) == []
    flows.begin([Flowing("a", 0, 4, 9, places, flow)])  # 9 tokens are computed, and 4 are known
    flows.act(0, impl, q, k, v, torch.zeros(4, 6))
    assert flows.unfired("a", flow) == [0]
    flows.forget(["a"])
    assert not flows._kept
