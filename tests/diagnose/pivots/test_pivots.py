"""Pivots of traces, with completers whose values are known exactly and with the bundled model."""

import json
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from random import Random
from typing import ClassVar

import pytest
import torch

from chainwright import tasks
from chainwright._errors import BadInput, BadTrace
from chainwright._finding import Finding
from chainwright.decode.run import generate
from chainwright.decode.sampling import Sampling
from chainwright.diagnose import (
    Endpoint,
    GoldChain,
    ModelCompleter,
    OtherModel,
    PivotConfig,
    Pivots,
    find_pivots,
    with_first_error,
)
from chainwright.diagnose.pivots.band import by_rate
from chainwright.diagnose.pivots.completers import Asked, Completer, Ending, judged, prefix_text, says_nothing_wrong
from chainwright.diagnose.pivots.run import pivots
from chainwright.models.load import LoadedModel, load_model
from chainwright.tasks import Problem
from chainwright.traces import Trace

CONFIG = PivotConfig(temperature=1.0)


@cache
def reasoner() -> LoadedModel:
    return load_model("reasoner", device="cpu")


@cache
def wrong_trace(task: str = "clf", hops: int = 5, at: int = 12) -> Trace:
    """Return a gold chain in which one token is another, and the rest is as it was."""
    _, tokenizer = reasoner()
    (problem,) = tasks.sample(task, hops, 1, rendering="short")
    right = Trace.from_text(tokenizer, problem.prompt, problem.chain, problem=problem)
    ids = [*right.input_ids.tolist(), int(tokenizer.eos_token_id)]
    # the answer is the last word of the chain
    other = tokenizer("9", add_special_tokens=False)["input_ids"][0]
    ids[-2] = other if ids[-2] != other else other - 1
    ids[right.response_start + at] = other if ids[right.response_start + at] != other else other - 1
    return Trace.from_ids(tokenizer, ids, right.response_start, problem=problem)


class Planted(Completer):
    """Ends right with a probability that depends on the length of the prefix alone."""

    name = "planted"

    def __init__(self, high: float, low: float, at: int, cut: float = 0.0, saves: int | None = None) -> None:
        self.high, self.low, self.at, self.cut, self.saves = high, low, at, cut, saves
        self.n_asked = 0

    def complete(self, asked: Sequence[Asked], seed: int) -> list[list[Ending]]:
        self.n_asked += sum(each.n for each in asked)
        return [[self._one(each, each.first + i, seed) for i in range(each.n)] for each in asked]

    def _one(self, asked: Asked, number: int, seed: int) -> Ending:
        draw = Random(f"{seed}/{asked.prefix}/{number}")
        ids = asked.trace.input_ids.tolist()
        if draw.random() < self.cut:
            return Ending("cut", n_tokens=4)
        is_saved = self.saves is not None and asked.prefix == (*ids[: self.at], self.saves)
        p = self.high if len(asked.prefix) <= self.at or is_saved else self.low
        right = draw.random() < p
        return Ending("right" if right else "wrong", "1" if right else "2", ids[self.at], 4)


def test_a_planted_pivot_is_found_with_its_values_and_cost() -> None:
    trace = wrong_trace()
    at = trace.response_start + 12
    completer = Planted(1.0, 0.0, at)
    found = pivots(*reasoner(), trace, config=CONFIG, completer=completer, progress=False)
    (pivot,), (row,) = found.pivots, found.rows
    assert (pivot["position"], pivot["end"], pivot["is_first_error"], pivot["is_certain"]) == (at, at + 1, True, True)
    assert pivot["token_id"] == int(trace.input_ids[at])
    assert pivot["before"]["value"] == 1.0 and pivot["after"]["value"] == 0.0
    assert pivot["before"]["low"] > pivot["after"]["high"] - 0.2
    assert (row["status"], row["position"]) == ("found", at)
    assert row["n_continuations"] == completer.n_asked and row["n_tokens"] == 4 * completer.n_asked
    assert trace.steps[row["step"]].start <= at < trace.steps[row["step"]].end
    assert "planted" in found.summary() and f"token {at}" in found.summary()
    assert found.config["completer"] == "planted" and found.config["drop"] == CONFIG.drop


