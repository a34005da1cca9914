"""How tokens are drawn, and what ends a response: against Transformers' own warpers and loops written out."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from chainwright import TCR, generate, score
from chainwright._errors import BadInput
from chainwright.decode.drawing import processors
from chainwright.decode.ending import Endings
from chainwright.decode.sampling import Sampling
from chainwright.models.sampling import gumbel_noise
from chainwright.prompts.asking import Asking
from chainwright.repair import EntropyDetector
from chainwright.repair.tcr.selector import RandomSelector
from chainwright.tasks import Problem
from chainwright.traces import Trace
from chat_templates import chat_tokenizer
from families import tiny

SAMPLING = {
    "temperature": Sampling(temperature=0.7),
    "top_k": Sampling(temperature=1.3, top_k=5),
    "top_p": Sampling(temperature=1.0, top_p=0.6),
    "min_p": Sampling(temperature=1.5, min_p=0.2),
    "penalty": Sampling(temperature=1.0, repetition_penalty=1.7),
    "all": Sampling(temperature=1.2, top_k=20, top_p=0.8, min_p=0.05, repetition_penalty=1.3),
}
PROMPTS = ["Ann has two pens and a cup.", "Why?", "One, two, three and so on"]


def model_of() -> PreTrainedModel:
    model = tiny("llama", vocab_size=len(tokenizer()), max_position_embeddings=1024)
    model.generation_config.eos_token_id = None
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(8)  # sharper than a random model is
    return model


def tokenizer() -> PreTrainedTokenizerFast:
    return chat_tokenizer(None)


def written(trace: Trace) -> list[int]:
    return trace.response_ids.tolist()


def quiet(prompts: list, **options: object) -> list[Trace]:
    return generate(model_of(), tokenizer(), prompts, progress=False, **({"max_new_tokens": 12} | options))


@torch.no_grad()
def by_hand(model: PreTrainedModel, ids: list[int], row: int, sampling: Sampling, n: int, seed: int = 3) -> list[int]:
    """Decode without a cache, padding or batch: Transformers' processors in its order, then the row's noise."""
    ids, start = list(ids), len(ids)
    steps = LogitsProcessorList()
    if sampling.repetition_penalty:
        steps.append(RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty))
    if sampling.temperature:
        steps.append(TemperatureLogitsWarper(float(sampling.temperature)))
    if sampling.top_k:
        steps.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p:
        steps.append(TopPLogitsWarper(sampling.top_p))
    if sampling.min_p:
        steps.append(MinPLogitsWarper(sampling.min_p))
    for step in range(n):
        tokens = torch.tensor([ids])
        logits = steps(tokens, model(input_ids=tokens).logits[:, -1].float())
        noise = gumbel_noise(seed, [row], step, logits.shape[1]) if sampling.temperature else 0
        token = int((logits + noise).argmax())
        ids.append(token)
        if token == tokenizer().eos_token_id:
            break
    return ids[start:]


@pytest.mark.parametrize("name", SAMPLING)
def test_tokens_are_those_of_transformers_warpers_in_its_order_and_then_the_noise(name: str) -> None:
    model, sampling = model_of(), SAMPLING[name]
    traces = quiet(PROMPTS, sampling=sampling, seed=3)
    for i, trace in enumerate(traces):
        asked = trace.input_ids[: trace.response_start].tolist()
        assert written(trace) == by_hand(model, asked, i, sampling, 12)
    plain = quiet(PROMPTS, temperature=sampling.temperature, seed=3)
    assert (name == "temperature") == (list(map(written, plain)) == list(map(written, traces))), "it has an effect"


@pytest.mark.parametrize("name", ["top_k", "top_p", "min_p"])
def test_nothing_outside_the_cut_is_drawn_and_inside_it_what_the_softmax_says(name: str) -> None:
    sampling, n = SAMPLING[name], 4000
    logits = torch.tensor([3.0, 2.5, 2.0, 1.0, 0.5, 0.0, -1.0, -2.0])
    warpers = {"top_k": TopKLogitsWarper(5), "top_p": TopPLogitsWarper(0.6), "min_p": MinPLogitsWarper(0.2)}
    cut = warpers[name](None, (logits / sampling.temperature)[None])[0].softmax(-1)
    drawing = processors(sampling, range(n), 1, torch.ones(n, 3))
    shares = drawing(torch.zeros(n, 3, dtype=torch.long), logits.repeat(n, 1)).argmax(-1).bincount(minlength=8) / n
    assert bool((shares[cut == 0] == 0).all()) and bool((cut == 0).any())
    assert float((shares - cut).abs().max()) < 0.03


def test_a_penalty_is_for_greedy_decoding_too_and_ignores_the_padding() -> None:
    sampling = Sampling(repetition_penalty=1.8)
    model, together = model_of(), quiet(PROMPTS, sampling=sampling)
    for i, trace in enumerate(together):
        asked = trace.input_ids[: trace.response_start].tolist()
        assert written(trace) == by_hand(model, asked, i, sampling, 12)
    assert together[0].info["repetition_penalty"] == 1.8
    scores = score(model, together[0])
    assert scores.argmax[together[0].response_start :].tolist() != written(together[0]), "score judges the model alone"


@pytest.mark.parametrize("name", SAMPLING)
def test_the_batch_size_changes_nothing(name: str) -> None:
    runs = [quiet(PROMPTS, sampling=SAMPLING[name], n_samples=3, batch_size=n, seed=5) for n in (1, 4, None)]
    assert runs[0] == runs[1] == runs[2]


def test_samples_are_rows_of_their_own_and_parts_give_the_same() -> None:
    whole = quiet(PROMPTS, temperature=1.0, n_samples=4)
    assert [(t.info["problem"], t.info["sample"]) for t in whole] == [(i, j) for i in range(3) for j in range(4)]
    assert len({tuple(written(t)) for t in whole[:4]}) > 1
    parts = [*quiet(PROMPTS[:1], temperature=1.0, n_samples=4)]
    parts += quiet(PROMPTS[1:], temperature=1.0, n_samples=4, first_row=1)
    assert parts == whole
    model = model_of()
    for row, trace in enumerate(whole):
        asked = trace.input_ids[: trace.response_start].tolist()
        assert written(trace) == by_hand(model, asked, row, Sampling(temperature=1.0), 12, seed=0)
    arrived: list[int] = []
    quiet(PROMPTS, temperature=1.0, n_samples=2, on_traces=lambda done: arrived.extend(i for i, _ in done))
    assert sorted(arrived) == list(range(6))


# -- the settings ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"top_p": 0.9}, r"top_p limits what is drawn, but temperature 0 \(greedy\) draws nothing; set a temperature"),
        ({"top_k": 3}, "top_k limits what is drawn"),
        ({"min_p": 0.1, "temperature": 0.0}, "min_p limits what is drawn"),
        ({"temperature": 1.0, "top_p": 0.0}, r"top_p must be a number above 0 and to 1, or none; got 0\.0"),
        ({"temperature": 1.0, "top_p": 1.2}, "top_p must be"),
        ({"temperature": 1.0, "top_k": 0}, "top_k must be a whole number from 1"),
        ({"temperature": 1.0, "min_p": 1.5}, "min_p must be"),
        ({"temperature": -1.0}, "temperature must be 0"),
        ({"repetition_penalty": 0.0}, "repetition_penalty must be a positive number"),
        ({"stop": [""]}, "A stop string is a text of at least one character"),
    ],
)
def test_settings_that_do_not_fit(settings: dict[str, object], says: str) -> None:
    with pytest.raises(BadInput, match=says):
        Sampling(**settings)


def test_generate_refuses_what_contradicts_itself() -> None:
    for options, says in (
        ({"n_samples": 3}, r"n_samples is 3, but greedy decoding \(temperature 0\) gives the same response each time"),
        ({"n_samples": 0}, "n_samples must be at least 1; got 0"),
        ({"max_thinking_tokens": 0}, "max_thinking_tokens must be at least 1"),
        ({"temperature": 0.5, "sampling": Sampling(temperature=1.0)}, r"temperature is 0\.5, but sampling says 1\.0"),
        ({"sampling": Sampling(stop=["</think>"])}, "'</think>' is a marker of thinking"),
        ({"sampling": Sampling(stop=["x<eot>"])}, "holds the special token '<eot>'; pass that alone"),
        ({"raw": True, "asking": Asking(shots=1)}, "cannot be combined with shots"),
    ):
        with pytest.raises(BadInput, match=says):
            quiet(PROMPTS, **options)


def config(**settings: object) -> object:
    model = model_of()
    for name, value in settings.items():
        setattr(model.generation_config, name, value)
    return model


def test_the_checkpoints_own_sampling() -> None:
    got = Sampling.of_model(config(do_sample=True, temperature=0.6, top_p=0.95, stop_strings="END"))
    assert got == Sampling(temperature=0.6, top_p=0.95, stop=("END",))
    assert Sampling.of_model(config(do_sample=True)) == Sampling(temperature=1.0)
    assert Sampling.of_model(config(do_sample=True, top_k=0, repetition_penalty=1.05)).repetition_penalty == 1.05
    with pytest.raises(BadInput, match="states no sampling"):
        Sampling.of_model(config(temperature=0.6))
    with pytest.raises(BadInput, match="also sets no_repeat_ngram_size to 3, which Chainwright does not do"):
        Sampling.of_model(config(do_sample=True, no_repeat_ngram_size=3))


def test_a_repair_that_decides_tokens_decodes_under_warpers_but_not_under_a_penalty() -> None:
    """The warpers see the repair's logits, which mean the same after a shift; a penalty's effect would change."""
    model = model_of()
    repair = TCR([(0, 1), (1, 2)], RandomSelector(2), EntropyDetector(0.0), end_ids=[])
    sampling = Sampling(temperature=0.8, top_p=0.7)
    traces = generate(model, tokenizer(), PROMPTS, repair=repair, sampling=sampling, max_new_tokens=6, progress=False)
    assert repair.cost.n_flagged > 0
    for trace in traces:
        logprobs = score(model, trace, repair=repair).logprob[trace.response_start :]
        assert bool((logprobs > -20).all())
    with pytest.raises(BadInput, match="A tcr repair puts in log-probabilities, on which a repetition penalty acts"):
        generate(model, tokenizer(), PROMPTS, repair=repair, sampling=Sampling(repetition_penalty=1.2), progress=False)


# -- what ends a response --------------------------------------------------------------------------------------------


class Scripted:
    """Feeds rows of texts through what ends responses, as `model.generate` would."""

    def __init__(self, *texts: str, stops: tuple[str, ...] = (), prompts: list[str] | None = None, **options: object):
        self.rows = [tokenizer()(text, add_special_tokens=False)["input_ids"] for text in texts]
        asked = prompts or ["Why?"] * len(texts)
        ids = [tokenizer()(text)["input_ids"] for text in asked]
        width = max(map(len, ids))
        endings = Endings.of(tokenizer(), stops, options.get("max_thinking"), None)  # type: ignore[arg-type]
        self.watch = endings.watch(ids, [len(row) for row in ids], [()] * len(texts))
        self.start = torch.tensor([[0] * (width - len(row)) + row for row in ids])

    def run(self) -> list[str | None]:
        """Return what each row has written when it ends; None for one that does not."""
        for n in range(1, max(map(len, self.rows)) + 1):
            new = torch.tensor([(row + [0] * n)[:n] for row in self.rows])
            self.watch(torch.cat([self.start, new], dim=1), torch.zeros(1))
        return [
            None if row.end is None else tokenizer().decode(ids[: row.end.n_tokens])
            for row, ids in zip(self.watch.rows, self.rows, strict=True)
        ]


def test_a_stop_string_is_found_across_tokens_and_the_response_ends_before_it() -> None:
    many = tokenizer()("\nQuestion:", add_special_tokens=False)["input_ids"]
    assert len(many) > 3, "it takes several tokens"
    scripted = Scripted("It is 42.\nQuestion: more", "No end here", "Stop at once", stops=("\nQuestion:", "Stop"))
    assert scripted.run() == ["It is 42.", None, ""]
    assert [row.end and row.end.stop for row in scripted.watch.rows] == ["\nQuestion:", None, "Stop"]


def test_a_token_that_wrote_the_end_of_the_answer_too_stays_whole() -> None:
    text = "Concatenate the letters of each word"
    long = next(t for i in tokenizer()(text)["input_ids"] if len((t := tokenizer().decode([i])).strip()) > 3)
    word = long.strip()
    (kept,) = Scripted(text, stops=(word[1:],)).run()
    assert kept == text[: text.index(word) + len(word)], "the first letter is of the answer"
    (kept,) = Scripted(text, stops=(word,)).run()
    assert kept is not None and text.startswith(kept) and kept.rstrip() == text[: text.index(word)].rstrip()


def test_the_first_of_several_stop_strings_counts() -> None:
    assert Scripted("a b c d", stops=("d", "c", "b c")).run() == ["a"]
    assert Scripted("aaab", stops=("aab", "b")).run() == ["a"]


def test_characters_of_several_tokens_are_waited_for() -> None:
    assert Scripted("x \u4f60\u597d y", stops=("\u597d",)).run() == ["x \u4f60"]
    assert Scripted("x \U0001f600 y", stops=("\U0001f600",)).run() == ["x "]


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("<think>a. Stop. b</think>c. Stop. d", "<think>a. Stop. b</think>c. "),
        ("<think>a. Stop. b", None),
        ("Say `<think>` and Stop. ", "Say `<think>` and "),
        ("<think>a</think>b<think>Stop.</think>c Stop.", "<think>a</think>b<think>Stop.</think>c "),
    ],
)
def test_no_stop_string_counts_while_the_thinking_is_open(text: str, want: str | None) -> None:
    assert Scripted(text, stops=("Stop.",)).run() == [want]


def test_a_blank_stop_string_waits_for_the_answer_after_the_thinking() -> None:
    text = "<think>a\n\nb</think>\n\nIt is 42.\n\nNext"
    assert Scripted(text, stops=("\n\n",)).run() == ["<think>a\n\nb</think>\n\nIt is 42."]
    assert Scripted("<think>a</think>\n\nQ: x", stops=("\n\nQ:",)).run() == ["<think>a</think>"]
    assert Scripted("\n\nIt is 42.", stops=("\n\n",)).run() == [""], "without thinking it ends at once"


def test_thinking_that_the_prompt_has_opened_is_open() -> None:
    (got,) = Scripted("a Stop. b</think>c Stop. d", stops=("Stop.",), prompts=["Why?<think>\n"]).run()
    assert got == "a Stop. b</think>c "


def test_thinking_that_takes_too_long_ends_the_response() -> None:
    text = "<think>one two three four five six seven"
    ids = tokenizer()(text, add_special_tokens=False)["input_ids"]
    opened = len(tokenizer()("<think>", add_special_tokens=False)["input_ids"])
    scripted = Scripted(text, "one two three four five six seven", max_thinking=4)
    cut, free = scripted.run()
    assert free is None and cut == tokenizer().decode(ids[: opened + 3])
    assert scripted.watch.rows[0].end is not None and scripted.watch.rows[0].end.stop is None
    assert Scripted("<think>one</think> two three four five six seven", max_thinking=9).run() == [None]
    (got,) = Scripted("one two three four five", max_thinking=3, prompts=["Why?<think>\n"]).run()
    first = tokenizer()("one two three", add_special_tokens=False)["input_ids"][:3]
    assert got == tokenizer().decode(first)


def free_text() -> tuple[str, Trace]:
    (trace,) = quiet(PROMPTS[:1], max_new_tokens=24, temperature=1.0)
    assert trace.response is not None
    return trace.response, trace


def test_generate_ends_each_row_at_its_own_stop_string() -> None:
    text, free = free_text()
    stop = text[len(text) // 2 : len(text) // 2 + 3]
    sampling = Sampling(temperature=1.0, stop=[stop])
    ended, *others = quiet(PROMPTS, max_new_tokens=24, sampling=sampling)
    assert ended.stopped and ended.info["stop"] == stop and json.loads(str(ended.info["stops"])) == [stop]
    n = len(written(ended))
    assert written(ended) == written(free)[:n] and 0 < n < len(written(free))
    assert ended.response is not None and text.startswith(ended.response)
    assert len(ended.response) >= len(text[: text.index(stop)].rstrip())
    assert len(ended.response) < text.index(stop) + 20
    plain = quiet(PROMPTS, max_new_tokens=24, temperature=1.0)[1:]
    for got, want in zip(others, plain, strict=True):
        if "stop" not in got.info:
            assert written(got) == written(want) and not got.stopped
    assert quiet(PROMPTS, max_new_tokens=24, sampling=sampling, batch_size=1) == [ended, *others]


def test_a_stop_string_after_a_rows_own_limit_does_not_count() -> None:
    text, _ = free_text()
    late = text[-3:]
    if text.index(late) < len(text) - 3:
        pytest.skip("the end of this text is in its middle too")
    problems = [Problem("m", 1, PROMPTS[0], "", "x", ()), PROMPTS[1]]
    (first, _) = quiet(problems, max_new_tokens=5, sampling=Sampling(temperature=1.0, stop=[late]))
    assert len(written(first)) == 5 and not first.stopped and "stop" not in first.info


def test_a_special_token_as_stop_string_is_an_end_token() -> None:
    model = model_of()
    (free,) = quiet(PROMPTS[:1], temperature=1.0, max_new_tokens=24)
    special = "<user>"
    made = Endings.of(tokenizer(), (special, "x"), None, None)
    assert made.stops == ("x",) and made.end_ids == {tokenizer().convert_tokens_to_ids(special)}
    assert not Endings.of(tokenizer(), (special,), None, None).are_watched
    (trace,) = generate(
        model, tokenizer(), PROMPTS[:1], sampling=Sampling(temperature=1.0, stop=[special]), max_new_tokens=24,
        progress=False,
    )  # fmt: skip
    assert written(trace) == written(free)[: len(written(trace))]


def test_demonstrations_in_one_text_stop_where_another_question_begins() -> None:
    problems = [
        Problem("s", 0, f"{i} + 1?", f"#### {i + 1}", str(i + 1), (), rendering="natural", checker="number")
        for i in range(3)
    ]
    traces = generate(model_of(), tokenizer(), problems, asking=Asking(shots=1), max_new_tokens=3, progress=False)
    assert json.loads(str(traces[0].info["stops"])) == ["\nQuestion:"]


def test_what_is_watched_does_not_change_the_tokens() -> None:
    plain = quiet(PROMPTS, temperature=1.0)
    watched = quiet(PROMPTS, sampling=Sampling(temperature=1.0, stop=["never written"]), max_thinking_tokens=500)
    assert list(map(written, watched)) == list(map(written, plain))
    assert watched[0].info["max_thinking_tokens"] == 500


def test_a_cut_of_the_thinking_counts_as_cut() -> None:
    model, template = model_of(), chat_tokenizer("opens_thinking")
    problem = Problem("s", 0, "1 + 1?", "", "2", (), rendering="natural", checker="number")
    (trace,) = generate(model, template, [problem], max_new_tokens=20, max_thinking_tokens=5, progress=False)
    assert len(trace.response_ids) == 5 and not trace.stopped and trace.info["thinking_cut"] is True
    assert trace.outcome == "cut"
