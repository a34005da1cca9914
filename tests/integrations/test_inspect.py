"""The provider of inspect_ai: its texts are those of `generate`, and its logs say what the repairs did."""

from __future__ import annotations

import asyncio
import re
import sys
import time
import tomllib
from collections.abc import Iterator, Sequence
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("inspect_ai")

import anyio
from inspect_ai import Task, eval
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.log import EvalLog, read_eval_log
from inspect_ai.model import (
    ChatMessageAssistant,
    ChatMessageUser,
    ContentImage,
    ContentReasoning,
    ContentText,
    GenerateConfig,
    get_model,
)
from inspect_ai.scorer import includes
from inspect_ai.tool import ToolInfo

from chainwright import generate, load_model, score
from chainwright._errors import BadInput, BadTrace, TooLong, TraceNotes
from chainwright.decode.ending import Endings
from chainwright.decode.sampling import Sampling
from chainwright.integrations.inspect.answers import Answers
from chainwright.integrations.server.choice import Choice, Wanted
from chainwright.prompts.prompt import prompt_of
from chainwright.repair import StepFlow
from chainwright.repair.base import Repair
from chainwright.traces import Trace, read_traces
from chat_templates import chat_tokenizer
from command_line import call
from families import tiny
from serving import prompts

ROOT = Path(__file__).parents[2]
N_SAMPLES, N_NEW = 10, 160
REPAIR = "tcr-reasoner"


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, EvalLog]:
    """Return the logs of the example's task, plain and repaired, read back."""
    sys.path.insert(0, str(ROOT / "examples" / "inspect"))
    example = import_module("clf_13_hops")
    sys.path.pop(0)
    found = {}
    for repair in ("none", REPAIR):
        folder = tmp_path_factory.mktemp(repair)
        options = {"log_dir": str(folder), "limit": N_SAMPLES, "display": "none"}
        (log,) = eval(example.clf_13_hops(), model="chainwright/reasoner", model_args={"repair": repair}, **options)
        assert log.status == "success", log.error
        found[repair] = read_eval_log(log.location)
    return found


@cache
def loaded() -> Any:
    """Return a model that no engine uses: a model belongs to one thread."""
    return load_model("reasoner", device="cpu")


def due(asked: Sequence[str], repair: Any = None, **options: Any) -> list[Trace]:
    model, tokenizer = loaded()
    settings = {"max_new_tokens": N_NEW, "progress": False} | options
    return generate(model, tokenizer, list(asked), repair=repair, **settings)


def questions(log: EvalLog) -> list[str]:
    return [str(sample.input) for sample in log.samples or []]


@pytest.mark.parametrize("repair", ["none", REPAIR])
def test_an_eval_has_the_texts_of_generate(logs: dict[str, EvalLog], repair: str) -> None:
    chosen = None if repair == "none" else Repair.from_pretrained(repair)
    traces = due(questions(logs[repair]), chosen)
    samples = logs[repair].samples
    assert [sample.output.completion for sample in samples] == [trace.response for trace in traces]
    assert logs[repair].eval.model_args["repair"] == repair
    for sample, trace in zip(samples, traces, strict=True):
        n = trace.response_start
        assert (sample.output.usage.input_tokens, sample.output.usage.output_tokens) == (n, len(trace.input_ids) - n)
        assert sample.output.stop_reason == ("stop" if trace.stopped else "max_tokens")


def test_the_repair_changes_a_text_and_the_log_says_where(logs: dict[str, EvalLog]) -> None:
    plain, repaired = (logs[name].samples for name in ("none", REPAIR))
    changed = [a.output.completion != b.output.completion for a, b in zip(plain, repaired, strict=True)]
    assert any(changed) and not all(changed)
    chosen = Repair.from_pretrained(REPAIR)
    due(questions(logs[REPAIR]), chosen)
    ours = [sample.output.metadata["chainwright"] for sample in repaired]
    assert sum(one["flagged_tokens"] for one in ours) == chosen.cost.n_flagged > 0
    assert sum(one["changed_tokens"] for one in ours) == chosen.cost.n_changed > 0
    for sample, one, is_changed in zip(repaired, ours, changed, strict=True):
        flags = one["choices"][0]["flags"]
        assert len(flags) == one["flagged_tokens"] and bool(one["extra_tokens"]) == bool(flags)
        assert sum(flag["changed"] for flag in flags) == one["changed_tokens"]
        assert not is_changed or one["changed_tokens"], "a text differs only where a token was changed"
        tokenizer = loaded()[1]
        for flag in flags:
            assert flag["token"] == tokenizer.decode([one["choices"][0]["token_ids"][flag["index"]]])
        of_sample = sample.metadata["chainwright"][f"reasoner+{REPAIR}"]
        assert of_sample["calls"] == 1 and of_sample["flagged_tokens"] == one["flagged_tokens"]
    assert all(sample.output.metadata["chainwright"]["flagged_tokens"] == 0 for sample in plain)


