"""TCR in the plug-in for vLLM, without vLLM: Chainwright's own formulas, saved repairs, and who waits for whom."""

from __future__ import annotations

import json
import shutil
from collections import deque
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import chainwright as cw
from chainwright.repair.base import BUNDLED, bundled_repairs
from chainwright.repair.tcr.config import TCRConfig
from chainwright.repair.tcr.detector import EntropyDetector
from chainwright.repair.tcr.selector import FixedSelector, RandomSelector
from chainwright.repair.tcr.token_repair import Seen
from chainwright_vllm import repairs, tcr
from chainwright_vllm.admission import ASYNC, check_beside_repair, checked
from chainwright_vllm.caching import block_key
from chainwright_vllm.doubts import Answering, Asking, Doubts
from chainwright_vllm.holding import Holding
from chainwright_vllm.repairs import check, find, known, load
from chainwright_vllm.spec import BadRequest, ModelShape
from chainwright_vllm.states import LastStates

REASONER = repairs.Identity(
    ModelShape(4, 8),
    128,
    {"model_type": "qwen3", "shape": "4 layers x 8 heads, d 128", "n_kv_heads": "8", "d_vocab": "180"},
)


def _seen(n: int = 40, seed: int = 0) -> tuple[Seen, tcr.Seen]:
    generator = torch.Generator().manual_seed(seed)
    hidden, logits = (torch.randn(n, *size, generator=generator) * 3 for size in ((4, 128), (180,)))
    return Seen(hidden, logits, [[1]] * n, [[1]] * n), tcr.Seen(hidden, logits)


@pytest.mark.parametrize("decision", ["verify", "vote"])
def test_every_part_of_the_bundled_repair_is_chainwrights(decision: str) -> None:
    own = cw.Repair.from_pretrained("tcr-reasoner")
    assert isinstance(own, cw.TCR)
    own.config = own.config.replace(decision=decision, n_votes=3)
    saved = load(str(BUNDLED / "tcr-reasoner"))
    here = saved.tcr
    if decision == "vote":  # the bundled one has a selector, too
        folder = BUNDLED / "tcr-reasoner"
        settings = json.loads((folder / "repair.json").read_text())["settings"]
        settings["config"] |= {"decision": "vote", "n_votes": 3}
        here = repairs._tcr("", settings, repairs.load_file(folder / "repair.safetensors"))
    theirs, ours = _seen()
    assert torch.equal(here.detector.flags(ours), own.detector.flags(theirs))
    without = torch.randn(len(theirs.logits), len(own.heads), 180, generator=torch.Generator().manual_seed(1)) * 3
    at = {head: i for i, head in enumerate(own.heads)}

    def ask(pairs: Any) -> torch.Tensor:
        return torch.stack([without[row, at[head]] for row, head in pairs])

    due = own.corrected(None, theirs, ask)  # type: ignore[arg-type]
    n_left = 0
    for i, heads in enumerate(here.heads_to_ask(ours)):
        one = tcr.Seen(ours.hidden[i : i + 1], ours.logits[i : i + 1])
        best = one.logits[0].topk(2).indices
        if not heads:
            n_left += 1
            assert torch.equal(due[i], theirs.logits[i])
            continue
        kept = torch.stack([here.kept(without[i, at[head]], best) for head in heads])
        torch.testing.assert_close(here.decided(one, kept), due[i], rtol=1e-5, atol=1e-5)
    assert decision == "verify" or 0 < n_left < len(due)


def test_entropy_and_a_fixed_order_are_chainwrights(tmp_path: Path) -> None:
    own = cw.TCR([(0, 1), (1, 2), (1, 3)], FixedSelector(3, [2, 0]), EntropyDetector(2.0), config=TCRConfig(n_votes=2))
    own.config = own.config.replace(positions="last", scale=0.5)
    own.save_pretrained(tmp_path / "own")
    here = load(str(tmp_path / "own")).tcr
    theirs, ours = _seen()
    assert torch.equal(here.detector.flags(ours), own.detector.flags(theirs))
    assert 0 < int(here.detector.flags(ours).sum()) < len(ours.logits)
    assert here.heads_to_ask(ours) == [((1, 3), (0, 1))] * len(ours.logits)
    assert (here.positions, here.scale, here.n_votes) == ("last", 0.5, 2)


