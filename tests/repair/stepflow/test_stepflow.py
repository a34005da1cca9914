"""StepFlow as a repair: what it does while decoding and what `score` sees are one thing; it is saved; it is tuned."""

import pickle

import pytest
import torch

from chainwright import tasks
from chainwright._errors import BadInput
from chainwright.decode.run import generate
from chainwright.edits import Bridge, Momentum, edit
from chainwright.models import load_model
from chainwright.models.load import load_tokenizer
from chainwright.repair import Repair, StepFlow
from chainwright.scoring import score, score_all
from chainwright.traces import ONE_LINE_ONE_STEP, LiveSteps, Span, Trace
from families import FAMILIES, random_ids, tiny
from reference import assert_close
from step_runs import Words, rows_of, uncached

every_family = pytest.mark.parametrize("family", FAMILIES)
STRONG = {"bridge_layers": (0, 1), "momentum_layers": (3,), "tau_max": 0.6, "alpha": 0.5}


@pytest.fixture(scope="module")
def reasoner():
    return load_model("reasoner")


@pytest.fixture(scope="module")
def problems():
    return [p for task in ("clf", "parity", "moas") for p in tasks.sample(task, 8, 3, seed=3, rendering="short")]


def test_greedy_tokens_are_what_score_would_choose(reasoner, problems) -> None:
    model, tokenizer = reasoner
    repair = StepFlow(**STRONG, into_summary=True)
    traces = generate(model, tokenizer, problems, repair=repair, progress=False, batch_size=4)
    # rows of a mixed batch are decoded until its longest answer may end, and cut afterwards
    assert repair.cost.n_sites > 100 and repair.cost.n_tokens >= sum(len(t.response_ids) for t in traces)
    plain = generate(model, tokenizer, problems, progress=False)
    assert [t.response for t in traces] != [t.response for t in plain]
    for trace, scores in zip(traces, score_all(model, traces, repair=repair), strict=True):
        start = trace.response_start
        assert torch.equal(scores.argmax[start:], trace.input_ids[start:])
        assert torch.equal(score(model, trace, repair=repair).argmax[start:], trace.input_ids[start:])
    one_by_one = generate(model, tokenizer, problems, repair=repair, progress=False, batch_size=1)
    assert [t.response for t in one_by_one] == [t.response for t in traces]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_beams": 2},
        {"prompt_lookup_num_tokens": 3},
        {"use_cache": False},
        {"use_cache": False, "num_beams": 2},
        {"prefill_chunk_size": 7},
    ],
    ids=str,
)
def test_plain_generate_works_with_it(reasoner, problems, options: dict) -> None:
    model, tokenizer = reasoner
    repair = StepFlow(**STRONG)
    ids = torch.tensor([tokenizer(problems[0].prompt)["input_ids"]])
    with repair.attached(model):
        assert "generate" not in model.__dict__
        out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=60, do_sample=False, **options)
    assert not model.base_model._forward_pre_hooks and not model._forward_pre_hooks and not model._forward_hooks
    trace = Trace.from_ids(tokenizer, out[0], ids.shape[1], problem=problems[0])
    if "num_beams" not in options:
        start = trace.response_start
        assert torch.equal(score(model, trace, repair=repair).argmax[start:], trace.input_ids[start:])


@every_family
def test_decoding_on_every_family_equals_score(family: str) -> None:
    model, steps = tiny(family), Words()
    rows, n_question = rows_of()
    repair = StepFlow((0, 1), (2,), 0.5, 1.0, tokenizer=steps, min_chars=1, style="think")
    how = LiveSteps(steps, "think", ONE_LINE_ONE_STEP)
    with edit(model, Bridge((0, 1), how, 0.5, n_question), Momentum((2,), how, 1.0, n_question=n_question)):
        want = uncached(model, rows).log_softmax(-1)
    for row, n, logprobs in zip(rows, n_question, want, strict=True):
        trace = Trace.from_ids(Words(), row, n, style="think", segment_config=ONE_LINE_ONE_STEP)
        found = score(model, trace, repair=repair).logprob[1:]
        at = logprobs[-len(row) : -1].gather(-1, row[1:, None])[:, 0]
        assert_close(found, at, family, 1e-3)
        ids = row[None, :n]
        with repair.attached(model):
            out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=9, do_sample=False,
                                 eos_token_id=None, pad_token_id=0)[0]  # fmt: skip
        decoded = Trace.from_ids(Words(), out, n, style="think", segment_config=ONE_LINE_ONE_STEP)
        assert torch.equal(score(model, decoded, repair=repair).argmax[n:], out[n:])
    assert repair.cost.n_sites > 0