def test_the_alternative_that_saves_the_response_is_the_expected_one() -> None:
    trace = wrong_trace()
    at = trace.response_start + 12
    with torch.no_grad():
        tokens = reasoner().model(input_ids=trace.input_ids[None, :at]).logits[0, -1].softmax(-1)
    likely = [int(i) for i in tokens.argsort(descending=True) if int(i) != int(trace.input_ids[at])]
    found = pivots(*reasoner(), trace, config=CONFIG, completer=Planted(1.0, 0.0, at, saves=likely[0]), progress=False)
    (pivot,) = found.pivots
    assert pivot["expected_id"] == likely[0]
    by_token = {a["token_id"]: a for a in pivot["alternatives"]}
    assert by_token[likely[0]]["value"] == 1.0 and by_token[likely[0]]["n"] == CONFIG.n_per_alternative
    assert by_token[likely[0]]["p"] == pytest.approx(float(tokens[likely[0]]), abs=1e-5)
    assert by_token[likely[1]]["value"] == 0.0
    fixed = with_first_error(reasoner().tokenizer, trace, found)
    assert fixed.first_error_position == at and fixed.first_error is not None
    assert (fixed.first_error.error_type, fixed.first_error.slot) == ("pivot", None)
    assert fixed.response is not None
    assert fixed.response[fixed.first_error.start : fixed.first_error.end].strip() == fixed.first_error.got.strip()
    assert fixed.first_error.expected == by_token[likely[0]]["token"]


def test_cut_and_unread_continuations_are_counted_apart() -> None:
    trace = wrong_trace()
    found = pivots(
        *reasoner(),
        trace,
        config=CONFIG.replace(n_alternatives=0),
        completer=Planted(1.0, 0.0, trace.response_start + 12, cut=0.3),
        progress=False,
    )
    (row,) = found.rows
    assert row["status"] == "found" and row["n_cut"] > 0
    assert int(found.n_cut.sum()) == row["n_cut"]
    assert int((found.n_right + found.n_wrong).sum()) == row["n_continuations"] - row["n_cut"]
    assert "cut by the token limit" in found.summary()


def test_many_traces_are_searched_together_and_each_as_alone() -> None:
    traces = [wrong_trace(at=at) for at in (5, 12, 17)]
    completer = Planted(0.9, 0.1, traces[0].response_start + 12)
    together = find_pivots(*reasoner(), traces, config=CONFIG, completer=completer, progress=False)
    alone = [pivots(*reasoner(), t, config=CONFIG, completer=completer, progress=False) for t in traces]
    assert together.rows == [{**one.rows[0], "trace": i} for i, one in enumerate(alone)]
    joined = Pivots.joined(alone)
    assert joined.rows == together.rows and torch.equal(joined.length, together.length)
    assert joined.pivots == together.pivots and joined.ids_of(2) == traces[2].input_ids.tolist()
    assert torch.equal(joined.trace, together.trace)


def test_a_finding_is_saved_whole(tmp_path: Path) -> None:
    trace = wrong_trace()
    found = pivots(
        *reasoner(), trace, config=CONFIG, completer=Planted(1.0, 0.0, trace.response_start + 12), progress=False
    )
    found.save(tmp_path / "pivots")
    loaded = Finding.load(tmp_path / "pivots")
    assert isinstance(loaded, Pivots)
    assert loaded.rows == found.rows and loaded.pivots == found.pivots and loaded.summary() == found.summary()
    assert loaded.tallies(0) == found.tallies(0) and loaded.first_error() == found.first_error()
    assert loaded.to_frame().equals(found.to_frame())
    assert len(found.plot().data) == 1


def test_steps_that_change_the_answers_are_worth_something() -> None:
    trace = wrong_trace()
    config = PivotConfig(temperature=1.0, per_boundary=6, to="step")
    found = pivots(
        *reasoner(), trace, config=config, completer=Planted(1.0, 0.0, trace.response_start + 12), progress=False
    )
    worth = found.step_worth()
    assert [row["distance"] for row in worth if row["distance"]] == [1.0]
    changed = next(row for row in worth if row["distance"])
    assert changed["start"] <= trace.response_start + 12 < changed["end"] and changed["change"] == -1.0


