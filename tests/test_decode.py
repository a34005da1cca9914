"""Generating and scoring: both see the same model, whatever the batches, the padding or the repair."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from functools import cache

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from chainwright import scoring, tasks
from chainwright._errors import BadInput, BadTrace
from chainwright.decode.drawing import SeededDraw
from chainwright.decode.run import generate
from chainwright.decode.sampling import Sampling
from chainwright.edits import KnockOut, edit
from chainwright.lab.tokenizer import word_tokenizer
from chainwright.models.load import LoadedModel, load_model
from chainwright.repair.base import Repair
from chainwright.scoring import TokenScores, score, score_all
from chainwright.traces import Trace
from families import D_VOCAB, FAMILIES, random_ids, tiny
from reference import assert_close, assert_equal, greedy, without_heads

WORDS = ["\n", *"0123456789", *(f"w{chr(97 + i // 26)}{chr(97 + i % 26)}" for i in range(D_VOCAB - 15))]
TOLERANCE = 5e-5  # nats, float32
LENGTHS = (13, 9, 4, 1)


@cache
def tokenizer() -> PreTrainedTokenizerBase:
    """The first ids are those of the tiny models: 0 pads, 1 begins, 2 ends."""
    made = word_tokenizer(WORDS, 256)
    assert len(made) == D_VOCAB
    return made


@pytest.fixture(scope="module")
def reasoner() -> LoadedModel:
    return load_model("reasoner")


def prompts() -> list[str]:
    return [tokenizer().decode(random_ids(1, n, seed=n)[0].clamp(min=15).tolist()) for n in LENGTHS]


def prompt_ids(text: str) -> Tensor:
    return torch.tensor(tokenizer()(text)["input_ids"])[None]


def quiet(model: nn.Module, asked: list, **options: object) -> list[Trace]:
    options = {"progress": False, "tokenizer": tokenizer(), "max_new_tokens": 12} | options
    return generate(model, problems=asked, **options)


def never_ending(family: str, **changes: object) -> PreTrainedModel:
    """Return a model that does not write the end token by chance."""
    model = tiny(family, **changes)
    model.generation_config.eos_token_id = None
    return model


def response(trace: Trace) -> list[int]:
    return trace.response_ids.tolist()


class Silencing(Repair):
    """A repair that silences heads, and counts how often it was attached and taken away."""

    kind = "silencing"

    def __init__(self, heads: set[tuple[int, int]]):
        super().__init__()
        self.heads, self.n_attached, self.n_left = heads, 0, 0

    def attached(self, model: nn.Module) -> AbstractContextManager[object]:
        return self._attached(model)

    @contextmanager
    def _attached(self, model: nn.Module) -> Iterator[None]:
        self.n_attached += 1
        try:
            with edit(model, KnockOut(self.heads)):
                yield
        finally:
            self.n_left += 1


@pytest.mark.parametrize("family", FAMILIES)
def test_generated_tokens_are_those_of_an_uncached_loop_and_the_argmax_of_the_scores(family: str) -> None:
    model = never_ending(family)
    for text, trace in zip(prompts(), quiet(model, prompts()), strict=True):
        ids = prompt_ids(text)
        assert trace.input_ids[: ids.shape[1]].tolist() == ids[0].tolist()
        want = greedy(model, ids, 12).tolist()
        if 2 in want:  # the tokenizer's end token
            want = want[: want.index(2) + 1]
        assert response(trace) == want
        got = score(model, trace)
        assert got.argmax[trace.response_start :].tolist() == want


@pytest.mark.parametrize("task", ["parity", "clf", "mdm"])
def test_the_reasoners_greedy_traces_are_the_argmax_of_their_scores(reasoner: LoadedModel, task: str) -> None:
    problems = [*tasks.sample(task, 3, 4), *tasks.sample(task, 2, 2)]
    traces = generate(*reasoner, problems, progress=False)
    assert [t.problem for t in traces] == problems
    assert sum(bool(t.is_correct) for t in traces) >= 4, "the reasoner is good at few hops"
    for trace, found in zip(traces, score_all(reasoner.model, traces), strict=True):
        at = slice(trace.response_start, None)
        assert found.argmax[at].tolist() == response(trace)
        assert trace.stopped and response(trace)[-1] == reasoner.tokenizer.eos_token_id


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_the_batch_size_changes_nothing(reasoner: LoadedModel, temperature: float) -> None:
    problems = [p for hops in (2, 5, 9) for p in tasks.sample("parity", hops, 3)]
    asked = {"temperature": temperature, "seed": 7, "progress": False}
    one, *others = (generate(*reasoner, problems, batch_size=n, **asked) for n in (1, 3, 8, None))
    assert all(other == one for other in others)


@pytest.mark.parametrize("family", ["mistral", "gpt2", "gemma2", "gpt_oss"])
def test_the_batch_size_changes_nothing_in_other_families(family: str) -> None:
    model = never_ending(family)
    drawn = [quiet(model, prompts(), temperature=1.0, batch_size=n) for n in (1, 3, None)]
    assert drawn[0] == drawn[1] == drawn[2]
    assert quiet(model, prompts(), batch_size=1) == quiet(model, prompts())


def test_seeds_decide_what_is_drawn(reasoner: LoadedModel) -> None:
    problems = tasks.sample("parity", 12, 4)
    asked = {"temperature": 1.5, "progress": False}
    first, again = (generate(*reasoner, problems, seed=3, **asked) for _ in range(2))
    assert first == again
    others = {seed: [response(t) for t in generate(*reasoner, problems, seed=seed, **asked)] for seed in (-1, -2, 4)}
    assert len({str(r) for r in [*others.values(), [response(t) for t in first]]}) == 4
    hot = {"temperature": 9.0, "max_new_tokens": 12, "progress": False}
    same_prompt = generate(*reasoner, problems[:1] * 3, seed=3, **hot)
    assert len({str(response(t)) for t in same_prompt}) == 3, "rows with one prompt draw apart"
    assert first[0].info.items() >= {"model": "reasoner", "seed": 3, "temperature": 1.5}.items()


def test_tokens_are_drawn_as_often_as_the_softmax_says() -> None:
    logits, n = torch.tensor([2.0, 1.0, 0.0, -1.0]), 4000
    draw = SeededDraw(list(range(n)), Sampling(temperature=0.7), 5, 3)
    chosen = draw(torch.zeros(n, 3, dtype=torch.long), logits.repeat(n, 1)).argmax(-1)
    shares, want = chosen.bincount(minlength=4) / n, (logits / 0.7).softmax(-1)
    assert_close(shares, want, "shares of 4000 draws", 0.025)
    later = draw(torch.zeros(n, 4, dtype=torch.long), logits.repeat(n, 1)).argmax(-1)
    agree = float((chosen == later).float().mean())
    assert agree == pytest.approx(float((want**2).sum()), abs=0.03), "steps draw apart"


def test_checkpoint_habits_do_not_change_the_tokens() -> None:
    model, want = never_ending("qwen2"), quiet(never_ending("qwen2"), prompts())
    settings = {"repetition_penalty": 1.8, "num_beams": 3, "do_sample": True, "min_new_tokens": 12, "max_length": 5}
    for name, value in (settings | {"no_repeat_ngram_size": 1, "suppress_tokens": list(range(15, 50))}).items():
        setattr(model.generation_config, name, value)
    habits = model.generation_config
    assert quiet(model, prompts()) == want
    assert model.generation_config is habits and habits.repetition_penalty == 1.8


def test_end_tokens_of_the_checkpoint_and_of_the_tokenizer_both_end() -> None:
    model = never_ending("llama")
    (free,) = quiet(model, prompts()[:1])
    written = response(free)
    assert not free.stopped and len(written) == 12
    model.generation_config.eos_token_id = [7, written[5]]
    (ended,) = quiet(model, prompts()[:1])
    assert ended.stopped and response(ended) == written[: written.index(written[5]) + 1]


def test_limits_of_a_response(reasoner: LoadedModel) -> None:
    model, words = reasoner
    (problem,) = tasks.sample("parity", 4, 1)
    n_gold = len(words(problem.chain, add_special_tokens=False)["input_ids"])
    (whole,) = generate(model, words, [problem], progress=False)
    assert whole.stopped and len(response(whole)) == n_gold + 1
    (cut,) = generate(model, words, [problem], max_new_tokens=n_gold - 2, progress=False)
    assert not cut.stopped and response(cut) == response(whole)[: n_gold - 2]
    (exact,) = generate(model, words, [problem], max_new_tokens=n_gold + 1, progress=False)
    assert replace(exact, info=whole.info) == whole and exact.info["max_new_tokens"] == n_gold + 1
    (one,) = generate(model, words, [problem], max_new_tokens=1, progress=False)
    assert response(one) == response(whole)[:1]


def test_each_row_keeps_its_own_limit_in_a_mixed_batch() -> None:
    """Each limit is half as many again as the gold chain has, plus 16, also where another row may go on."""
    model = never_ending("llama", vocab_size=400)
    words, problems = load_model("reasoner").tokenizer, [tasks.sample("clf", h, 1)[0] for h in (2, 6)]
    sizes = [len(words(p.chain, add_special_tokens=False)["input_ids"]) for p in problems]
    traces = generate(model, words, problems, batch_size=2, progress=False)
    assert [len(response(t)) for t in traces] == [n + n // 2 + 16 for n in sizes]


def test_no_row_runs_out_of_learned_positions_because_of_another() -> None:
    model = never_ending("gpt2", n_positions=24)
    traces = quiet(model, prompts(), max_new_tokens=None)  # prompts of 14, 10, 5 and 2 tokens
    assert [len(t) for t in traces] == [24, 24, 24, 24]
    assert [response(t) for t in traces] == [
        greedy(model, prompt_ids(text), 24 - prompt_ids(text).shape[1]).tolist() for text in prompts()
    ]
    assert all(len(score(model, t).logprob) == 24 for t in traces)


def test_chat_templates_are_for_strings_and_natural_problems_alone(reasoner: LoadedModel) -> None:
    model, words = load_model("reasoner")
    words.chat_template = (
        "{% for m in messages %}hugo {{ m.content }} ann {% endfor %}{% if add_generation_prompt %}zoe{% endif %}"
    )
    short, natural = tasks.sample("parity", 2, 1)[0], tasks.sample("parity", 2, 1, rendering="natural")[0]
    traces = generate(model, words, ["olga stays", short, natural], max_new_tokens=2, progress=False)
    assert traces[0].prompt == "hugo olga stays ann zoe"
    assert traces[0].input_ids[0] == words.convert_tokens_to_ids("hugo"), "no second set of special tokens"
    assert traces[1].prompt.strip() == short.prompt.strip()
    assert traces[1].input_ids[0] == words.bos_token_id
    assert traces[2].prompt.startswith("hugo") and traces[2].prompt.endswith("zoe")
    assert traces[2].problem == natural and traces[0].problem is None and traces[0].is_correct is None
    plain = generate(*reasoner, ["olga stays"], max_new_tokens=2, progress=False)
    assert plain[0].prompt == "olga stays" and plain[0].input_ids[0] == words.bos_token_id


def test_what_was_asked_wrongly_is_said(reasoner: LoadedModel) -> None:
    long = " ".join(["ann"] * 1600)
    wrong = [
        (["ann", " \n"], {}, "Prompt 1 is empty"),
        (["ann", long], {}, "Prompt 1 has 1601 tokens, but the model has positions for 1536"),
        (["ann"], {"temperature": -0.5}, "temperature must be 0 .* got -0.5"),
        (["ann"], {"temperature": float("nan")}, "got nan"),
        (["ann"], {"temperature": float("inf")}, "got inf"),
        (["ann"], {"batch_size": 0}, "batch_size must be at least 1; got 0"),
        (["ann"], {"max_new_tokens": 0}, "max_new_tokens must be at least 1; got 0"),
    ]
    for asked, options, says in wrong:
        with pytest.raises(BadInput, match=says):
            generate(*reasoner, asked, progress=False, **options)
    bare = word_tokenizer(WORDS, 256)
    bare.backend_tokenizer.post_processor = None
    bare.backend_tokenizer.normalizer = None
    with pytest.raises(BadInput, match=r"Prompt 0 has no tokens"):
        generate(tiny("llama"), _Wordless(bare), ["\u200b"], progress=False)
    assert generate(*reasoner, [], progress=False) == []


class _Wordless:
    """A tokenizer that drops every character it does not know."""

    chat_template = None

    def __init__(self, inner: PreTrainedTokenizerBase):
        self.inner = inner

    def __call__(self, text: str, **options: object) -> dict[str, list[int]]:
        return {"input_ids": []}


def test_traces_arrive_batch_by_batch_and_in_order_at_the_end(reasoner: LoadedModel) -> None:
    problems = [tasks.sample("clf", h, 1)[0] for h in (2, 5, 3)]
    arrived: list[tuple[int, Trace]] = []
    traces = generate(*reasoner, problems, batch_size=1, progress=False, on_traces=arrived.extend)
    assert [i for i, _ in arrived] == [1, 2, 0], "the longest answers first"
    assert [trace for _, trace in sorted(arrived, key=lambda pair: pair[0])] == traces


def test_a_repair_is_attached_while_decoding_and_while_scoring() -> None:
    heads = {(0, 1), (1, 0), (2, 2)}
    model, repair = never_ending("llama"), Silencing(heads)
    want = quiet(without_heads(model, "llama", heads), prompts())
    plain = quiet(model, prompts())
    got = quiet(model, prompts(), repair=repair)
    assert got == want and [response(t) for t in got] != [response(t) for t in plain]
    for trace in got:
        found = score(model, trace, repair=repair)
        assert found.argmax[trace.response_start :].tolist() == response(trace)
        assert_close(found.logprob[1:], score(without_heads(model, "llama", heads), trace).logprob[1:])
    assert repair.n_attached == repair.n_left == 1 + len(got)
    assert quiet(model, prompts()) == plain and not model.base_model._forward_pre_hooks


def test_a_repair_is_taken_away_when_decoding_fails() -> None:
    model, repair = never_ending("llama").train(), Silencing({(0, 1)})

    def failing(done: list[tuple[int, Trace]]) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quiet(model, prompts(), repair=repair, on_traces=failing)
    assert repair.n_left == 1 and model.training and not model.base_model._forward_pre_hooks
    assert model.generation_config.eos_token_id is None


def test_training_mode_is_kept_and_dropout_does_not_count() -> None:
    model = never_ending("gpt2")
    want = quiet(model, prompts())
    model.train()
    assert quiet(model, prompts()) == want
    assert_equal(score(model, want[0]).logprob[1:], score(model.eval(), want[0]).logprob[1:])
    model.train().transformer.h[0].eval()
    score(model, want[0])
    assert model.training and not model.transformer.h[0].training
    assert all(weight.grad is None for weight in model.parameters())


def trace_of(ids: Tensor) -> Trace:
    n = len(ids)
    return Trace(ids, (0, 1), (1, n), (n, n), [(0, 1), (1, n)] if n > 1 else [(0, 1)])


@torch.no_grad()
def plain_scores(model: PreTrainedModel, trace: Trace) -> TokenScores:
    log_probs = model(input_ids=trace.input_ids[None]).logits[0].log_softmax(-1)
    logprob = log_probs[torch.arange(len(trace) - 1), trace.input_ids[1:]]
    return TokenScores(logprob, -(log_probs.exp() * log_probs).sum(-1)[:-1], log_probs.argmax(-1)[:-1])


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_equal_the_models_own_log_softmax(family: str) -> None:
    model = tiny(family)
    traces = [trace_of(random_ids(1, n, seed=n)[0]) for n in (12, 19, 1, 2)]
    for trace, got in zip(traces, score_all(model, traces), strict=True):
        want = plain_scores(model, trace)
        assert len(got.logprob) == len(got.entropy) == len(got.argmax) == len(trace)
        assert got.logprob[0].isnan() and got.entropy[0].isnan() and int(got.argmax[0]) == -1
        assert got.argmax.dtype == torch.int64
        if len(trace) > 1:
            assert_close(got.logprob[1:], want.logprob, f"{family} log-probability", TOLERANCE)
            assert_close(got.entropy[1:], want.entropy, f"{family} entropy", TOLERANCE)
            assert_equal(got.argmax[1:], want.argmax, f"{family} argmax")
            alone = score(model, trace)
            assert_close(alone.logprob[1:], want.logprob, f"{family} alone", TOLERANCE)


@pytest.mark.parametrize("at_once", [1, D_VOCAB * 7, D_VOCAB * 2**20])
def test_unembedding_in_pieces_changes_nothing(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model, trace = tiny("gemma2"), trace_of(random_ids(1, 23)[0])
    monkeypatch.setattr(scoring, "LOGITS_AT_ONCE", at_once)
    want, got = plain_scores(model, trace), score(model, trace)
    assert_close(got.logprob[1:], want.logprob, "log-probability", TOLERANCE)
    assert_close(got.entropy[1:], want.entropy, "entropy", TOLERANCE)
    assert_equal(got.argmax[1:], want.argmax, "argmax")


@pytest.mark.parametrize("family", ["qwen3", "mistral"])
def test_a_long_trace(family: str) -> None:
    model, trace = tiny(family, max_position_embeddings=700), trace_of(random_ids(1, 600)[0])
    assert_close(score(model, trace).logprob[1:], plain_scores(model, trace).logprob, family, TOLERANCE)


def test_certainty_and_impossibility_have_no_entropy_and_no_nan() -> None:
    """Logits of minus infinity take part neither in the entropy nor spoil it."""
    model = tiny("llama")
    model.lm_head.register_forward_hook(lambda m, args, out: out.masked_fill(torch.arange(D_VOCAB) != 5, -torch.inf))
    got = score(model, trace_of(torch.tensor([3, 5, 6])))
    assert got.entropy[1:].tolist() == [0.0, 0.0] and got.logprob[1:].tolist() == [0.0, -float("inf")]


def test_traces_of_another_model_are_refused() -> None:
    model = tiny("gpt2", n_positions=16)
    with pytest.raises(BadTrace, match=r"token id 61, but the model's vocabulary has 61 entries"):
        score(model, trace_of(torch.tensor([3, 61, 4])))
    with pytest.raises(BadTrace, match=r"The trace has 17 tokens, but the model has positions for 16"):
        score(model, trace_of(random_ids(1, 17)[0]))
    assert score_all(model, []) == []


def test_thinking_between_markers_of_ones_own(reasoner: LoadedModel) -> None:
    model, words = reasoner
    problems = tasks.sample("clf", 4, 2)
    plain = generate(model, words, problems, progress=False)
    own = generate(model, words, problems, markers=("start", "end"), progress=False)
    for trace, without in zip(own, plain, strict=True):
        assert trace.input_ids.tolist() == without.input_ids.tolist()
        read = Trace.from_ids(words, trace.input_ids, trace.response_start, markers=("start", "end"))
        assert (trace.thinking, trace.summary) == (read.thinking, read.summary) != (without.thinking, without.summary)
    with pytest.raises(BadInput, match=r"must differ, got 'start' twice"):
        generate(model, words, problems, markers=("start", "start"), progress=False)