def decoded(model, n_new: int, **options) -> tuple[list[int], int]:
    prompt = torch.cat([random_ids(1, 8, 3)[0].clamp(min=9), torch.tensor([6])])[None]
    repair = StepFlow((0, 1), (2,), 0.6, 1.5, style="think", min_chars=1, tokenizer=Words())
    with repair.attached(model) as cost:
        out = model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=n_new,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
            **options,
        )
    return out[0].tolist(), cost.n_sites


def test_a_static_cache_changes_nothing() -> None:
    model = tiny("llama")
    want, n_changed = decoded(model, 14)
    assert n_changed > 20
    assert decoded(model, 14, cache_implementation="static") == (want, n_changed)


@pytest.mark.slow
def test_a_compiled_model_with_a_static_cache_is_followed() -> None:
    model = tiny("llama")
    want = decoded(model, 8)
    torch._dynamo.reset()
    try:
        model.compile(backend="eager")
        assert decoded(model, 8, cache_implementation="static") == want
    finally:
        torch._dynamo.reset()


def test_a_model_without_a_tokenizer_is_scored_by_the_spans_of_the_trace() -> None:
    model = tiny("llama")
    ids = random_ids(1, 20)[0]
    spans = [Span(0, 5), Span(5, 9), Span(9, 14), Span(14, 20)]
    trace = Trace(ids, spans[0], Span(5, 14), Span(14, 20), spans)
    repair = StepFlow((0,), (2,), 0.6, 1.0, into_summary=True)
    found, own = score(model, trace, repair=repair).logprob, score(model, trace).logprob
    assert_close(found[1:6], own[1:6], "up to the first token of the thinking", 1e-6)
    assert float((found[6:] - own[6:]).abs().max()) > 1e-3
    with pytest.raises(BadInput, match=r"pass StepFlow\(\.\.\., tokenizer=\.\.\.\)"), repair.attached(model):
        pass


def test_the_tokenizer_is_read_once_per_model(reasoner, problems, monkeypatch) -> None:
    read, real = [], load_tokenizer
    monkeypatch.setattr(
        "chainwright.repair.stepflow.repair.load_tokenizer", lambda name: read.append(name) or real(name)
    )
    model, tokenizer = reasoner
    repair = StepFlow(**STRONG)
    traces = generate(model, tokenizer, problems[:2], repair=repair, progress=False)
    score_all(model, traces, repair=repair, batch_size=1)
    generate(model, tokenizer, problems[:1], repair=repair, progress=False)
    assert len(read) == 1
    again = pickle.loads(pickle.dumps(repair))
    assert generate(model, tokenizer, problems[:2], repair=again, progress=False) == traces and len(read) == 2


def test_nothing_to_do_changes_no_bit(reasoner, problems) -> None:
    model, tokenizer = reasoner
    trace = generate(model, tokenizer, problems[:1], progress=False)[0]
    own = score(model, trace)
    for repair in (StepFlow((), ()), StepFlow(tau_max=0.0, alpha=0.0)):
        found = score(model, trace, repair=repair)
        assert torch.equal(found.logprob[1:], own.logprob[1:])