def test_the_models_own_continuations_are_those_of_generate_from_each_prefix() -> None:
    """The reference asks `generate` for one continuation at a time, each with the whole prefix as its prompt."""
    from chainwright.decode.drawing import processors
    from chainwright.diagnose.pivots.continuations import row_number

    model, tokenizer = reasoner()
    trace = wrong_trace("parity", 3, 6)
    sampling, limit = Sampling(temperature=1.3), 24
    completer = ModelCompleter(model, tokenizer, sampling)
    prefixes = [tuple(trace.input_ids[:n].tolist()) for n in (trace.response_start, trace.response_start + 7)]
    found = completer.complete([Asked(trace, prefix, 2, 3, limit) for prefix in prefixes], seed=4)
    for prefix, endings in zip(prefixes, found, strict=True):
        ids = torch.tensor([prefix])
        for number, ending in zip((2, 3, 4), endings, strict=True):
            drawn = processors(sampling, [row_number(prefix, number)], 4, torch.ones_like(ids))
            made = model.generate(ids, max_new_tokens=limit, do_sample=False, logits_processor=drawn, pad_token_id=0)
            written = made[0, len(prefix) :].tolist()
            stopped = written[-1] == tokenizer.eos_token_id
            assert ending == judged(tokenizer, trace, [*prefix, *written], stopped, len(prefix))


def test_the_model_itself_finds_the_token_that_was_planted_in_its_chain() -> None:
    trace = wrong_trace("llc", 3, 6)
    found = pivots(*reasoner(), trace, config=CONFIG, progress=False)
    assert found.rows[0]["status"] == "found"
    assert found.config["completer"] == "reasoner" and found.config["sampling"]["temperature"] == 1.0
    again = pivots(*reasoner(), trace, config=CONFIG, progress=False)
    assert again.rows == found.rows and again.pivots == found.pivots


def test_the_gold_chain_finds_the_first_wrong_token_with_one_continuation_per_prefix() -> None:
    traces = [wrong_trace(at=at) for at in (5, 12, 17)]
    found = find_pivots(*reasoner(), traces, config=CONFIG, completer=GoldChain(reasoner().tokenizer), progress=False)
    assert [row["position"] for row in found.rows] == [
        t.response_start + at for t, at in zip(traces, (5, 12, 17), strict=True)
    ]
    assert all(row["n_continuations"] <= 16 for row in found.rows)


@pytest.mark.parametrize("task", ["parity", "clf", "moas", "objc", "llc", "nums", "mdm"])
@pytest.mark.parametrize("rendering", ["short", "natural"])
def test_every_beginning_of_a_gold_chain_says_nothing_wrong(task: str, rendering: tasks.Rendering) -> None:
    (problem,) = tasks.sample(task, 2, 1, rendering=rendering)
    assert all(says_nothing_wrong(problem, problem.chain[:n]) for n in range(0, len(problem.chain) + 1, 3))


@pytest.mark.parametrize("rendering", ["short", "natural"])
def test_a_chain_with_a_wrong_slot_says_something_wrong_once_the_slot_is_over(rendering: tasks.Rendering) -> None:
    (problem,) = tasks.sample("moas", 4, 1, rendering=rendering)
    slot = problem.slots[5]
    wrong = problem.chain[: slot.start] + "7" * len(slot.value) + problem.chain[slot.end :]
    assert says_nothing_wrong(problem, wrong[: slot.start])
    line_end = wrong.index("\n", slot.end) + 1
    assert not says_nothing_wrong(problem, wrong[: line_end + 1])


