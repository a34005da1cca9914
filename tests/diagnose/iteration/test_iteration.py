"""Iteration heads in any decoder: against whole attention maps, on heads built by hand, and on every family."""

import itertools
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

from chainwright import tasks
from chainwright._errors import BadInput
from chainwright._finding import Finding
from chainwright.diagnose import IterationScores, IterationSettings, iteration_overlap, iteration_scores
from chainwright.diagnose._attention_rows import read_rows
from chainwright.diagnose.iteration.scores import _p_values, _visible
from chainwright.diagnose.iteration.step_slots import Step, trace_steps
from chainwright.edits import KnockOut, edit
from chainwright.lab import IterationConfig
from chainwright.lab.iteration_data import iteration_problems, iteration_tokenizer
from chainwright.models.anatomy import anatomy
from chainwright.models.capture import capture
from chainwright.models.load import load_model, load_tokenizer
from chainwright.traces import Trace
from families import FAMILIES, tiny
from reference import assert_close

RULES = IterationConfig(modulus=5)
FEW = IterationSettings(n_shuffles=50, n_checked=1, n_controls=1)


def lab_traces(length: int = 4, n: int = 3, name: str = "polynomial") -> list[Trace]:
    tokenizer = iteration_tokenizer(RULES, 99)
    problems = iteration_problems(RULES, name, length, n)
    return [Trace.from_text(tokenizer, p.prompt, p.chain, problem=p) for p in problems]


def gold(task: str, hops: int, n: int, rendering: str = "short") -> list[Trace]:
    tokenizer = load_tokenizer("reasoner")
    problems = tasks.sample(task, hops, n, 1, rendering=rendering)
    return [Trace.from_text(tokenizer, p.prompt, p.chain, problem=p) for p in problems]


def words(trace: Trace, positions: tuple[int, ...]) -> str:
    tokenizer = load_tokenizer("reasoner")
    return " ".join(tokenizer.decode([int(trace.input_ids[i])]) for i in positions)


def test_the_steps_of_a_chain_that_repeats_its_inputs() -> None:
    (trace,) = gold("parity", 6, 1)
    steps = trace_steps(load_tokenizer("reasoner"), trace)
    lines = trace.problem.chain.split("\n")
    people = trace.problem.prompt.split(" . ")[1:]
    assert [step.hop for step in steps] == list(range(6))
    for i, step in enumerate(steps):
        assert words(trace, step.result) == lines[i + 1].split()[-1]
        assert words(trace, step.restated) == " ".join(lines[i + 1].split()[:2])
        assert words(trace, step.previous) == lines[i].split()[-1]
        assert words(trace, step.inputs) == people[i].replace(" ?", "").strip()
        assert step.emits_result == (step.result[0] - 1,)
        assert max(step.inputs) < trace.response_start <= min(step.restated) < min(step.result)
    inputs = [step.inputs for step in steps]
    assert inputs == sorted(inputs) and len(set(inputs)) == 6, "a name that comes twice is found at its own place"


@pytest.mark.parametrize("task", tasks.names())
@pytest.mark.parametrize("rendering", ["short", "natural"])
def test_every_task_has_steps_whose_inputs_are_what_the_chain_repeats(task: str, rendering: str) -> None:
    from chainwright.diagnose.iteration.step_slots import _groups, _inputs, _leading

    for problem in tasks.sample(task, 4, 20, 3, rendering=rendering):
        groups = _groups(problem)
        found = _inputs(problem, groups)
        steps = [(group, spans) for group, spans in zip(groups, found, strict=True) if spans]
        assert len(steps) == (3 if (task, rendering) == ("moas", "natural") else 4)
        for group, spans in steps:
            said = [problem.slots[i].value for i in _leading(problem, group)]
            got = [problem.prompt[span.start : span.end] for span in spans]
            assert got == said if rendering == "short" else set(got) <= set(said)
            assert min(span.start for span in spans) > problem.prompt.rfind("Problem:")
        if (task, rendering) != ("nums", "natural"):  # there the first and the last times are two lists
            ends = [max(span.end for span in spans) for _, spans in steps]
            assert ends == sorted(ends, reverse=task == "mdm") and len(set(ends)) == len(ends)


def test_steps_end_before_the_first_error() -> None:
    (problem,) = tasks.sample("parity", 5, 1, 1)
    lines = problem.chain.split("\n")
    name, action, state = lines[3].split()
    lines[3] = f"{name} {action} {'heads' if state == 'tails' else 'tails'}"
    tokenizer = load_tokenizer("reasoner")
    trace = Trace.from_text(tokenizer, problem.prompt, "\n".join(lines), problem=problem)
    assert trace.first_error is not None
    assert [step.hop for step in trace_steps(tokenizer, trace)] == [0, 1]