def test_bundled_and_offered_repairs_are_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(repairs.VARIABLE, raising=False)
    assert set(known()) == set(bundled_repairs())
    assert find("tcr-reasoner") == (BUNDLED / "tcr-reasoner").resolve()
    for name in ("mine", "other", "a=b"):
        shutil.copytree(BUNDLED / "tcr-reasoner", tmp_path / name)
    monkeypatch.setenv(repairs.VARIABLE, f" new={tmp_path}/mine, old = {tmp_path}/a=b,{tmp_path},mine={tmp_path}/other")
    assert {name: find(name).name for name in ("new", "old", "mine", "other", "a=b")} == {
        "new": "mine",
        "old": "a=b",
        "mine": "mine",
        "other": "other",
        "a=b": "a=b",
    }
    with pytest.raises(BadRequest, match=r"no repair 'tcr-reasonr' .* known are .*mine.*did you mean 'tcr-reasoner'\?"):
        find("tcr-reasonr")


@pytest.mark.parametrize("listed", ["{}/none", "{}/empty", "name={}/empty", "={}/none", "{}/empty,tcr-reasoner"])
def test_what_the_operator_lists_must_be_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, listed: str) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.setenv(repairs.VARIABLE, listed.format(tmp_path))
    with pytest.raises(ValueError, match=r"^CHAINWRIGHT_VLLM_REPAIRS lists '.*', where no repair.json was found; list"):
        repairs.offered()


@pytest.mark.parametrize("as_text", [False, True])
def test_a_text_is_never_read_as_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, as_text: bool) -> None:
    folder = tmp_path / "secret"
    shutil.copytree(BUNDLED / "tcr-reasoner", folder)
    monkeypatch.delenv(repairs.VARIABLE, raising=False)
    monkeypatch.chdir(tmp_path)
    said = set()
    for name in (str(folder), "secret", "./secret", str(tmp_path / "none"), "../", str(BUNDLED / "tcr-reasoner")):
        wish: Any = {"repair": name}
        with pytest.raises(BadRequest, match=r"known are back-smollm2, .*tcr-reasoner") as caught:
            checked({"chainwright": json.dumps(wish) if as_text else wish}, _config())
        said.add(str(caught.value).replace(repr(name), "").partition("; did you mean")[0].rstrip("."))
    assert len(said) == 1  # the answer does not show what is there


def test_python_code_gives_a_folder_as_a_path(tmp_path: Path) -> None:
    shutil.copytree(BUNDLED / "tcr-reasoner", tmp_path / "mine")
    given = {"chainwright": {"repair": tmp_path / "mine"}}
    assert checked(given, _config()) == {"chainwright": {"repair": str(tmp_path / "mine")}}
    with pytest.raises(BadRequest, match="is damaged"):
        checked({"chainwright": {"repair": tmp_path}}, _config())
    with pytest.raises(BadRequest, match="not both"):
        checked({"chainwright": {"repair": tmp_path, "knock_out": [[0, 0]]}}, _config())


def _changed(folder: Path, change: Any) -> str:
    shutil.copytree(BUNDLED / "tcr-reasoner", folder)
    record = json.loads((folder / "repair.json").read_text())
    change(record)
    (folder / "repair.json").write_text(json.dumps(record))
    return str(folder)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda r: r.update(schema_version=2), "has schema 2, and this plug-in reads 1"),
        (lambda r: r.update(kind="stepflow"), "is of kind 'stepflow'"),
        (lambda r: r.pop("settings"), "is damaged"),
        (lambda r: r["settings"].pop("heads"), "is damaged"),
        (lambda r: r["settings"]["heads"].pop(), "its verifier does not fit 7 heads and 4 layers"),
        (lambda r: r["settings"].update(lens_layers=[1]), "reads the logit lens"),
        (lambda r: r["settings"]["detector"].update(kind="lens"), "a detector of kind 'lens'"),
    ],
)
def test_what_does_not_make_a_repair_is_refused(tmp_path: Path, change: Any, said: str) -> None:
    with pytest.raises(BadRequest, match=r"^[^\n]+$") as caught:
        load(_changed(tmp_path / "repair", change))
    assert said in str(caught.value)


