"""TCR in vLLM, against Chainwright's in Transformers: the bundled repair, votes, entropy, and what it is refused."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

import chainwright as cw
from chainwright.repair.base import BUNDLED
from chainwright.repair.tcr.config import TCRConfig
from chainwright.repair.tcr.detector import EntropyDetector
from chainwright.repair.tcr.selector import FixedSelector


def _ids(output: Any) -> list[int]:
    return list(output.outputs[0].token_ids)


def _by_entropy(folder: Path, **config: Any) -> cw.TCR:
    """Save and return a TCR that flags by entropy and lets three heads vote."""
    heads = [(1, 2), (0, 7), (0, 5), (0, 2), (1, 4)]
    selector = FixedSelector(len(heads), [2, 0, 4])
    tcr = cw.TCR(heads, selector, EntropyDetector(0.2), config=TCRConfig(**config), end_ids=[2])
    tcr.save_pretrained(folder)
    return tcr


@pytest.fixture(scope="session")
def problems(plain_model: Any) -> list[list[int]]:
    """Return prompts of problems in which the reasoner is in doubt."""
    _, tokenizer = plain_model
    found = [*cw.tasks.sample("clf", 13, 6, seed=1), *cw.tasks.sample("moas", 10, 3, seed=1)]
    return [tokenizer(problem.prompt)["input_ids"] for problem in found]


@pytest.fixture(scope="session")
def generated(plain_model: Any) -> Any:
    """Return a function that generates with Transformers and a repair, and the tokens that it flagged."""
    model, _ = plain_model

    def generate(ids: Sequence[int], repair: Any, n: int) -> tuple[list[int], int]:
        prompt = torch.tensor([list(ids)])
        with repair.attached(model) as cost, torch.no_grad():
            out = model.generate(
                prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=n, do_sample=False, pad_token_id=0
            )
        return out[0, len(ids) :].tolist(), cost.n_flagged

    return generate


def test_the_bundled_repair_equals_chainwright(
    ask: Any, core: Any, problems: Any, expected: Any, generated: Any
) -> None:
    repair = cw.Repair.from_pretrained("tcr-reasoner")
    due = [generated(ids, repair, 120) for ids in problems]
    plain = [expected(ids, n=120) for ids in problems]
    assert sum(tokens != other for (tokens, _), other in zip(due, plain, strict=True)) >= 2
    # in one batch with plain requests and a knockout, in which prompts come in chunks and requests are preempted
    prompts = [*problems, problems[0], problems[1]]
    wishes = [*[{"repair": "tcr-reasoner"}] * len(problems), None, {"knock_out": [[0, 5], [0, 7]]}]
    outputs = ask(prompts, wishes, max_tokens=120)
    assert [_ids(output) for output in outputs[:-2]] == [tokens for tokens, _ in due]
    assert _ids(outputs[-2]) == plain[0]
    assert _ids(outputs[-1]) == expected(problems[1], {(0, 5), (0, 7)}, n=120)
    holding = core.scheduler.chainwright
    assert holding.n_flagged == sum(n for _, n in due) > 0
    assert holding.n_runs == 8 * holding.n_flagged
    _is_idle(core)


def _is_idle(core: Any) -> None:
    assert not core.scheduler.chainwright._waiting
    assert not core.scheduler.chainwright._asked_by
    assert not core.scheduler.requests
    assert len(core.runner.chainwright.doubts) == 0


@pytest.mark.parametrize("positions", ["all", "last"])
def test_entropy_and_a_vote_equal_chainwright(
    ask: Any, core: Any, problems: Any, generated: Any, tmp_path: Path, positions: str
) -> None:
    repair = _by_entropy(tmp_path / "vote", n_votes=3, positions=positions)
    due = [generated(ids, repair, 100) for ids in problems[:6]]
    before = core.scheduler.chainwright.n_flagged
    outputs = ask(problems[:6], [{"repair": tmp_path / "vote"}] * 6, max_tokens=100)
    assert [_ids(output) for output in outputs] == [tokens for tokens, _ in due]
    assert core.scheduler.chainwright.n_flagged - before == sum(n for _, n in due) > 3


def test_a_request_that_ends_while_it_waits_leaves_nothing(engine: Any, core: Any, problems: Any) -> None:
    from vllm import SamplingParams

    params = SamplingParams(temperature=0, max_tokens=120, extra_args={"chainwright": {"repair": "tcr-reasoner"}})
    llm = engine.llm_engine
    names = [f"ends-{i}" for i in range(len(problems))]
    for name, ids in zip(names, problems, strict=True):
        llm.add_request(name, {"prompt_token_ids": ids}, params)
    while not core.scheduler.chainwright._waiting:
        llm.step()
    llm.abort_request(names)
    while llm.has_unfinished_requests() or core.scheduler.has_requests():
        core.step()
    core.step()
    _is_idle(core)


def test_draws_follow_the_repair(ask: Any, core: Any, problems: Any) -> None:
    before = core.scheduler.chainwright.n_flagged
    settings = {"temperature": 1.0, "seed": 5, "max_tokens": 60}
    first = ask(problems[:3], [{"repair": "tcr-reasoner"}] * 3, **settings)
    again = [ask([ids], [{"repair": "tcr-reasoner"}], **settings)[0] for ids in problems[:3]]
    assert core.scheduler.chainwright.n_flagged > before
    # a token that was held back took no draw from its request: alone and together give the same
    assert [_ids(output) for output in first] == [_ids(output) for output in again]


def test_a_layer_that_is_not_read_ends_the_request_with_an_error(ask: Any, core: Any, problems: Any) -> None:
    layer = core.runner.model.model.layers[1]
    hooks = dict(layer._forward_hooks)
    layer._forward_hooks.clear()
    try:
        failed, plain = ask(problems[:2], [{"repair": "tcr-reasoner"}, None], max_tokens=4)
    finally:
        layer._forward_hooks.update(hooks)
    assert failed.outputs[0].finish_reason == "error"
    assert failed.outputs[0].stop_reason == "Chainwright's reading of layer 1 did not act; the request was ended."
    assert len(_ids(plain)) == 4


def test_what_a_repair_cannot_do_is_refused_in_one_sentence(ask: Any, problems: Any, tmp_path: Path) -> None:
    from vllm.exceptions import VLLMValidationError

    _by_entropy(tmp_path / "other")
    record = json.loads((tmp_path / "other" / "repair.json").read_text())
    record["origin"]["model"] = {"model": "big", "model_type": "llama", "shape": "40 layers x 8 heads, d 4"}
    (tmp_path / "other" / "repair.json").write_text(json.dumps(record))
    shutil.copytree(BUNDLED / "tcr-reasoner", tmp_path / "trained-on")
    record = json.loads((tmp_path / "trained-on" / "repair.json").read_text())
    record["origin"]["model"]["fingerprint"] = "0123456789abcdef"
    (tmp_path / "trained-on" / "repair.json").write_text(json.dumps(record))
    for wish, settings, said in (
        ({"repair": "tcr-reasonr"}, {}, "known are back-smollm2, back-world, tcr-reasoner"),
        ({"repair": "back-world"}, {}, "of kind 'back-attention', and in vLLM only 'tcr' and 'stepflow' run"),
        ({"repair": str(tmp_path / "other")}, {}, "others are offered by CHAINWRIGHT_VLLM_REPAIRS where the server"),
        ({"repair": tmp_path / "other"}, {}, "was made for big (llama, 40 layers x 8 heads, d 4"),
        (
            {"repair": tmp_path / "trained-on"},
            {},
            "made for other weights than those that are served (fingerprint 01234",
        ),
        ({"repair": "tcr-reasoner"}, {"ignore_eos": True}, "leave ignore_eos out"),
        ({"repair": "tcr-reasoner"}, {"prompt_logprobs": 1}, "leave prompt_logprobs out"),
        ({"repair": "tcr-reasoner", "knock_out": [[0, 0]]}, {}, "not both"),
    ):
        with pytest.raises(VLLMValidationError) as caught:
            ask([problems[0]], [wish], **settings)
        assert said in str(caught.value)
