"""What the endpoints answer, asked with the official client: the texts of `generate`, the numbers of `score`."""

from __future__ import annotations

import json
import re
import urllib.request
from pathlib import Path

import pytest
import torch

from chainwright import score
from chainwright.decode.sampling import Sampling
from chainwright.integrations.server.engine import Engine
from chainwright.repair import Repair
from chainwright.traces import Trace
from serving import (
    COMBINATIONS,
    N_NEW,
    Running,
    _another,
    _own_repairs,
    expected,
    model_name,
    parts_of,
    prompts,
    running,
)

ASKED = prompts(3)


@pytest.mark.parametrize("combination", COMBINATIONS)
def test_completions_are_what_generate_writes(server: Running, combination: str) -> None:
    answer = server.client().completions.create(model=model_name(combination), prompt=ASKED, max_tokens=N_NEW)
    due = expected(ASKED, combination)
    assert [choice.text for choice in answer.choices] == [trace.response for trace in due]
    assert answer.model == model_name(combination)


@pytest.mark.parametrize("combination", ["tcr", "flow", "dola"])
def test_each_repair_changes_a_text(combination: str) -> None:
    asked = prompts(12)
    plain, changed = expected(asked, ""), expected(asked, combination)
    assert [t.response for t in plain] != [t.response for t in changed]


def test_samples_are_those_of_generate_and_differ_by_seed(server: Running) -> None:
    sampling = Sampling(temperature=1.5, top_p=0.9, top_k=20)
    texts = {}
    for seed in (3, 4):
        answer = server.client().completions.create(
            model="reasoner+tcr",
            prompt=ASKED[0],
            max_tokens=N_NEW,
            n=4,
            temperature=1.5,
            top_p=0.9,
            seed=seed,
            extra_body={"top_k": 20},
        )
        texts[seed] = [choice.text for choice in answer.choices]
        assert texts[seed] == [t.response for t in expected(ASKED[:1], "tcr", sampling=sampling, seed=seed, n=4)]
    assert texts[3] != texts[4] and len(set(texts[3])) > 1


def test_a_chat_is_the_prompt_itself_where_there_is_no_template(server: Running) -> None:
    answer = server.client().chat.completions.create(
        model="reasoner", messages=[{"role": "user", "content": ASKED[0]}], max_completion_tokens=N_NEW
    )
    (due,) = expected(ASKED[:1], "")
    assert answer.choices[0].message.content == due.response
    assert answer.choices[0].finish_reason == ("stop" if due.stopped else "length")
    n = len(due.input_ids) - due.response_start
    assert (answer.usage.completion_tokens, answer.usage.prompt_tokens) == (n, due.response_start)


@pytest.mark.parametrize("kind", ["chat", "text"])
def test_a_stream_gives_the_same_text_and_usage(server: Running, kind: str) -> None:
    client, options = server.client(), {"model": "reasoner+flow+tcr", "max_tokens": N_NEW, "stream": True}
    options["stream_options"] = {"include_usage": True}
    if kind == "chat":
        chunks = list(client.chat.completions.create(messages=[{"role": "user", "content": ASKED[1]}], **options))
        text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    else:
        chunks = list(client.completions.create(prompt=ASKED[1], **options))
        text = "".join(c.choices[0].text for c in chunks if c.choices)
    (due,) = expected(ASKED[1:2], "flow+tcr")
    assert text == due.response
    assert len(chunks) > 3  # it was sent in pieces
    assert chunks[-1].usage.completion_tokens == len(due.input_ids) - due.response_start
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == ("stop" if due.stopped else "length")


def test_several_answers_stream_side_by_side(server: Running) -> None:
    options = {"max_tokens": N_NEW, "temperature": 1.5, "seed": 1, "n": 3}
    whole = server.client().completions.create(model="reasoner", prompt=ASKED[0], **options)
    texts = ["", "", ""]
    for chunk in server.client().completions.create(model="reasoner", prompt=ASKED[0], stream=True, **options):
        texts[chunk.choices[0].index] += chunk.choices[0].text
    assert texts == [choice.text for choice in whole.choices] and len(set(texts)) > 1


def test_an_answer_ends_before_a_stop_string(server: Running) -> None:
    (due,) = expected(ASKED[1:2], "")
    stop = due.response.split("\n")[2][:6]
    options = {"model": "reasoner", "prompt": ASKED[1], "max_tokens": N_NEW, "stop": ["no such text", stop]}
    answer = server.client().completions.create(**options)
    assert answer.choices[0].text == due.response[: due.response.index(stop)]
    assert answer.choices[0].finish_reason == "stop"
    streamed = server.client().completions.create(stream=True, **options)
    assert "".join(chunk.choices[0].text for chunk in streamed) == answer.choices[0].text


def test_log_probabilities_are_those_of_score(server: Running) -> None:
    answer = server.client().chat.completions.create(
        model="reasoner+tcr",
        messages=[{"role": "user", "content": ASKED[2]}],
        max_tokens=N_NEW,
        logprobs=True,
        top_logprobs=3,
    )
    (due,) = expected(ASKED[2:3], "tcr")
    scores = score(_another()[0], due, repair=_own_repairs()["tcr"]).logprob[due.response_start :]
    content = answer.choices[0].logprobs.content
    torch.testing.assert_close(torch.tensor([one.logprob for one in content]), scores, atol=1e-3, rtol=1e-3)
    assert all(len(one.top_logprobs) == 3 and one.top_logprobs[0].token == one.token for one in content)
    assert [bytes(one.bytes).decode() for one in content] == [one.token for one in content]


