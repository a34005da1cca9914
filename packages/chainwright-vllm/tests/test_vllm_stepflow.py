"""StepFlow in vLLM, against Chainwright's in Transformers."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch

import chainwright as cw

IS_V2 = os.environ.get("RUNNER") == "v2"
FLOWS = {
    "bridge": cw.StepFlow((0, 2), (), 0.4),
    "two floors": cw.StepFlow((1, -1), (), (0.3, 0.6)),
    "heads": cw.StepFlow(bridge_heads=[(1, 2, 0.8), (3, 0, 0.5)], momentum_layers=()),
    "both": cw.StepFlow(None, None, 0.5, 0.6),
    "window": cw.StepFlow((), (0, 1, 2), 0.15, 2.5, 3, into_summary=True),
}


def _ids(output: Any) -> list[int]:
    return list(output.outputs[0].token_ids)


@pytest.fixture(scope="module")
def problems(plain_model: Any) -> list[list[int]]:
    """Return prompts of problems."""
    _, tokenizer = plain_model
    found = [*cw.tasks.sample("clf", 13, 5, seed=1), *cw.tasks.sample("moas", 10, 4, seed=1)]
    return [tokenizer(problem.prompt)["input_ids"] for problem in found]


def _generated(model: Any, ids: list[int], repair: Any, n: int) -> list[int]:
    prompt = torch.tensor([ids])
    with repair.attached(model), torch.no_grad():
        out = model.generate(
            prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=n, do_sample=False, pad_token_id=0
        )
    return out[0, len(ids) :].tolist()


@pytest.mark.skipif(IS_V2, reason="StepFlow is refused there")
@pytest.mark.parametrize("name", FLOWS)
def test_a_mixed_batch_equals_chainwright(
    ask: Any, core: Any, plain_model: Any, problems: Any, expected: Any, tmp_path: Path, name: str
) -> None:
    folder, repair = tmp_path / "flow", FLOWS[name]
    repair.save_pretrained(folder)
    due = [_generated(plain_model[0], ids, repair, 120) for ids in problems]
    plain = [expected(ids, n=120) for ids in problems]
    assert sum(a != b for a, b in zip(due, plain, strict=True)) >= 2
    # prompts come in chunks and requests are preempted; plain ones, a knockout and a TCR are in the same batch
    prompts = [*problems, problems[0], problems[1], problems[2]]
    wishes = [*[{"repair": folder}] * len(problems), None, {"knock_out": [[0, 5], [0, 7]]}, {"repair": "tcr-reasoner"}]
    preempted: set[str] = set()
    own = type(core.scheduler)._preempt_request

    def preempt(self: Any, request: Any, *args: Any, **kwargs: Any) -> None:
        preempted.update(
            request.sampling_params.extra_args["chainwright"] if request.sampling_params.extra_args else ()
        )
        own(self, request, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(core.scheduler), "_preempt_request", preempt)
        outputs = ask(prompts, wishes, max_tokens=120)
    assert "stepflow" in preempted
    assert [_ids(output) for output in outputs[: len(problems)]] == due
    assert _ids(outputs[-3]) == plain[0]
    assert _ids(outputs[-2]) == expected(problems[1], {(0, 5), (0, 7)}, n=120)
    # a plain request finds nothing in the prefix cache of what StepFlow has changed, nor the other way round
    longer = [[*ids, *tokens[:60]] for ids, tokens in zip(problems[:4], due, strict=False)]
    for ids in longer:
        for wish in ({"repair": folder}, None, {"repair": folder}):
            (output,) = ask([ids], [wish], max_tokens=20)
            assert _ids(output) == (_generated(plain_model[0], ids, repair, 20) if wish else expected(ids, n=20))
    flows = core.runner.chainwright.flows
    ask([problems[0]], [None], max_tokens=2)
    assert not flows._kept and not flows._rows


def test_what_stepflow_cannot_follow_ends_with_an_error(ask: Any, core: Any, problems: Any, tmp_path: Path) -> None:
    FLOWS["bridge"].save_pretrained(tmp_path / "flow")
    wishes = [{"repair": tmp_path / "flow"}, None]
    if IS_V2:
        failed, plain = ask(problems[:2], wishes, max_tokens=4)
        due = "Chainwright's StepFlow runs with vLLM's first model runner only."
    else:
        layers = core.runner.compilation_config.static_forward_context
        impl = layers["model.layers.2.self_attn.attn"].impl
        own = impl.chainwright
        del impl.chainwright
        try:
            failed, plain = ask(problems[:2], wishes, max_tokens=4)
        finally:
            impl.chainwright = own
        due = "Chainwright's StepFlow in layer 2 did not act; the request was ended."
    assert (failed.outputs[0].finish_reason, failed.outputs[0].stop_reason) == ("error", due)
    assert len(_ids(plain)) == 4