def test_traces_of_a_log_have_the_tokens_of_generate(logs: dict[str, EvalLog]) -> None:
    with pytest.warns(TraceNotes, match="judgements of the file contradict ours"):  # chains are wrong, answers right
        traces = read_traces(logs[REPAIR].location, loaded()[1], trust_labels=True)
    own = due(questions(logs[REPAIR]), Repair.from_pretrained(REPAIR))
    assert [trace.input_ids.tolist() for trace in traces] == [trace.input_ids.tolist() for trace in own]
    assert [trace.response_start for trace in traces] == [trace.response_start for trace in own]
    right = [sample.scores["same_text"].value == "C" for sample in logs[REPAIR].samples]
    assert [trace.is_correct for trace in traces] == right and 0 < sum(right) < N_SAMPLES


def test_two_logs_are_compared_by_problem(logs: dict[str, EvalLog], tmp_path: Path) -> None:
    files = [f"{name}={logs[repair].location}" for name, repair in (("plain", "none"), ("tcr", REPAIR))]
    code, text = call(
        "compare", *files, "--model", "reasoner", "--trust-labels", "--out", str(tmp_path / "report.html")
    )
    assert code == 0, text
    rows = dict(re.findall(r"│ (plain|tcr) +│ ([\d.]+)", text))
    for name, repair in (("plain", "none"), ("tcr", REPAIR)):
        n = sum(sample.scores["same_text"].value == "C" for sample in logs[repair].samples)
        assert float(rows[name]) == pytest.approx(n / N_SAMPLES)


# one request at a time


@cache
def model(repair: str | None = REPAIR) -> Any:
    return get_model("chainwright/reasoner", repair=repair, device="cpu", memoize=False)


def ask(asked: Any, repair: str | None = REPAIR, **config: Any) -> Any:
    settings = GenerateConfig(**{"max_tokens": 48} | config)
    return asyncio.run(model(repair).generate(asked, config=settings))


@cache
def asked() -> str:
    return "clf build/ src/ conf/ src/ docs/ ./ core/ src/ tmp/ ../ lib/ ../ tests/ ?\n"


def test_draws_depend_on_seed_epoch_and_choice(tmp_path: Path) -> None:
    sampling = Sampling(temperature=3.0, top_p=0.95, top_k=30)
    config = GenerateConfig(temperature=3.0, top_p=0.95, top_k=30, seed=7, max_tokens=40, num_choices=2)
    task = Task(MemoryDataset([Sample(input=asked(), target="8")]), scorer=includes(), epochs=2, config=config)
    (log,) = eval(task, model=model(), log_dir=str(tmp_path), display="none")
    assert log.status == "success", log.error
    texts = [
        choice.message.text
        for sample in sorted(log.samples, key=lambda one: one.epoch)
        for choice in sample.output.choices
    ]
    options = {"sampling": sampling, "seed": 7, "n_samples": 4, "max_new_tokens": 40}
    assert texts == [trace.response for trace in due([asked()], Repair.from_pretrained(REPAIR), **options)]
    assert len(set(texts)) > 2


def test_without_a_seed_one_is_drawn_and_noted() -> None:
    first, second = (ask(asked(), temperature=1.5).metadata["chainwright"]["seed"] for _ in range(2))
    assert first != second
    again = [ask(asked(), temperature=1.5, seed=first).completion for _ in range(2)]
    assert again[0] == again[1]
    assert "seed" not in ask(asked()).metadata["chainwright"]


