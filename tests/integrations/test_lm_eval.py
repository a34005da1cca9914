"""The model of lm-evaluation-harness: its texts are those of `generate`, its log-likelihoods those of `score`."""

from __future__ import annotations

import json
import logging
import sys
import tomllib
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("lm_eval")

from lm_eval import simple_evaluate
from lm_eval.api.instance import Instance
from lm_eval.tasks import TaskManager

from chainwright import generate, load_model, score, tasks
from chainwright._errors import BadInput
from chainwright.integrations.lm_eval import ChainwrightLM
from chainwright.repair.base import Repair
from chainwright.traces import Trace, read_traces
from chat_templates import chat_tokenizer
from command_line import call
from families import tiny

N = 96


@cache
def problems() -> list[tasks.Problem]:
    """Return problems of different lengths, at which the bundled repair flags some tokens."""
    return [p for hops in (13, 9) for p in tasks.sample("clf", hops, 4, seed=5, rendering="short")]


@cache
def lm(repair: str | None) -> Any:
    return ChainwrightLM("reasoner", repair=repair, batch_size=3, device="cpu")


def written(model: Any, prompts: list[str], **kwargs: Any) -> list[str]:
    wanted = {"until": [], "max_gen_toks": N} | kwargs
    return model.generate_until(
        [Instance("generate_until", {}, (prompt, dict(wanted)), i) for i, prompt in enumerate(prompts)], True
    )


@cache
def ours(repair: str | None) -> list[Trace]:
    model, tokenizer = load_model("reasoner", device="cpu")
    chosen = None if repair is None else Repair.from_pretrained(repair)
    return generate(model, tokenizer, problems(), repair=chosen, max_new_tokens=N, batch_size=3, progress=False)


@pytest.mark.parametrize("repair", [None, "tcr-reasoner"])
def test_texts_are_those_of_generate(repair: str | None) -> None:
    got = written(lm(repair), [p.prompt for p in problems()])
    assert got == [trace.response for trace in ours(repair)]


def test_the_repair_acts_and_its_cost_is_in_the_results() -> None:
    model = ChainwrightLM("reasoner", repair="tcr-reasoner", batch_size=4, device="cpu")
    assert model.get_model_info()["repair_cost"]["n_tokens"] == 0
    got = written(model, [p.prompt for p in problems()])
    plain = [trace.response for trace in ours(None)]
    assert got != plain and any(a == b for a, b in zip(got, plain, strict=True))
    info = model.get_model_info()
    assert info["repair"] == "tcr" and info["repair_cost"]["n_changed"] > 0
    assert info["repair_cost"]["n_flagged"] >= info["repair_cost"]["n_changed"]
    json.dumps(info["repair_cost"]), json.dumps(info["repair_settings"])


@pytest.mark.parametrize("repair", [None, "tcr-reasoner"])
def test_log_likelihoods_are_those_of_score(repair: str | None) -> None:
    chosen = None if repair is None else Repair.from_pretrained(repair)
    model, _ = load_model("reasoner", device="cpu")
    traces = ours("tcr-reasoner")
    requests = [
        (("a", "b"), trace.input_ids[: trace.response_start].tolist(), trace.response_ids.tolist()) for trace in traces
    ]
    got = lm(repair)._loglikelihood_tokens(requests, disable_tqdm=True)
    for (value, is_greedy), trace in zip(got, traces, strict=True):
        scores = score(model, trace, repair=chosen)
        kept = slice(trace.response_start, None)
        assert value == pytest.approx(float(scores.logprob[kept].sum()), abs=2e-4)
        assert is_greedy == bool((scores.argmax[kept] == trace.input_ids[kept]).all())
    if repair is not None:
        plain = lm(None)._loglikelihood_tokens(requests, disable_tqdm=True)
        assert any(abs(a[0] - b[0]) > 0.1 for a, b in zip(got, plain, strict=True)), "the repair changes some"
        assert all(is_greedy for _, is_greedy in got), "each is what greedy decoding with the repair wrote"


def test_a_continuation_that_leaves_no_context_is_refused() -> None:
    long = list(range(1, 9))
    model = ChainwrightLM("reasoner", repair="tcr-reasoner", device="cpu", max_length=8)
    with pytest.raises(BadInput, match="leaves no context within max_length 8"):
        model._loglikelihood_tokens([(("", ""), [3], long)], disable_tqdm=True)