def test_another_model_continues_from_ids_where_tokens_are_the_same_and_from_text_where_not() -> None:
    model, tokenizer = reasoner()
    trace = wrong_trace("llc", 3, 6)
    sampling = Sampling(temperature=1.0)
    same = OtherModel(model, tokenizer, sampling, written_with=tokenizer)
    asked = [Asked(trace, tuple(trace.input_ids[: trace.response_start + 5].tolist()), 0, 3, 30)]
    assert same.complete(asked, 1) == ModelCompleter(model, tokenizer, sampling).complete(asked, 1)
    assert same.settings()["continues_from"] == "token ids"
    other_model, other_tokenizer = load_model("compass", device="cpu")
    other = OtherModel(other_model, other_tokenizer, sampling, written_with=tokenizer)
    assert other.settings()["continues_from"] == "text" and other.name == "compass"
    question, text = other._texts(asked[0])
    assert other.prefix_of(asked[0]) == (*question, *other_tokenizer(text, add_special_tokens=False)["input_ids"])
    assert text == prefix_text(tokenizer, asked[0])
    assert len(other.complete(asked, 1)[0]) == 3


class _Server(BaseHTTPRequestHandler):
    asked: ClassVar[list[dict]] = []

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.asked.append({"path": self.path, **body})
        if body["model"] == "unknown":
            self._send(404, {"error": {"message": "no such model"}})
            return
        n = 1 if body["model"] == "lazy" else body["n"]
        texts = [(" answer 7", "stop") if i % 2 else (" and so on", "length") for i in range(n)]
        chat = [{"index": i, "message": {"role": "assistant", "content": t}, "finish_reason": r}
                for i, (t, r) in enumerate(texts)]  # fmt: skip
        plain = [{"index": i, "text": t, "finish_reason": r, "logprobs": None} for i, (t, r) in enumerate(texts)]
        is_chat = self.path.endswith("/chat/completions")
        self._send(200, {"id": "x", "object": "o", "created": 0, "model": "m", "choices": chat if is_chat else plain})

    def _send(self, status: int, value: dict) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[str]:
    _Server.asked = []
    made = ThreadingHTTPServer(("127.0.0.1", 0), _Server)
    threading.Thread(target=made.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{made.server_address[1]}/v1"
    made.shutdown()
    made.server_close()


def by_hand(answer: str = "7") -> Trace:
    _, tokenizer = reasoner()
    problem = Problem("mine", 1, "start heads", "", answer, ())
    return Trace.from_text(tokenizer, problem.prompt, "rosa stays heads\nanswer 3", problem=problem)


@pytest.mark.parametrize("api", ["completions", "chat"])
def test_a_server_continues_the_text_of_a_prefix(server: str, api: str) -> None:
    _, tokenizer = reasoner()
    trace = by_hand()
    completer = Endpoint(server, "big", tokenizer, Sampling(temperature=0.7, top_p=0.9), api=api, api_key="k")
    prefix = tuple(trace.input_ids[: trace.response_start + 2].tolist())
    (endings,) = completer.complete([Asked(trace, prefix, 4, 3, 50)], seed=1)
    assert [ending.outcome for ending in endings] == ["cut", "right", "cut"]
    (asked,) = _Server.asked
    assert (asked["n"], asked["max_tokens"], asked["temperature"], asked["top_p"], asked["seed"]) == (
        3,
        50,
        0.7,
        0.9,
        5,
    )
    text = prefix_text(tokenizer, Asked(trace, prefix, 0, 1, 1))
    if api == "completions":
        assert asked["prompt"].endswith(text) and "start heads" in asked["prompt"]
    else:
        assert [m["content"] for m in asked["messages"]] == ["start heads", text]
        assert asked["continue_final_message"] is True and asked["add_generation_prompt"] is False
    assert completer.settings()["continues_from"] == "text" and completer.name == f"big at {server}"


@pytest.mark.parametrize(("model", "words"), [("unknown", "did not continue a prefix"), ("lazy", "returned 1")])
def test_a_server_that_refuses_or_returns_too_little_is_named(server: str, model: str, words: str) -> None:
    _, tokenizer = reasoner()
    trace = by_hand()
    completer = Endpoint(server, model, tokenizer, Sampling(temperature=1.0))
    with pytest.raises(BadInput, match=words):
        completer.complete([Asked(trace, tuple(trace.input_ids.tolist()), 0, 2, 5)], seed=1)


def test_right_unread_and_cut_traces_are_not_searched() -> None:
    _, tokenizer = reasoner()
    problem = Problem("mine", 1, "start heads", "", "7", ())
    texts = (("answer 7", True), ("rosa stays heads", True), ("rosa stays", False))
    traces = []
    for text, stopped in texts:
        ids = Trace.from_text(tokenizer, problem.prompt, text, problem=problem).input_ids
        n = by_hand().response_start
        traces.append(Trace.from_ids(tokenizer, ids, n, problem=problem, stopped=stopped))
    completer = Planted(1.0, 0.0, 3)
    found = find_pivots(*reasoner(), traces, config=CONFIG, completer=completer, progress=False)
    assert [row["status"] for row in found.rows] == ["right", "unread", "cut"]
    assert completer.n_asked == 0 and found.pivots == []


def test_problems_out_of_the_band_are_counted_and_not_searched() -> None:
    _, tokenizer = reasoner()
    right = Trace.from_text(tokenizer, "start heads", "answer 7", problem=by_hand().problem)
    samples = [[right] * 4, [by_hand()] * 4, [right, by_hand(), by_hand(), right]]
    drawn = by_rate(samples, PivotConfig(band=(0.2, 0.9)))
    assert drawn.rates == [1.0, 0.0, 0.5]
    assert [chosen is None for chosen in drawn.by_problem] == [True, True, False]
    trace, tally = drawn.by_problem[2]
    assert trace == by_hand() and (tally.n_right, tally.n_wrong) == (2, 2)
    assert sorted(drawn.fell_out.values()) == [0, 1, 1]


def test_a_problem_is_sampled_and_its_first_wrong_response_searched() -> None:
    problems = tasks.sample("llc", 2, 3, rendering="short")
    config = PivotConfig(temperature=2.5, n_samples=4, band=(0.2, 0.9), to="step", n_alternatives=0)
    found = find_pivots(*reasoner(), problems, config=config, completer=GoldChain(reasoner().tokenizer), progress=False)
    assert len(found.rows) + sum(found.selection.values()) == 3
    drawn = generate(*reasoner(), problems, sampling=Sampling(temperature=2.5), n_samples=4, progress=False)
    rates = [sum(t.outcome == "right" for t in drawn[i : i + 4]) / 4 for i in (0, 4, 8)]
    assert len(found.rows) == sum(0.2 <= rate <= 0.9 for rate in rates) > 0


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ([], "nothing to search"),
        ([Problem("mine", 1, "start heads", "", " ", ())], "Problem 0 has no answer"),
        ([replace(by_hand(), problem=None)], "Trace 0 has no problem"),
    ],
)
def test_what_cannot_be_judged_is_refused(asked: list, words: str) -> None:
    with pytest.raises(BadInput, match=words):
        find_pivots(*reasoner(), asked, config=CONFIG, progress=False)