def test_log_probabilities_are_those_of_score() -> None:
    output = ask(asked(), logprobs=True, top_logprobs=3)
    repair = Repair.from_pretrained(REPAIR)
    (trace,) = due([asked()], repair, max_new_tokens=48)
    scores = score(loaded()[0], trace, repair=repair).logprob[trace.response_start :]
    content = output.choices[0].logprobs.content
    torch.testing.assert_close(torch.tensor([one.logprob for one in content]), scores, atol=1e-3, rtol=1e-3)
    assert all(len(one.top_logprobs) == 3 and one.top_logprobs[0].token == one.token for one in content)
    assert ask(asked()).choices[0].logprobs is None


def test_an_answer_ends_before_a_stop_string_and_at_max_tokens() -> None:
    (whole,) = due([asked()], Repair.from_pretrained(REPAIR), max_new_tokens=48)
    stop = whole.response.split("\n")[2][:5]
    output = ask(asked(), stop_seqs=["no such text", stop])
    assert output.completion == whole.response[: whole.response.index(stop)] and output.stop_reason == "stop"
    ids = output.metadata["chainwright"]["choices"][0]["token_ids"]
    assert loaded()[1].decode(ids).strip() == output.completion.strip()
    cut = ask(asked(), max_tokens=5)
    assert cut.stop_reason == "max_tokens" and cut.usage.output_tokens == 5