def test_stop_strings_wait_while_the_thinking_is_open(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = chat_tokenizer("opens_thinking")
    model = ChainwrightLM(tiny("llama", vocab_size=len(tokenizer), max_position_embeddings=512), tokenizer=tokenizer,
                          think_end_token="</think>")  # fmt: skip
    prompt = model.apply_chat_template([{"role": "user", "content": "Say five."}])
    assert prompt.endswith("<think>\n")
    text = "One.\n\nTwo.\n</think>\n\nFive.\n\nSix."

    def say(self: Any, **kwargs: Any) -> torch.Tensor:
        ids = kwargs["input_ids"]
        for token in tokenizer(text, add_special_tokens=False)["input_ids"]:
            ids = torch.cat([ids, torch.tensor([[token]])], 1)
            if all(bool(done.all()) for rule in kwargs["stopping_criteria"] for done in [rule(ids, None)]):
                break
        seen.append(tokenizer.decode(ids[0, kwargs["input_ids"].shape[1] :]))
        return ids

    seen: list[str] = []
    monkeypatch.setattr(type(model.model), "generate", say)
    (got,) = written(model, [prompt], until=["\n\n"], max_gen_toks=64)
    assert "Five." in seen[0] and "Six" not in seen[0], "the stop string in the thinking does not end it"
    assert got == "Five."


def test_a_template_that_makes_think_has_its_thinking_taken_off() -> None:
    def end_of(name: str, **more: Any) -> Any:
        tokenizer = chat_tokenizer(name)
        return ChainwrightLM(tiny("llama", vocab_size=len(tokenizer)), tokenizer=tokenizer, **more).think_end_token

    assert end_of("switches_thinking") == "</think>"
    assert end_of("switches_thinking", think_end_token="<end>") == "<end>"
    assert end_of("plain") is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"peft": "folder"}, r"peft belongs to the harness's own loader.*pass adapter=FOLDER"),
        ({"parallelize": True}, r"parallelize belongs to the harness's own loader.*take it out"),
        ({"repairs": "x"}, r"Unknown argument of model 'chainwright' 'repairs'.*repair"),
        ({"repair": "tcr-reasoner+"}, "has an empty name"),
        ({"repair": "tcr-reasonr"}, "tcr-reasoner"),
        ({"repair": "tcr-reasoner+tcr-reasoner"}, "cannot decode together"),
        ({"repair": "back-world"}, "was made for"),
        ({"pretrained": "no-such-model"}, "no-such-model"),
    ],
)
def test_bad_arguments_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        ChainwrightLM(**({"pretrained": "reasoner", "device": "cpu"} | options))


def test_sampling_that_a_repair_cannot_stand_is_refused() -> None:
    with pytest.raises(BadInput, match="repetition penalty"):
        written(lm("tcr-reasoner"), [problems()[0].prompt], repetition_penalty=1.2)
    with pytest.raises(BadInput, match="beams"):
        written(lm("tcr-reasoner"), [problems()[0].prompt], num_beams=2)


def task(folder: Path) -> TaskManager:
    """Write a task on a file of problems, as users have them."""
    records = [{"question": p.prompt, "answer": p.answer} for p in problems()]
    (folder / "clf.jsonl").write_text("".join(f"{json.dumps(record)}\n" for record in records))
    (folder / "clf.yaml").write_text(
        f"""
task: clf_local
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder / "clf.jsonl"}}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{answer}}}}"
target_delimiter: ""
generation_kwargs: {{until: [], max_gen_toks: {N}}}
metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true}}]
metadata: {{version: 1}}
"""
    )
    return TaskManager(include_path=str(folder), include_defaults=False)


def test_a_whole_eval_offline_whose_log_is_read_back(tmp_path: Path) -> None:
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    result = simple_evaluate(model=lm("tcr-reasoner"), tasks=["clf_local"], task_manager=task(tmp_path),
                             log_samples=True, bootstrap_iters=0)  # fmt: skip
    assert result["config"]["repair"] == "tcr" and result["config"]["model_sha"]
    log = tmp_path / "samples_clf_local.jsonl"
    log.write_text("".join(f"{json.dumps(sample, default=str)}\n" for sample in result["samples"]["clf_local"]))
    _, tokenizer = load_model("reasoner", device="cpu")
    traces = read_traces(log, tokenizer, problems=problems())
    assert [trace.response for trace in traces] == [trace.response for trace in ours("tcr-reasoner")]


def test_the_command_passes_everything_on(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []
    monkeypatch.setattr("lm_eval.__main__.cli_evaluate", lambda: seen.append(list(sys.argv)))
    monkeypatch.setattr(sys, "argv", ["chainwright"])
    code, text = call("lm-eval", "run", "--model", "chainwright", "--help")
    assert code == 0, text
    assert seen == [["lm-eval", "run", "--model", "chainwright", "--help"]]


def test_the_command_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.setitem(sys.modules, "lm_eval.__main__", None)
    code, text = call("lm-eval", "run")
    assert code == 2 and "pip install 'chainwright[lm-eval]'" in text


def test_the_entry_point_names_the_class() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert project["entry-points"]["lm_eval.models"] == {
        "chainwright": f"{ChainwrightLM.__module__}:{ChainwrightLM.__qualname__}"
    }