def test_a_selector_that_vllm_cannot_run_is_refused(tmp_path: Path) -> None:
    cw.TCR([(0, 1)], RandomSelector(1), EntropyDetector()).save_pretrained(tmp_path / "random")
    with pytest.raises(BadRequest, match="a selector of kind 'random', and in vLLM light and fixed run"):
        load(str(tmp_path / "random"))


def test_a_repair_of_another_model_is_refused() -> None:
    saved = load(str(BUNDLED / "tcr-reasoner"))
    check(saved, REASONER)
    other = repairs.Identity(REASONER.shape, 128, {**REASONER.values, "d_vocab": "181"})
    with pytest.raises(BadRequest, match=r"made for reasoner \(qwen3, .* 180 tokens\), not for this model \(.* 181"):
        check(saved, other)
    with pytest.raises(BadRequest, match=r"there is no head \[3, 0\]"):
        check(_free(saved), _small(2, 128))
    with pytest.raises(BadRequest, match="of width 128, and the model has 4 layers of width 64"):
        check(_free(saved), _small(4, 64))


def _free(saved: repairs.Saved) -> repairs.Saved:
    return repairs.Saved(saved.tcr, {}, saved.d_read)


def _small(n_layers: int, d_model: int) -> repairs.Identity:
    return repairs.Identity(ModelShape(n_layers, 8), d_model, REASONER.values)


def _config(**settings: Any) -> Any:
    model = SimpleNamespace(
        get_total_num_hidden_layers=lambda: 4,
        model_arch_config=SimpleNamespace(total_num_attention_heads=8),
        get_hidden_size=lambda: 128,
        hf_text_config=SimpleNamespace(model_type="qwen3"),
        get_total_num_kv_heads=lambda: 8,
        get_vocab_size=lambda: 180,
        model=str(BUNDLED.parents[1] / "models" / "bundled" / "reasoner"),
        tokenizer=str(BUNDLED.parents[1] / "models" / "bundled" / "reasoner"),
        quantization=None,
        enforce_eager=settings.get("enforce_eager", True),
    )
    return SimpleNamespace(
        model_config=model,
        parallel_config=SimpleNamespace(
            pipeline_parallel_size=1, tensor_parallel_size=settings.get("tensor_parallel_size", 1), enable_dbo=False
        ),
        scheduler_config=SimpleNamespace(async_scheduling=settings.get("async_scheduling", False)),
        speculative_config=settings.get("speculative_config"),
        kv_transfer_config=settings.get("kv_transfer_config"),
        load_config=SimpleNamespace(load_format="auto"),
    )


def test_a_repair_is_admitted_under_its_folder_or_refused_in_one_sentence(tmp_path: Path) -> None:
    wish = {"chainwright": {"repair": "tcr-reasoner"}}
    due = {"chainwright": {"repair": str((BUNDLED / "tcr-reasoner").resolve())}}
    assert checked(wish, _config()) == due
    assert checked(wish, _config(enforce_eager=False)) == due  # bundled, so its layers are read in any case
    for settings, said in (
        ({"tensor_parallel_size": 2}, "tensor parallelism"),
        ({"speculative_config": object()}, "speculative decoding"),
        ({"async_scheduling": True}, ASYNC),
        ({"kv_transfer_config": object()}, "moved between servers"),
    ):
        with pytest.raises(BadRequest, match=said):
            checked(wish, _config(**settings))
    for params, said in (({"prompt_logprobs": 1}, "prompt_logprobs"), ({"ignore_eos": True}, "ignore_eos")):
        with pytest.raises(BadRequest, match=said):
            check_beside_repair(SimpleNamespace(**{"prompt_logprobs": None, "ignore_eos": False, **params}))
    plain = SimpleNamespace(sampling_params=SimpleNamespace(extra_args=due), num_prompt_tokens=40)
    assert block_key(plain, 32) == []  # what a repair computes of a token is what the model does