def test_a_trace_without_a_response_and_one_of_another_model_are_refused() -> None:
    trace = by_hand()
    empty = Trace.from_ids(reasoner().tokenizer, trace.input_ids[: trace.response_start], trace.response_start,
                           problem=trace.problem)  # fmt: skip
    with pytest.raises(BadTrace, match="Trace 0 has no response"):
        pivots(*reasoner(), empty, config=CONFIG, progress=False)
    foreign = replace(trace, input_ids=trace.input_ids + 10**6)
    with pytest.raises(BadTrace, match="vocabulary"):
        pivots(*reasoner(), foreign, config=CONFIG, progress=False)


def test_the_gold_chain_needs_slots() -> None:
    with pytest.raises(BadInput, match="problems with slots"):
        pivots(*reasoner(), by_hand(), config=CONFIG, completer=GoldChain(reasoner().tokenizer), progress=False)


def test_a_trace_that_was_not_searched_has_no_first_error_to_take() -> None:
    trace = wrong_trace()
    found = pivots(*reasoner(), trace, config=CONFIG, completer=Planted(0.0, 0.0, 0), progress=False)
    assert found.rows[0]["status"] == "rare"
    assert with_first_error(reasoner().tokenizer, trace, found).first_error is None
    with pytest.raises(BadInput, match="none of those that were searched"):
        with_first_error(reasoner().tokenizer, by_hand(), found)