def test_a_trace_without_a_slot_map_is_refused() -> None:
    tokenizer = load_tokenizer("reasoner")
    model = tiny("llama")
    bare = Trace.from_text(tokenizer, "moas start 3 . add 4 ?\n", "start 3")
    with pytest.raises(BadInput, match="This trace has no slot map, so its steps are unknown; make it with"):
        iteration_scores(model, tokenizer, [bare])
    with pytest.raises(BadInput, match="There are no traces; iteration scores need at least one with a slot map"):
        iteration_scores(model, tokenizer, [])
    (problem,) = tasks.sample("parity", 5, 1, 1)
    wrong = Trace.from_text(tokenizer, problem.prompt, "start nobody", problem=problem)
    with pytest.raises(BadInput, match="No trace has a step that was read right"):
        iteration_scores(model, tokenizer, [wrong])


def test_a_question_in_other_tokens_is_refused() -> None:
    (trace,) = gold("parity", 3, 1)
    other = replace(trace, problem=tasks.sample("parity", 3, 1, 77)[0])
    with pytest.raises(BadInput, match=r"The question of a parity trace is not in its first \d+ tokens"):
        trace_steps(load_tokenizer("reasoner"), other)


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_are_those_of_the_whole_map_in_every_family(family: str) -> None:
    """Grouped heads, sliding windows and sinks included; more rows than one block."""
    model = tiny(family, num_hidden_layers=2) if family != "gpt2" else tiny(family, n_layer=2)
    ids = torch.randint(3, 61, (90,), generator=torch.Generator().manual_seed(0))
    positions = torch.arange(4, 90)
    whole = capture(model, ids[None], attention=True).attention[:, 0]
    seen: dict[int, list[torch.Tensor]] = {}

    def read(layer: int, rows: torch.Tensor, pattern: torch.Tensor) -> None:
        assert len(rows) <= 64
        seen.setdefault(layer, []).append(pattern.clone())

    read_rows(anatomy(model), ids, positions, read)
    for layer, blocks in seen.items():
        assert len(blocks) == 2
        assert_close(torch.cat(blocks, dim=1), whole[layer][:, positions], f"{family} layer {layer}")


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_are_those_of_a_plain_loop_over_the_map_in_every_family(family: str) -> None:
    tokenizer = load_tokenizer("reasoner")
    model = tiny(family, vocab_size=len(tokenizer))
    traces = gold("parity", 4, 2)
    found = iteration_scores(model, tokenizer, traces, settings=FEW)
    assert found.links == ["input", "previous", "recall"] and found.n_steps == [8, 8, 8]
    want = {link: [] for link in found.links}
    for trace in traces:
        maps = capture(model, trace.input_ids[None], attention=True).attention[:, 0]
        for step in trace_steps(tokenizer, trace):
            for link, queries, keys in (
                ("input", step.emits_result, step.inputs + step.restated),
                ("previous", step.emits_result, step.previous),
                ("recall", step.emits_restated, step.inputs),
            ):
                mass = [sum(maps[:, :, q, k] for k in keys if k != q) for q in queries]
                want[link].append(sum(mass) / len(mass))
    for k, link in enumerate(found.links):
        entries = torch.stack(want[link])
        assert_close(found.score[k], entries.mean(0), link, tolerance=1e-5)
        assert_close(found.thresholded[k], (entries > 0.5).float().mean(0), link)
        pairs = entries.unflatten(0, (2, 4)).std(0, unbiased=False).mean(0)
        assert_close(found.invariance[k], 1 - pairs, link, tolerance=1e-5)


@pytest.mark.parametrize("family", ["llama", "gpt_oss", "gpt2"])
def test_silencing_is_that_of_the_edit(family: str) -> None:
    tokenizer = load_tokenizer("reasoner")
    model, traces = tiny(family, vocab_size=len(tokenizer)), gold("llc", 3, 2)
    found = iteration_scores(model, tokenizer, traces, settings=FEW.replace(n_checked=2, n_controls=2))
    assert found.checked_for.count("control") == 2 and len(found.checked) == 2 * len(found.links) + 2

    def right(heads: set[tuple[int, int]], link: str) -> float:
        hits = []
        for trace in traces:
            with torch.no_grad(), edit(model, KnockOut(heads), strict=False):
                chosen = model(trace.input_ids[None]).logits[0].argmax(-1)
            for step in trace_steps(tokenizer, trace):
                queries = step.emits_restated if link == "recall" else step.emits_result
                linked = link != "previous" or step.previous
                hits += [int(chosen[q]) == int(trace.input_ids[q + 1]) for q in queries if linked]
        return sum(hits) / len(hits)

    for k, link in enumerate(found.links):
        assert float(found.accuracy[k]) == pytest.approx(right(set(), link))
        for c, head in enumerate(found.checked):
            assert float(found.accuracy_without[c, k]) == pytest.approx(right({tuple(head)}, link)), (head, link)