def test_it_comes_back_from_its_folder(reasoner, tmp_path) -> None:
    repair = StepFlow((2,), None, 0.3, 0.2, 4, into_summary=True, style="plain", min_chars=7)
    again = Repair.from_pretrained(repair.save_pretrained(tmp_path / "repair"))
    assert isinstance(again, StepFlow) and again.settings() == repair.settings()
    assert again.layers(8) == ((2,), (6, 7)) and StepFlow().layers(8) == ((0, 1), (6, 7))
    assert StepFlow().layers(3) == ((0,), (2,))
    assert "In layers [2] the thinking gives the question" in again.describe()
    assert "at least 0.3 of each head's attention. In the top quarter" in again.describe()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tau_max": 1.5}, "tau_max must be at least 0 and below 1; got 1.5"),
        ({"window": 0}, "window must be at least 1 token"),
        ({"alpha": float("nan")}, "alpha must be a finite number; got nan"),
        ({"style": "thoughts"}, "Unknown trace style 'thoughts'"),
    ],
)
def test_bad_settings_are_refused(options: dict, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        StepFlow(**options)


def test_a_layer_that_is_not_there_is_refused(reasoner) -> None:
    with pytest.raises(BadInput, match="Layer 9 does not exist"), StepFlow((9,)).attached(reasoner.model):
        pass
    assert "generate" not in reasoner.model.__dict__


def test_tuning_keeps_what_gains_and_tells_what_it_tried(reasoner) -> None:
    model, tokenizer = reasoner
    chosen = tasks.sample("clf", 13, 6, seed=40, rendering="short")
    found = StepFlow.tune(model, tokenizer, chosen, taus=(0.3,), alphas=(0.06,), layer_sets=[(0,), (2,)])
    assert len(found.origin.figures) == 4 and found.origin.model["model"] == "reasoner"
    assert found.origin.note.startswith("Whole chains right on 3 problems to choose on and 3 held out; without")
    rights = [row["chosen on, right"] for row in found.origin.figures]
    plain = generate(model, tokenizer, chosen, progress=False)
    n_plain = sum(t.first_error is None for t in plain[::2])
    again = generate(model, tokenizer, chosen, repair=found, progress=False)
    if "not kept" in found.origin.note:
        assert (found.bridge_layers, found.momentum_layers) == ((), ())
    else:
        assert sum(t.first_error is None for t in again[::2]) == max([n_plain, *rights])
    with pytest.raises(
        BadInput, match="Tuning needs at least two problems, one half to choose on, one to check; got 1"
    ):
        StepFlow.tune(model, tokenizer, chosen[:1])


@pytest.mark.parametrize(
    ("plain", "tried", "is_kept"),  # which of four chains are right; the first and third are chosen on
    [("0110", "1010", False), ("0110", "1011", True), ("0010", "1010", True), ("0010", "1111", True)],
)
def test_what_loses_on_the_held_out_half_is_not_kept(
    reasoner, monkeypatch, plain: str, tried: str, is_kept: bool
) -> None:
    model, tokenizer = reasoner
    asked = tasks.sample("clf", 3, 4, seed=40)

    def answers(*args, repair=None, **options):
        rights = plain if repair is None else tried
        texts = [p.chain if right == "1" else "none" for p, right in zip(asked, rights, strict=True)]
        return [Trace.from_text(tokenizer, p.prompt, t, problem=p) for p, t in zip(asked, texts, strict=True)]

    monkeypatch.setattr("chainwright.repair.stepflow.repair.generate", answers)
    found = StepFlow.tune(model, tokenizer, asked, taus=(0.3,), alphas=(), layer_sets=[(2,)])
    assert found.bridge_layers == ((2,) if is_kept else ())
    assert ("so they are not kept" in found.origin.note) is not is_kept


def test_layers_may_have_floors_of_their_own(reasoner, problems, tmp_path) -> None:
    model, tokenizer = reasoner
    repair = StepFlow((1, 2), (3,), (0.2, 0.6), alpha=0.5)
    traces = generate(model, tokenizer, problems, repair=repair, progress=False)
    steps = LiveSteps(tokenizer, "auto", ONE_LINE_ONE_STEP)
    lengths = tuple(trace.response_start for trace in traces[:1])
    with edit(
        model,
        Bridge((1,), steps, 0.2, lengths),
        Bridge((2,), steps, 0.6, lengths),
        Momentum((3,), steps, 0.5, n_question=lengths),
    ):
        by_hand = score(model, traces[0])
    assert_close(score(model, traces[0], repair=repair).logprob[1:], by_hand.logprob[1:])
    repair.save_pretrained(tmp_path / "it")
    again = Repair.from_pretrained(tmp_path / "it")
    assert again.tau_max == (0.2, 0.6) and "at least 0.2 and 0.6 of" in repair.describe()
    with pytest.raises(BadInput, match=r"got 1 of them and bridge_layers=\(1, 2\)"):
        StepFlow((1, 2), (), (0.3,))
    with pytest.raises(BadInput, match="bridge_layers=None"):
        StepFlow(tau_max=(0.3,))


def test_single_heads_may_have_floors_of_their_own(reasoner, problems, tmp_path) -> None:
    model, tokenizer = reasoner
    heads = ((1, 0, 0.4), (1, 3, 0.7), (2, 2, 0.6))
    repair = StepFlow(None, (3,), alpha=0.5, bridge_heads=heads)
    traces = generate(model, tokenizer, problems, repair=repair, progress=False)
    assert repair.cost.n_sites > 0 and repair.layers(4) == ((1, 2), (3,))
    steps = LiveSteps(tokenizer, "auto", ONE_LINE_ONE_STEP)
    lengths = tuple(trace.response_start for trace in traces[:1])
    bridge = Bridge((), steps, n_question=lengths, heads=heads)
    with edit(model, bridge, Momentum((3,), steps, 0.5, n_question=lengths)):
        by_hand = score(model, traces[0])
    assert_close(score(model, traces[0], repair=repair).logprob[1:], by_hand.logprob[1:])
    start = traces[0].response_start
    assert torch.equal(by_hand.argmax[start:], traces[0].input_ids[start:])
    repair.save_pretrained(tmp_path / "it")
    again = Repair.from_pretrained(tmp_path / "it")
    assert again.bridge_heads == heads and "L1H0 0.4, L1H3 0.7, L2H2 0.6" in again.describe()
    with pytest.raises(BadInput, match=r"pass bridge_layers or bridge_heads, and not both \(got layers \[1\]\)"):
        StepFlow((1,), bridge_heads=heads)
    assert "bridge_heads" not in StepFlow((1,)).settings()
