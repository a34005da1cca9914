"""Slots of chains as marked queries, and prompts as tokens."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import trace_tokenizers
from chainwright import BadInput, Trace, correct_contexts, erroneous_contexts, load_model, tasks
from chainwright.diagnose import MarkedQuery, flow_contrast, logit_flow, result_queries, slot_queries
from chainwright.diagnose.flow.prompts import flow_prompt, hop_marks, marked_prompt, problem_queries
from chainwright.tasks.knowledge import World
from families import random_ids, tiny


@pytest.fixture(scope="module")
def tokenizer():
    return load_model("reasoner", device="cpu").tokenizer


def traces(tokenizer, *, wrong: bool):
    """Return gold chains of folder operations, each with a wrong operation in its fourth line if asked."""
    found = []
    for problem in tasks.sample("clf", 6, 3):
        lines = problem.chain.split("\n")
        if wrong:
            operation, rest = lines[3].split(" ", 1)
            lines[3] = f"{'../' if operation != '../' else './'} {rest}"
        found.append(Trace.from_text(tokenizer, problem.prompt, "\n".join(lines), problem=problem))
    return found


def words(tokenizer, trace, positions):
    return tokenizer.decode([int(trace.input_ids[i]) for i in positions])


def test_slots_are_marked_with_the_input_and_the_result_before(tokenizer):
    wrong = traces(tokenizer, wrong=True)
    kind = wrong[0].first_error.error_type
    contexts = erroneous_contexts(tokenizer, wrong, "clf", kind, 3)
    queries = slot_queries(tokenizer, wrong, contexts)
    assert len(queries) == 3
    for query, (index, position) in zip(queries, contexts.sites, strict=True):
        trace = wrong[index]
        problem = trace.problem
        assert len(query.input_ids) == position and query.token_id == int(trace.input_ids[position])
        assert words(tokenizer, trace, query.entity) == trace.first_error.expected
        before = problem.slots[trace.first_error.slot - 1]
        assert words(tokenizer, trace, query.relation) == before.value
        assert all(i < trace.response_start for i in query.entity) and query.conflict_id is not None
    right = slot_queries(tokenizer, wrong, contexts, follow="right")
    assert [q.token_id for q in right] == [q.conflict_id for q in queries]
    like = slot_queries(tokenizer, wrong, correct_contexts(wrong, contexts, 3))
    assert like and all(q.conflict_id is None for q in like)
    with pytest.raises(BadInput, match="do not record which trace"):
        slot_queries(tokenizer, wrong, replace(contexts, traces=()))


def test_results_are_marked_at_several_hops(tokenizer):
    gold = traces(tokenizer, wrong=False)
    queries = result_queries(tokenizer, gold, 2)
    assert len(queries) == 2
    for trace, query in zip(gold, queries, strict=False):
        slots = {slot.start: slot for slot in trace.slots}
        here = slots[len(query.input_ids)]
        assert words(tokenizer, trace, [here.start]) == here.got[:1] or here.got.startswith(
            words(tokenizer, trace, [here.start])
        )
        assert query.token_id == int(trace.input_ids[here.start]) and max(query.relation) < here.start
    with pytest.raises(BadInput, match="at least 1"):
        result_queries(tokenizer, gold, 0)


def test_prompts_become_tokens_and_marks(tokenizer):
    prompt = flow_prompt(tokenizer, "clf lib/ ../", "1 2", against="3", span="sum")
    assert tokenizer.decode(prompt.target_ids) == "12" and tokenizer.decode([prompt.conflict_id]) == "3"
    assert tokenizer.decode(prompt.input_ids.tolist(), skip_special_tokens=True) == "clf lib/ ../"
    assert flow_prompt(tokenizer, "clf lib/ ../", "1 2", span="first").target_ids == prompt.target_ids[:1]
    query = marked_prompt(tokenizer, prompt, entity="lib/", relation="../")
    assert [tokenizer.decode([int(prompt.input_ids[i])]) for i in (*query.entity, *query.relation)] == ["lib/", "../"]


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"prompt": "  "}, "The prompt is empty"),
        ({"target": ""}, "The target is empty"),
        ({"prompt": "clf nonsense"}, "The prompt has 'nonsense', which is not in this model's vocabulary"),
        ({"target": "Paris"}, "The target has 'Paris', which is not in this model's vocabulary"),
        ({"target": "1 2"}, r"is 2 tokens here \('1', '2'\); choose --span first .* or --span sum"),
        ({"against": "1 3"}, "begin with the same token, '1'"),
    ],
    ids=["empty", "no target", "unknown word", "unknown target", "several tokens", "same token"],
)
def test_prompts_that_cannot_be_followed(tokenizer, asked, message):
    asked = {"prompt": "clf lib/ ../", "target": "1", **asked}
    with pytest.raises(BadInput, match=message):
        flow_prompt(tokenizer, asked["prompt"], asked["target"], against=asked.get("against"), span=None)


def test_marks_that_are_missing_are_refused(tokenizer):
    prompt = flow_prompt(tokenizer, "clf lib/ ../", "1", span=None)
    with pytest.raises(BadInput, match="the relation is not: pass --entity and --relation"):
        marked_prompt(tokenizer, prompt, entity="lib/", relation=None)
    with pytest.raises(BadInput, match="'web/' is not in the prompt"):
        marked_prompt(tokenizer, prompt, entity="lib/", relation="web/")


def test_questions_of_a_world_are_marked():
    tokenizer = load_model("world", device="cpu").tokenizer
    problem = World().question(3, 1, 2, order="nested")
    (query,) = problem_queries(tokenizer, [problem], [problem.answer], [problem.facts["e2"]])
    strs = tokenizer.convert_ids_to_tokens(query.input_ids.tolist())
    assert [strs[i] for i in query.entity] == [problem.facts["r1"]]
    assert [strs[i] for i in query.relation] == [problem.facts["r2"]]
    single = World().question(3, 1)
    (one,) = problem_queries(tokenizer, [single], [single.answer], [None])
    assert [strs[i] for i in query.entity] == [problem.facts["r1"]] and hop_marks(1) == ("entity", "relation")
    words = tokenizer.convert_ids_to_tokens(one.input_ids.tolist())
    assert [words[i] for i in (*one.entity, *one.relation)] == [single.facts["e1"], single.facts["r1"]]
    (lone,) = problem_queries(tokenizer, [problem], [problem.answer], [problem.answer])
    assert lone.conflict_id is None


@torch.no_grad()
def test_contrasts_are_means_over_queries(tmp_path):
    model = tiny("llama")
    queries = [MarkedQuery(random_ids(1, 5, seed=s)[0], 7, (1,), (2,), 9) for s in range(3)]
    found = flow_contrast(model, {"some": queries, "none": []}, list("abcde"), "7 over 9")
    each = [logit_flow(model, q.input_ids, 7, conflict_id=9, n_neurons=1, n_traced=0).contrast for q in queries]
    assert torch.allclose(found.curves[0], torch.stack(each).mean(0)) and found.groups == ["some"] and found.n == [3]
    assert found.to_frame().num_rows == found.curves.numel() and len(found.plot().data) == 5
    found.save(tmp_path / "found")
    assert type(found).load(tmp_path / "found").summary() == found.summary()
    with pytest.raises(BadInput, match="the 4 positions"):
        flow_contrast(model, {"some": queries}, list("abcd"), "7 over 9")
    with pytest.raises(BadInput, match="nothing can be compared"):
        flow_contrast(model, {"some": [replace(queries[0], conflict_id=None)]}, list("abcde"), "7 over 9")


@pytest.mark.parametrize("name", ["byte_level", "metaspace", "byte_fallback"])
@pytest.mark.parametrize("prompt", ["the coin is", "the coin is "], ids=["bare", "spaced"])
def test_a_target_follows_its_prompt_as_text_does(name, prompt):
    """One space stands between them, whatever the tokenizer makes of it, and marks fall on whole words."""
    tokenizer = getattr(trace_tokenizers, name)()
    found = flow_prompt(tokenizer, prompt, "heads", span="sum")
    text = tokenizer.decode([*found.input_ids.tolist(), *found.target_ids], skip_special_tokens=True)
    assert text.strip() == "the coin is heads"
    query = marked_prompt(tokenizer, found, entity="coin", relation="is")
    assert tokenizer.decode(found.input_ids[list(query.entity)].tolist()).strip() == "coin"
    assert tokenizer.decode(found.input_ids[list(query.relation)].tolist()).strip() == "is"


def test_a_tokenizer_that_closes_every_text():
    tokenizer = trace_tokenizers.word_level(eos=True)
    prompt = flow_prompt(tokenizer, "12 + 3 =", "15", span="sum")
    assert tokenizer.decode(prompt.target_ids, skip_special_tokens=True) == "15"
    assert tokenizer.eos_token_id not in [*prompt.input_ids.tolist(), *prompt.target_ids]