def test_a_stepflow_is_admitted_as_one_and_checked_like_any_repair(tmp_path: Path) -> None:
    cw.StepFlow().save_pretrained(tmp_path / "flow")
    wish = {"chainwright": {"repair": tmp_path / "flow"}}
    assert checked(wish, _config()) == {"chainwright": {"stepflow": str(tmp_path / "flow")}}
    with pytest.raises(BadRequest, match="tensor parallelism"):
        checked(wish, _config(tensor_parallel_size=2))
    with pytest.raises(BadRequest, match="known are"):  # the canonical form is no way around the operator either
        checked({"chainwright": {"stepflow": str(tmp_path / "flow")}}, _config())
    record = json.loads((tmp_path / "flow" / "repair.json").read_text())
    for name, part, said in (
        ("shape", {"model_type": "llama"}, "made for"),
        ("weights", {"fingerprint": "0"}, "weights"),
    ):
        shutil.copytree(tmp_path / "flow", tmp_path / name)
        model = {**load(str(BUNDLED / "tcr-reasoner")).made_for, **part}
        (tmp_path / name / "repair.json").write_text(json.dumps({**record, "origin": {"model": model}}))
        with pytest.raises(BadRequest, match=said):
            checked({"chainwright": {"repair": tmp_path / name}}, _config())


def test_layers_that_a_compiled_model_does_not_give_out_are_named(tmp_path: Path) -> None:
    folder = _changed(tmp_path / "repair", lambda r: r["settings"].update(layers=[0, 1, 2, -1]))
    assert checked({"chainwright": {"repair": Path(folder)}}, _config(enforce_eager=False))
    deep = SimpleNamespace(**{**vars(_config(enforce_eager=False).model_config), "get_vocab_size": lambda: 181})
    config = _config(enforce_eager=False)
    config.model_config = deep
    (tmp_path / "free").mkdir()
    free = _changed(tmp_path / "free" / "repair", lambda r: r["origin"].update(model={}))
    with pytest.raises(BadRequest, match=r"reads layer 0, which this server's compiled model does not give out"):
        checked({"chainwright": {"repair": Path(free)}}, config)


class _Layer(nn.Module):
    def __init__(self, is_split: bool):
        super().__init__()
        self.is_split = is_split

    def forward(self, x: torch.Tensor) -> Any:
        return (x / 4, 3 * x / 4) if self.is_split else x


@pytest.mark.parametrize("is_split", [True, False])
def test_the_last_token_of_each_request_is_read(is_split: bool) -> None:
    model = nn.Module()
    model.layers = nn.ModuleList([_Layer(is_split), _Layer(is_split)])
    states = LastStates(model, {1}, 3, 4, torch.float32, torch.device("cpu"), is_frozen=False)
    x = torch.randn(6, 3)
    states.begin([1, 2, 5], is_wanted=True)
    assert states.unfired([0, 1]) == [0, 1]
    model.layers[1](x)
    assert states.unfired([1]) == []
    torch.testing.assert_close(states.read([1], [2, 0]), x[[5, 1]][:, None])
    states.begin([1], is_wanted=True)  # a shorter pass: nothing of the longer one is looked up
    model.layers[1](x[:2])
    states.begin((), is_wanted=False)
    model.layers[1](x[:0])


def _entropy_tcr(tau: float = 0.5) -> tcr.TCR:
    heads = ((0, 0), (0, 1), (1, 0))
    return tcr.TCR(heads, (), "all", 0.0, (), 3, tcr.Detector(tau), tcr.FixedSelector(3, (0, 1, 2)))