def looking(tokenizer_size: int, distance: int) -> PreTrainedModel:
    """A model with two heads: the first looks `distance` positions back, the second everywhere alike."""
    config = LlamaConfig(
        vocab_size=tokenizer_size, hidden_size=8, intermediate_size=4, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, head_dim=2, rope_parameters={"rope_type": "default", "rope_theta": 1.0},
        bos_token_id=None, eos_token_id=None, pad_token_id=None,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() == 2:
                weight.zero_()
        model.model.embed_tokens.weight[:, 0] = 1.0  # every token alike, so that only positions count
        attn = model.model.layers[0].self_attn
        strong = torch.tensor(12.0)
        attn.k_proj.weight[0, 0] = strong
        # turning the query back by the distance makes the product largest there
        angle = torch.tensor(float(distance))
        attn.q_proj.weight[0, 0], attn.q_proj.weight[1, 0] = strong * angle.cos(), -strong * angle.sin()
    return model


def test_a_head_that_looks_at_the_input_is_found_and_beats_chance() -> None:
    """In the laboratory's chains x_t stands n + 1 places before the position that emits s_t, as long as n turns of the
    rotation stay below a full one."""
    length = 5
    traces = lab_traces(length, n=4)
    model = looking(len(iteration_tokenizer(RULES, 99)), length)
    found = iteration_scores(model, iteration_tokenizer(RULES, 99), traces, settings=FEW.replace(n_shuffles=400))
    k = found.link("input")
    assert found.ranking()[0] == (0, 0) and float(found.score[k, 0, 0]) > 0.9
    assert float(found.null_mean[k, 0, 0]) == pytest.approx(1 / length, abs=0.05), "one of five steps is the right one"
    assert float(found.p_value[k, 0, 0]) < 0.01 < 0.2 < float(found.p_value[k, 0, 1])
    assert found.above_chance() == [(0, 0)]
    assert float(found.thresholded[k, 0, 0]) == 1.0 and float(found.invariance[k, 0, 0]) > 0.99
    assert "input: L0H0" in found.summary() and "1 of 2 heads above chance" in found.summary()
    other = iteration_scores(
        looking(len(iteration_tokenizer(RULES, 99)), length + 1), iteration_tokenizer(RULES, 99), traces, settings=FEW
    )
    assert float(other.score[k, 0, 0]) < 0.1, "one place beside the diagonal is no iteration head"


def test_the_null_is_the_mean_over_steps_that_can_be_seen() -> None:
    tokenizer = load_tokenizer("reasoner")
    model, traces = tiny("llama", vocab_size=len(tokenizer)), gold("parity", 4, 3)
    found = iteration_scores(model, tokenizer, traces, settings=FEW.replace(n_shuffles=4000))
    for link in ("previous", "recall"):
        expected = []
        for trace in traces:
            maps = capture(model, trace.input_ids[None], attention=True).attention[:, 0]
            steps = [s for s in trace_steps(tokenizer, trace) if link == "recall" or s.previous]
            for step in steps:
                queries = step.emits_restated if link == "recall" else step.emits_result
                others = [s.inputs if link == "recall" else s.previous for s in steps]
                seen = [keys for keys in others if max(keys) <= queries[0]]
                assert len(seen) == (4 if link == "recall" else step.hop + 1)
                reached = [sum(maps[:, :, q, k] for q in queries for k in keys) / len(queries) for keys in seen]
                expected.append(torch.stack(reached).mean(0))
        want = torch.stack(expected).mean(0)
        assert_close(found.null_mean[found.link(link)], want, link, tolerance=0.01)


def test_only_steps_that_stand_before_a_position_can_be_drawn() -> None:
    steps = [Step(t, (10 + t,), (), (2 + t,), (9 + t,)) for t in range(4)]
    assert _visible(steps, "input").all(), "the question is seen from everywhere"
    assert torch.equal(_visible(steps, "previous"), torch.ones(4, 4).tril().bool()), "later results are not there yet"


def test_p_values_are_against_the_head_that_stands_out_most() -> None:
    null = torch.zeros(4, 1, 3, dtype=torch.double)
    null[:, 0, 0] = torch.tensor([-1.0, 0.0, 0.0, 1.0])
    null[:, 0, 1] = torch.tensor([10.0, -10.0, 0.0, 0.0])
    mean, sd = null.mean(0), null.std(0, unbiased=False)
    most = (null / sd.clamp(min=1e-12)).flatten(1).amax(1)
    score = torch.tensor([[0.5, 30.0, 7.0]], dtype=torch.double)
    found = _p_values(score, null, mean, sd)
    for head in range(2):
        z = float(score[0, head] / sd[0, head])
        assert float(found[0, head]) == pytest.approx((1 + sum(float(m) >= z for m in most)) / 5)
    assert float(found[0, 2]) == 1.0, "where shuffling changes nothing nothing can be said"


def test_the_same_seed_gives_the_same_scores_and_another_one_other_shuffles(tmp_path: Path) -> None:
    tokenizer = load_tokenizer("reasoner")
    model, traces = tiny("qwen3", vocab_size=len(tokenizer)), gold("clf", 4, 2)
    first, again = (iteration_scores(model, tokenizer, traces, settings=FEW) for _ in range(2))
    assert torch.equal(first.null_mean, again.null_mean) and first.checked == again.checked
    other = iteration_scores(model, tokenizer, traces, settings=FEW.replace(seed=1))
    assert not torch.equal(first.null_mean, other.null_mean) and torch.equal(first.score, other.score)
    loaded = Finding.load(first.save(tmp_path / "scores"))
    assert isinstance(loaded, IterationScores) and torch.equal(loaded.p_value, first.p_value)
    rows = loaded.to_frame().to_pylist()
    assert len(rows) == 3 * 12 and [row["rank"] for row in rows[:3]] == [1, 2, 3]
    assert [row["accuracy_lost"] is None for row in rows if row["link"] == "input"].count(False) == len(
        {tuple(head) for head in loaded.checked}
    )


def test_links_that_no_trace_has_are_said_to_be_missing() -> None:
    found = iteration_scores(
        tiny("llama", vocab_size=len(iteration_tokenizer(RULES, 99))), iteration_tokenizer(RULES, 99), lab_traces(),
        settings=FEW,
    )  # fmt: skip
    with pytest.raises(BadInput, match="Link 'recall' was not measured on these traces; measured: input\\."):
        found.ranking("recall")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_shuffles": 1.5}, "n_shuffles must be a whole number from 1; got 1.5"),
        ({"n_shuffles": 0}, "n_shuffles must be a whole number from 1; got 0"),
        ({"n_checked": -1}, "n_checked must be a whole number from 0; got -1"),
        ({"threshold": 1.5}, "threshold must be a number above 0 and below 1; got 1.5"),
    ],
)
def test_settings_that_cannot_be_counted_are_refused(changes: dict, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        IterationSettings(**changes)


def scored(score: torch.Tensor) -> IterationScores:
    maps = dict.fromkeys(("thresholded", "invariance", "null_mean", "null_sd", "p_value"), score[None])
    return IterationScores(
        links=["input"], score=score[None], **maps, checked=[], checked_for=[], accuracy=torch.ones(1),
        accuracy_without=torch.zeros(0, 1), exact=1.0, exact_without=torch.zeros(0), n_steps=[1], n_traces=1,
    )  # fmt: skip


def test_overlap_counts_shared_heads_and_says_what_chance_would() -> None:
    score = torch.arange(20.0).reshape(4, 5) / 20
    found = iteration_overlap(scored(score), score, n=4)
    assert found.shared == [[3, 4], [3, 3], [3, 2], [3, 1]] and found.rank_correlation == pytest.approx(1.0)
    chance = sum(
        len(set(pick) & set(range(4))) == 4 for pick in itertools.combinations(range(20), 4)
    ) / len(list(itertools.combinations(range(20), 4)))  # fmt: skip
    assert found.p_value == pytest.approx(chance) and found.expected == pytest.approx(4 * 4 / 20)
    apart = iteration_overlap(scored(score), -score, n=4)
    assert apart.shared == [] and apart.p_value == 1.0 and apart.rank_correlation == pytest.approx(-1.0)
    assert len(iteration_overlap(scored(score), score).iteration) == 3, "two percent, and at least three"
    assert "4 of the 4 best heads by 'input' are among the 4" in found.summary()
    assert {row["is_processing"] for row in found.to_frame().to_pylist()} == {True}


def test_overlap_with_maps_of_another_model_is_refused() -> None:
    score = torch.rand(2, 3)
    with pytest.raises(BadInput, match=r"The effects have \[3, 2\] layers and heads"):
        iteration_overlap(scored(score), torch.rand(3, 2))
    with pytest.raises(BadInput, match="n must be from 1 to all 6 heads; got 7"):
        iteration_overlap(scored(score), score, n=7)


@pytest.mark.slow
def test_the_bundled_reasoner_has_heads_that_fetch_the_input_of_each_step() -> None:
    model, tokenizer = load_model("reasoner", device="cpu")
    for task in ("parity", "moas", "objc"):
        found = iteration_scores(model, tokenizer, gold(task, 5, 6), settings=FEW)
        k = found.link("recall")
        best = found.ranking("recall")[0]
        assert float(found.score[k][best]) > 0.4 and float(found.score[k][best]) > 2 * float(found.null_mean[k][best])