@pytest.mark.parametrize("combination", ["", "tcr", "flow"])
def test_an_echoed_prompt_has_the_log_probabilities_of_score(server: Running, combination: str) -> None:
    (trace,) = expected(ASKED[:1], "")
    ids, start = trace.input_ids.tolist(), trace.response_start
    more = {"response_start": start} if combination == "flow" else {}
    answer = server.client().completions.create(
        model=model_name(combination), prompt=ids, max_tokens=1, echo=True, logprobs=1, extra_body=more
    )
    again = Trace.from_ids(_another()[1], ids, start)
    due = score(_another()[0], again, repair=[_own_repairs()[name] for name in parts_of(combination)])
    got = answer.choices[0].logprobs
    assert got.token_logprobs[0] is None and len(got.token_logprobs) == len(ids) + 1
    torch.testing.assert_close(torch.tensor(got.token_logprobs[start:-1]), due.logprob[start:], atol=1e-4, rtol=1e-4)
    # as lm-evaluation-harness asks whether a continuation is the greedy one
    greedy = [lp == max(top.values()) for lp, top in zip(got.token_logprobs[1:-1], got.top_logprobs[1:-1], strict=True)]
    likeliest = due.argmax[start:] == torch.tensor(ids[start:])
    assert greedy[start - 1 :] == likeliest.tolist()


def test_a_prompt_can_be_scored_without_an_answer(server: Running) -> None:
    client = server.client()
    answer = client.completions.create(model="reasoner", prompt=ASKED[:2], max_tokens=0, echo=True, logprobs=0)
    assert [len(choice.logprobs.tokens) > 5 for choice in answer.choices] == [True, True]
    assert answer.usage.completion_tokens == 0
    text = answer.choices[0].text
    for place, token in _places(answer.choices[0].logprobs):
        assert text[place:].strip().startswith(token.strip())


def _places(logprobs: object) -> list[tuple[int, str]]:
    pairs = zip(logprobs.text_offset, logprobs.tokens, strict=True)  # type: ignore[attr-defined]
    return [(place, token) for place, token in pairs if not token.startswith("<")]


def test_the_report_says_what_the_repair_did(server: Running) -> None:
    asked = prompts(8)
    answer = server.client().completions.create(
        model="reasoner+tcr", prompt=asked, max_tokens=N_NEW, extra_body={"repair_report": True}
    )
    traces = expected(asked, "tcr")
    cost = _own_repairs()["tcr"].cost
    records = [record for choice in answer.choices for record in choice.repair_report]
    assert cost.n_flagged > 0
    assert len(records) == cost.n_flagged == answer.usage.repair["flagged_tokens"]
    assert sum(record["changed"] for record in records) == cost.n_changed == answer.usage.repair["changed_tokens"]
    assert answer.usage.repair["extra_tokens"] > 0
    for choice, trace in zip(answer.choices, traces, strict=True):
        words = [_another()[1].decode([i]) for i in trace.input_ids[trace.response_start :].tolist()]
        for record in choice.repair_report:
            assert record["token"] == words[record["index"]] == record["candidates"][0]["token"]


def test_models_are_listed_one_for_each_repair(server: Running) -> None:
    names = [model.id for model in server.client().models.list()]
    assert names == ["reasoner", *(f"reasoner+{name}" for name in ("tcr", "lora", "flow", "dola"))]
    assert server.client().models.retrieve("reasoner+flow+tcr").id == "reasoner+flow+tcr"


def test_repairs_can_be_named_in_the_body_and_in_any_order(server: Running) -> None:
    (due,) = expected(ASKED[:1], "flow+tcr")
    for body in ({"repair": ["tcr", "flow"]}, {"repair": ["flow", "tcr"]}):
        answer = server.client().completions.create(
            model="reasoner", prompt=ASKED[0], max_tokens=N_NEW, extra_body=body
        )
        assert (answer.choices[0].text, answer.model) == (due.response, "reasoner+flow+tcr")


def test_health_and_metrics_count(server: Running) -> None:
    server.client().completions.create(model="reasoner+tcr", prompt=ASKED, max_tokens=N_NEW)
    with urllib.request.urlopen(f"{server.url}/health") as response:
        assert json.load(response)["status"] == "ok"
    with urllib.request.urlopen(f"{server.url}/metrics") as response:
        lines = response.read().decode().splitlines()
    values = {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines if not line.startswith("#")}
    assert values['chainwright_tokens_total{repair="tcr"}'] > 0
    assert values['chainwright_requests_total{endpoint="/v1/completions",status="200"}'] > 0
    assert values["chainwright_failed"] == 0


def test_the_example_of_the_guide_prints_what_it_says(capsys: pytest.CaptureFixture[str]) -> None:
    guide = (Path(__file__).parents[3] / "docs" / "server.md").read_text(encoding="utf-8")
    code, printed = re.findall(r"```python\n(.*?)```\n\n```text\n(.*?)```", guide, re.DOTALL)[0]
    model, tokenizer = _another()
    engine = Engine(model, tokenizer, {"tcr-reasoner": Repair.from_pretrained("tcr-reasoner")})
    with running(engine) as it:
        exec(compile(code.replace("http://127.0.0.1:8000", it.url), "server.md", "exec"), {})
    assert capsys.readouterr().out == printed