def test_a_prompt_without_room_is_an_output_that_says_so(tmp_path: Path) -> None:
    n = loaded()[0].config.max_position_embeddings
    long = f"{asked().strip()} " * (n // 15 + 1)
    with pytest.raises(TooLong, match="positions for"):
        prompt_of(*loaded(), 0, long, None)
    task = Task(MemoryDataset([Sample(input=asked(), target="8"), Sample(input=long, target="8")]), scorer=includes(),
                config=GenerateConfig(max_tokens=20))  # fmt: skip
    (log,) = eval(task, model=model(), log_dir=str(tmp_path), display="none")
    assert log.status == "success"
    output = log.samples[1].output
    assert (output.stop_reason, output.completion) == ("model_length", "")
    assert f"the model has positions for {n}; shorten it" in output.error
    with pytest.raises(BadTrace, match=r"sample 2, epoch 1.*the model gave no answer \(Prompt 0 has \d+ tokens"):
        read_traces(log.location, loaded()[1])


def test_an_answer_that_fills_the_positions_says_so() -> None:
    n = loaded()[0].config.max_position_embeddings
    words = "clf " + "src/ ./ " * ((n - 8) // 2) + "?\n"
    output = ask(words, max_tokens=500)
    assert output.usage.total_tokens <= n
    assert output.stop_reason == ("model_length" if output.usage.total_tokens == n else "stop")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"frequency_penalty": 0.5}, "do not do frequency_penalty, which is 0.5"),
        ({"best_of": 2}, "do not do best_of"),
        ({"logit_bias": {5: 1.0}}, "do not do logit_bias"),
        ({"prompt_logprobs": 1}, "do not do prompt_logprobs"),
        ({"reasoning_tokens": 100}, "do not do reasoning_tokens"),
        ({"batch": True}, "do not do batch"),
        ({"num_choices": 2}, "num_choices is 2, but greedy decoding"),
        ({"top_logprobs": 2}, "needs logprobs"),
        ({"top_p": 0.5}, "top_p limits what is drawn, but temperature 0"),
        ({"top_k": 5}, "top_k limits what is drawn, but temperature 0"),
        ({"temperature": -1.0}, "temperature"),
        ({"stop_seqs": [""]}, "A stop string is a text of at least one character"),
        ({"extra_body": {"min_q": 1}}, "Unknown field of extra_body.*Did you mean 'min_p'"),
        ({"extra_body": {"repetition_penalty": 1.3}}, "repetition penalty"),
        ({"reasoning_effort": "low"}, "no chat template"),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(config: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        ask(asked(), **config)


def test_settings_at_which_they_ask_for_nothing_are_taken() -> None:
    plain = ask(asked()).completion
    assert ask(asked(), frequency_penalty=0.0, best_of=1, batch=False, parallel_tool_calls=False).completion == plain


def test_tools_images_and_other_ends_of_a_conversation_are_refused() -> None:
    tool = ToolInfo(name="look", description="Look something up.")
    with pytest.raises(BadInput, match="call no tools; take look out"):
        asyncio.run(model().generate(asked(), tools=[tool]))
    picture = ChatMessageUser(content=[ContentImage(image="data:image/png;base64,AAAA")])
    with pytest.raises(BadInput, match="part of the type 'image'"):
        ask([picture])
    with pytest.raises(BadInput, match="last message must be the user's"):
        ask([ChatMessageUser(content="clf"), ChatMessageAssistant(content="so")])


@pytest.mark.parametrize(
    ("name", "args", "message"),
    [
        ("reasoner", {"repair": "tcr-reasonr"}, "tcr-reasoner"),
        ("reasoner", {"repair": "back-world"}, "was made for"),
        ("reasoner", {"repair": "tcr-reasoner+"}, "has an empty name"),
        ("reasoner", {"repair": ["tcr-reasoner", "tcr-reasoner"]}, "named twice|cannot decode together"),
        ("reasoner", {"repair": "tcr-reasoner+tcr-reasoner-lora"}, "cannot decode together"),
        ("reasoner", {"repairs": "tcr-reasoner"}, "Unknown argument.*Did you mean 'repair'"),
        ("reasoner", {"max_batch": 0}, "max_batch must be"),
        ("reasoner", {"chat_template_kwargs": "off"}, "must be values by name"),
        ("reasoner", {"base_url": "http://127.0.0.1"}, "base_url is for models that a server has"),
        ("no-such-model", {}, "no-such-model"),
    ],
)  # fmt: skip
def test_bad_arguments_are_named(name: str, args: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message) as caught:
        get_model(f"chainwright/{name}", memoize=False, **args)
    assert str(caught.value) == caught.value.message, "inspect prints this without a traceback"


def test_a_config_that_cannot_be_followed_is_refused_before_a_model_is_loaded() -> None:
    with pytest.raises(BadInput, match="do not do presence_penalty"):
        get_model("chainwright/no-such-model", config=GenerateConfig(presence_penalty=1.0), memoize=False)


def test_requests_that_run_together_share_passes() -> None:
    api = get_model("chainwright/reasoner", repair=REPAIR, device="cpu", memoize=False).api
    config = GenerateConfig(max_tokens=24)

    async def all_of_them() -> list[Any]:
        async with anyio.create_task_group() as group:
            for i in range(6):
                group.start_soon(one, i)
        return [outputs[i] for i in range(6)]

    async def one(i: int) -> None:
        words = asked().replace("build/ ", "./ " * i)
        outputs[i], _ = await api.generate([ChatMessageUser(content=words)], [], "none", config)

    outputs: dict[int, Any] = {}
    done = asyncio.run(all_of_them())
    load = api.service.engine.load
    assert load.n_steps < sum(output.usage.output_tokens for output in done) / 2
    words = [asked().replace("build/ ", "./ " * i) for i in range(6)]
    texts = [trace.response for trace in due(words, Repair.from_pretrained(REPAIR), max_new_tokens=24)]
    assert [output.completion for output in done] == texts
    api.close()


def test_several_repairs_act_together(tmp_path: Path) -> None:
    # both parts of StepFlow, so strongly that the text changes
    StepFlow((2,), (1, 3), 0.5, 0.8, tokenizer=loaded()[1]).save_pretrained(tmp_path / "flow")
    names = [REPAIR, str(tmp_path / "flow")]
    words = prompts(12)[6:]
    together = due(words, [Repair.from_pretrained(name) for name in names], max_new_tokens=40)
    assert [t.response for t in together] != [t.response for t in due(words, max_new_tokens=40)]
    for given in (names, "+".join(names)):
        own = get_model("chainwright/reasoner", repair=given, device="cpu", memoize=False)
        outputs = [asyncio.run(own.generate(one, config=GenerateConfig(max_tokens=40))) for one in words]
        own.api.close()
        assert [output.completion for output in outputs] == [trace.response for trace in together]
        assert outputs[0].metadata["chainwright"]["repairs"] == [names[1], names[0]], "edits act first"


def test_a_request_that_is_given_up_leaves_no_row() -> None:
    engine = model().api.service.engine

    async def leave() -> None:
        with anyio.move_on_after(0.05):
            await model().generate(asked(), config=GenerateConfig(max_tokens=400, temperature=3.0, seed=1))
            raise AssertionError("it was to be cancelled before its end")

    asyncio.run(leave())
    until = time.monotonic() + 10
    while engine.load.n_rows or engine.load.n_waiting:
        assert time.monotonic() < until
        time.sleep(0.01)


def test_a_closed_model_starts_again() -> None:
    own = get_model("chainwright/reasoner", device="cpu", memoize=False)
    config = GenerateConfig(max_tokens=8)
    first = asyncio.run(own.generate(asked(), config=config)).completion
    engine = own.api.service.engine
    own.api.close()
    assert not engine.is_running
    assert asyncio.run(own.generate(asked(), config=config)).completion == first
    assert asyncio.run(own.api.count_text_tokens(asked())) == len(
        loaded()[1](asked(), add_special_tokens=False)["input_ids"]
    )


def test_a_pass_that_raises_is_an_error_of_its_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    own = get_model("chainwright/reasoner", device="cpu", memoize=False)

    def broken(*args: Any, **kwargs: Any) -> Any:
        raise ValueError("no luck")

    monkeypatch.setattr(own.api.model, "forward", broken)
    with pytest.raises(RuntimeError, match="no luck"):
        asyncio.run(own.generate(asked(), config=GenerateConfig(max_tokens=8)))
    monkeypatch.undo()
    assert asyncio.run(own.generate(asked(), config=GenerateConfig(max_tokens=8))).completion
    own.api.close()


# thinking


@pytest.fixture
def thinking(tmp_path: Path) -> Iterator[Any]:
    """Return a model with random weights whose template opens the thinking."""
    tokenizer = chat_tokenizer("opens_thinking")
    tiny("llama", vocab_size=len(tokenizer), max_position_embeddings=512).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    own = get_model(f"chainwright/{tmp_path / 'model'}", device="cpu", memoize=False)
    yield own
    own.api.close()


def test_thinking_that_was_cut_is_reasoning_and_no_answer(thinking: Any) -> None:
    output = asyncio.run(thinking.generate("Say five.", config=GenerateConfig(max_tokens=12)))
    (trace,) = generate(
        *load_model(thinking.api.model_name, device="cpu"), ["Say five."], max_new_tokens=12, progress=False
    )
    ours = output.metadata["chainwright"]
    assert [*ours["prompt_token_ids"], *ours["choices"][0]["token_ids"]] == trace.input_ids.tolist()
    (part,) = output.message.content
    assert isinstance(part, ContentReasoning) and part.reasoning == trace.response.strip()
    assert output.completion == ""


def test_thinking_is_apart_from_the_answer_and_goes_back_into_the_template(thinking: Any) -> None:
    api, tokenizer = thinking.api, thinking.api.tokenizer
    prompt = prompt_of(api.model, tokenizer, 0, "Say five.", 64)
    choice = Choice(Wanted(prompt.ids), Endings.of(tokenizer, (), None, None), frozenset(), lambda _: None,
                    timeout=9, streams=False)  # fmt: skip
    for token in tokenizer("Easy.\n</think>\n\nFive.", add_special_tokens=False)["input_ids"]:
        choice.append(token, torch.zeros(len(tokenizer)), None)
    choice.over("stop")
    output = Answers("m", tokenizer, prompt, [choice], 512).output({})
    assert output.completion == "Five."
    assert [type(part) for part in output.message.content] == [ContentReasoning, ContentText]
    assert output.message.content[0].reasoning == "Easy."
    turns = [ChatMessageUser(content="Say five."), output.message, ChatMessageUser(content="And six.")]
    read, call_ = asyncio.run(api.generate(turns, [], "none", GenerateConfig(max_tokens=2)))
    assert "<think>\nEasy.\n</think>\n\nFive." in call_.request["prompt"] and read.usage.output_tokens == 2


# where inspect finds it


def test_the_entry_point_names_the_module() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["entry-points"]["inspect_ai"] == {"chainwright": "chainwright.integrations.inspect"}
    with pytest.raises(BadInput, match="no-such-model"):
        import_module("chainwright.integrations.inspect").chainwright("no-such-model")


def test_without_inspect_the_module_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "inspect_ai.model", None)
    monkeypatch.delitem(sys.modules, "chainwright.integrations.inspect", raising=False)
    with pytest.raises(ModuleNotFoundError, match=r"run pip install 'chainwright\[inspect\]'"):
        import_module("chainwright.integrations.inspect")