def test_a_doubtful_token_waits_for_its_runs_and_is_then_replaced() -> None:
    repair, doubts = _entropy_tcr(), Doubts(lambda layers, rows: torch.zeros(len(rows), 0, 0))
    logits = torch.tensor([[9.0, 0, 0], [1.0, 0.9, 0], [0.0, 9, 0]])
    asking = [Asking(0, "sure", repair, 5), Asking(1, "torn", repair, 7)]
    first = doubts.decide(logits, asking, [])
    assert first.held == {"torn": repair.heads} and not first.changed
    runs = torch.tensor([[0.0, 9, 0], [0.0, 8, 0], [9.0, 0, 0]])
    assert not doubts.decide(runs[:2].clone(), [], [Answering(0, "torn", 0), Answering(1, "torn", 1)]).changed
    # the last answer and the request itself may come in one pass
    both = torch.stack([logits[1], runs[2]])
    last = doubts.decide(both, [Asking(0, "torn", repair, 7)], [Answering(1, "torn", 2)])
    assert last.changed == {"torn": True} and not last.held
    torch.testing.assert_close(both[0], tcr.vote(runs[None])[0])
    assert len(doubts) == 0


def test_a_request_that_runs_on_although_it_is_held_is_lost() -> None:
    repair, doubts = _entropy_tcr(), Doubts(lambda layers, rows: torch.zeros(len(rows), 0, 0))
    logits = torch.tensor([[1.0, 0.9, 0]])
    doubts.decide(logits, [Asking(0, "torn", repair, 7)], [])
    assert doubts.decide(logits, [Asking(0, "torn", repair, 8)], []).lost == ["torn"]
    doubts.forget(["torn"])
    assert len(doubts) == 0


class _Queue(deque[Any]):
    prepend_request = deque.appendleft
    remove_request = deque.remove


class _Scheduler:
    """As much of vLLM's scheduler as a held request meets."""

    def __init__(self) -> None:
        self.requests: dict[str, Any] = {}
        self.running: list[Any] = []
        self.waiting = _Queue()
        self.prev_step_scheduled_req_ids: set[str] = set()

    def start(self, req_id: str) -> Any:
        request = SimpleNamespace(request_id=req_id, is_finished=lambda: False)
        self.requests[req_id] = request
        self.running.append(request)
        return request

    def add_request(self, request: Any) -> None:
        self.requests[request.request_id] = request
        self.waiting.append(request)

    def _preempt_request(self, request: Any, timestamp: float) -> None:
        self.waiting.appendleft(request)


class _Holding(Holding):
    def _run(self, request: Any, k: int, head: Any) -> Any:
        return SimpleNamespace(request_id=f"{request.request_id}/{k}", is_finished=lambda: False)


def _output(req_id: str, finish_reason: str | None = "LENGTH") -> Any:
    reason = None if finish_reason is None else SimpleNamespace(name=finish_reason)
    return SimpleNamespace(request_id=req_id, finish_reason=reason)


def _ids(requests: Any) -> list[str]:
    return [request.request_id for request in requests]


def test_a_held_request_stands_in_no_queue_until_its_runs_are_done() -> None:
    scheduler = _Scheduler()
    holding = _Holding(scheduler)
    scheduler.start("a"), scheduler.start("b")
    holding.hold({"a": ((0, 0), (0, 1)), "gone": ((0, 0),)})
    assert _ids(scheduler.running) == ["b"] and _ids(scheduler.waiting) == ["a/0", "a/1"]
    scheduler.waiting.clear()
    outputs = {0: SimpleNamespace(outputs=[_output("b", None), _output("a/1")])}
    assert holding.take(outputs) == {}
    assert _ids(outputs[0].outputs) == ["b"] and not scheduler.waiting
    assert holding.take({0: SimpleNamespace(outputs=[_output("a/0")])}) == {}
    assert _ids(scheduler.waiting) == ["a"]
    assert (holding.n_flagged, holding.n_runs) == (1, 2)


def test_a_request_whose_run_failed_is_lost_and_its_other_runs_are_dropped() -> None:
    scheduler = _Scheduler()
    holding = _Holding(scheduler)
    request = scheduler.start("a")
    holding.hold({"a": ((0, 0), (0, 1))})
    lost = holding.take({0: SimpleNamespace(outputs=[_output("a/0", "ERROR")])})
    assert list(lost) == ["a"]
    assert holding.dropped([request]) == ["a/1"]
    assert holding.take({0: SimpleNamespace(outputs=[])}) == {}
    assert holding.dropped([request]) == []
