"""Contexts at decisions: on traces of the bundled reasoner, and on traces made by hand."""

from dataclasses import replace

import pytest
import torch

from chainwright import tasks
from chainwright._errors import BadInput
from chainwright.decode.run import generate
from chainwright.diagnose import SlotContexts, correct_contexts, erroneous_contexts, first_errors
from chainwright.models.load import LoadedModel, load_model
from chainwright.tasks import FirstError, Problem
from chainwright.traces import Trace
from reference import assert_close
from trace_tokenizers import byte_level, metaspace, task_words


@pytest.fixture(scope="module")
def reasoner() -> LoadedModel:
    return load_model("reasoner")


@pytest.fixture(scope="module")
def traces(reasoner: LoadedModel) -> list[Trace]:
    problems = [*tasks.sample("parity", 13, 40), *tasks.sample("clf", 13, 10)]
    return generate(*reasoner, problems, progress=False)


@torch.no_grad()
def argmax_after(reasoner: LoadedModel, contexts: SlotContexts, row: int) -> int:
    ids = contexts.input_ids[row][contexts.attention_mask[row].bool()]
    return int(reasoner.model(input_ids=ids[None]).logits[0, -1].argmax())


def key_type(traces: list[Trace]) -> str:
    return first_errors(traces).key_types["parity"][0]


def test_erroneous_contexts_end_where_the_model_errs(reasoner: LoadedModel, traces: list[Trace]) -> None:
    kind = key_type(traces)
    contexts = erroneous_contexts(reasoner.tokenizer, traces, "parity", kind, 8)
    assert len(contexts) == 8
    for row, i in enumerate(contexts.traces):
        trace = traces[i]
        error, ids = trace.first_error, contexts.input_ids[row][contexts.attention_mask[row].bool()]
        assert error is not None and error.error_type == kind and trace.problem is not None
        assert ids.tolist() == trace.input_ids[: trace.first_error_position].tolist()
        assert argmax_after(reasoner, contexts, row) == int(contexts.predicted_ids[row])
        assert int(contexts.predicted_ids[row]) == int(trace.input_ids[trace.first_error_position])
        # every slot of this task is one word
        assert reasoner.tokenizer.decode([int(contexts.right_ids[row])]) == error.expected
        assert reasoner.tokenizer.decode([int(contexts.predicted_ids[row])]) == error.got
        assert contexts.hops[row] == error.hop


def test_erroneous_contexts_are_spread_over_the_traces(reasoner: LoadedModel, traces: list[Trace]) -> None:
    kind = key_type(traces)
    every = erroneous_contexts(reasoner.tokenizer, traces, "parity", kind, 1000)
    assert len(every) == len(set(every.traces)) >= 10
    some = erroneous_contexts(reasoner.tokenizer, traces, "parity", kind, len(every) - 1)
    places = [every.traces.index(i) for i in some.traces]
    assert places == sorted(set(places)) and places[0] == 0 and places[-1] >= len(every) - 2
    three = [every.traces.index(i) for i in erroneous_contexts(reasoner.tokenizer, traces, "parity", kind, 3).traces]
    assert three == [0, len(every) // 3, 2 * len(every) // 3]


def test_correct_contexts_are_right_and_matched(reasoner: LoadedModel, traces: list[Trace]) -> None:
    kind = key_type(traces)
    wrong = erroneous_contexts(reasoner.tokenizer, traces, "parity", kind, 12)
    right = correct_contexts(traces, wrong, 12)
    assert len(right) == 12 and torch.equal(right.predicted_ids, right.right_ids)
    gold = {traces[i].problem.slots[traces[i].first_error.slot].error_type for i in wrong.traces}
    lengths = right.attention_mask.sum(1).tolist()
    assert len(set(zip(right.traces, lengths, strict=True))) == 12, "some slot was taken twice"
    assert len(set(right.traces)) == 12, "another trace each, as there are enough"
    for row in range(12):
        trace = traces[right.traces[row]]
        slot = next(s for s in trace.slots if s.start == lengths[row])
        assert trace.problem is not None and trace.problem.task == "parity"
        assert slot.is_right and slot.hop == right.hops[row]
        assert trace.problem.slots[slot.slot].error_type in gold
        assert argmax_after(reasoner, right, row) == int(right.right_ids[row])
    off = [abs(a - b) for a, b in zip(right.hops, wrong.hops, strict=True)]
    assert sorted(off)[len(off) // 2] <= 1, f"hops are off by {off}"


def test_taking_some_keeps_rows_together(reasoner: LoadedModel, traces: list[Trace]) -> None:
    wrong = erroneous_contexts(reasoner.tokenizer, traces, "parity", key_type(traces), 7)
    odd = wrong.take(slice(1, None, 2))
    assert len(odd) == 3 and odd.traces == wrong.traces[1::2] and odd.hops == wrong.hops[1::2]
    assert torch.equal(odd.input_ids, wrong.input_ids[1::2]) and torch.equal(odd.right_ids, wrong.right_ids[1::2])
    assert_close(odd.attention_mask.sum(1).float(), wrong.attention_mask[1::2].sum(1).float())


def test_what_was_asked_wrongly_is_said(reasoner: LoadedModel, traces: list[Trace]) -> None:
    kind = key_type(traces)
    wrong = erroneous_contexts(reasoner.tokenizer, traces, "parity", kind, 3)
    with pytest.raises(BadInput, match=r"No trace of task 'parity' has a first error of type 'hop recall'"):
        erroneous_contexts(reasoner.tokenizer, traces, "parity", "hop recall", 3)
    with pytest.raises(BadInput, match=r"No trace of task 'llc'"):
        erroneous_contexts(reasoner.tokenizer, traces, "llc", kind, 3)
    with pytest.raises(BadInput, match="n must be at least 1 context; got 0"):
        erroneous_contexts(reasoner.tokenizer, traces, "parity", kind, 0)
    with pytest.raises(BadInput, match="n must be at least 1 context; got -2"):
        correct_contexts(traces, wrong, -2)
    with pytest.raises(BadInput, match="no erroneous contexts to match"):
        correct_contexts(traces, wrong.take(slice(0, 0)), 3)


def mutated(problem: Problem, at: int, value: str, tokenizer=None) -> Trace:
    """Return a trace whose slot `at` says something else, and which ends there."""
    slot = problem.slots[at]
    text = problem.chain[: slot.start] + value + problem.chain[slot.end :]
    return Trace.from_text(tokenizer or task_words(), problem.prompt, text, problem=problem)


def names_of(problem: Problem) -> list[int]:
    return [i for i, slot in enumerate(problem.slots) if slot.error_type == "name recall"]


def test_no_slot_of_the_kind_was_ever_right() -> None:
    (problem,) = tasks.sample("parity", 3, 1)
    first = names_of(problem)[0]
    other = next(n for n in ("kate", "ann") if n != problem.slots[first].value)
    trace = mutated(problem, first, other)
    wrong = erroneous_contexts(task_words(), [trace], "parity", "name recall", 3)
    assert wrong.hops == (0,) and wrong.traces == (0,)
    with pytest.raises(
        BadInput, match=r"No slot of the kinds \['name recall'\] was right in any trace of task 'parity'"
    ):
        correct_contexts([trace], wrong, 3)


def test_right_slots_run_out_without_being_taken_twice() -> None:
    (problem,) = tasks.sample("parity", 4, 1)
    last = names_of(problem)[-1]
    other = next(n for n in ("kate", "ann") if n != problem.slots[last].value)
    trace = mutated(problem, last, other)
    wrong = erroneous_contexts(task_words(), [trace], "parity", "name recall", 3)
    right = correct_contexts([trace], wrong, 30)
    assert sorted(right.hops) == [0, 1, 2] and right.hops[0] == 2, "the nearest hop first"


@pytest.mark.parametrize(("tokenizer", "n_least"), [(byte_level, 20), (metaspace, 5)], ids=["byte level", "metaspace"])
def test_subword_tokenizers_agree_with_the_text(tokenizer, n_least: int) -> None:
    """Where the wrong and the right word part, the right token is the one that begins there in the right text.

    The second tokenizer has no piece for a line end, so that most of its texts do not come back.
    """
    n_told = 0
    for problem in tasks.sample("parity", 3, 12, seed=4):
        at = names_of(problem)[1]
        for wrong in {"ann", "kate", "paul"} - {problem.slots[at].value}:
            trace = mutated(problem, at, wrong, tokenizer())
            try:
                contexts = erroneous_contexts(tokenizer(), [trace], "parity", "name recall", 1)
            except BadInput:
                continue
            n_told += 1
            ids = trace.response_ids[: trace.first_error_position - trace.response_start].tolist()
            before, after = (tokenizer().decode(part) for part in (ids, [*ids, int(contexts.right_ids[0])]))
            assert problem.chain.startswith(after.strip()) and len(after) > len(before)
    assert n_told >= n_least


def test_a_right_token_that_cannot_be_told_is_left_out() -> None:
    """'12' is one token and '13' two: after the wrong '1' the right text has no token that begins there."""
    tokenizer = byte_level()
    assert len(tokenizer("12")["input_ids"]) == 1 and len(tokenizer("19")["input_ids"]) == 2
    slot = {"error_type": "sum", "hop": 0}
    told = Problem("mine", 1, "a + b ?", "it is 19", "19", (tasks.Slot(6, 8, value="19", **slot),))
    hidden = Problem("mine", 1, "a + b ?", "it is 12", "12", (tasks.Slot(6, 8, value="12", **slot),))
    traces = [
        Trace.from_text(tokenizer, told.prompt, "it is 18", problem=told),
        Trace.from_text(tokenizer, hidden.prompt, "it is 19", problem=hidden),
    ]
    assert [t.first_error is not None and t.first_error.got for t in traces] == ["18", "19"]
    contexts = erroneous_contexts(tokenizer, traces, "mine", "sum", 5)
    assert contexts.traces == (0,)
    assert tokenizer.decode([int(contexts.right_ids[0])]) == "9"
    assert tokenizer.decode([int(contexts.predicted_ids[0])]) == "8"
    with pytest.raises(BadInput, match="whose right token is known"):
        erroneous_contexts(tokenizer, traces[1:], "mine", "sum", 5)


def test_a_value_whose_token_depends_on_what_follows_is_left_out() -> None:
    """' coi' alone begins with the token ' c'; as the gold chain continues, ' coin' is one token."""
    tokenizer = byte_level()
    assert len(tokenizer(" coin")["input_ids"]) == 1 and len(tokenizer(" coi")["input_ids"]) == 3
    plain = Trace.from_text(tokenizer, "a + b ?", "it is bob")
    position = next(i for i in range(len(plain)) if tokenizer.decode(plain.input_ids[: i + 1]).endswith("it is")) + 1
    for gold, n_told in (("it is coin", 0), ("it is coi.", 1)):
        problem = Problem("mine", 1, "a + b ?", gold, gold[6:], (tasks.Slot(5, 9, "stem", 0, " coi"),))
        error = FirstError("stem", 0, 0, 5, 9, " coi", " bob")
        trace = replace(plain, problem=problem, first_error=error, first_error_position=position)
        if n_told:
            (right,) = erroneous_contexts(tokenizer, [trace], "mine", "stem", 5).right_ids.tolist()
            assert tokenizer.decode([right]) == " c"
            continue
        with pytest.raises(BadInput, match="whose right token is known"):
            erroneous_contexts(tokenizer, [trace], "mine", "stem", 5)


@pytest.mark.parametrize("is_spelled", [True, False])
def test_the_right_token_follows_how_the_model_writes_its_values(is_spelled: bool) -> None:
    """'he' is one token of the tokenizer; a model that writes 'h' and 'e' would go on with 'h' after 't'."""
    tokenizer = byte_level()
    assert [tokenizer.decode([i]) for i in tokenizer("the")["input_ids"]] == ["t", "he"]
    chain = 'giving "he".\ngiving "the".'
    slots = (tasks.Slot(8, 10, "string", 0, "he"), tasks.Slot(21, 24, "string", 1, "the"))
    problem = Problem("mine", 2, "t he ?", chain, "the", slots)

    def ids(*parts: str) -> list[int]:
        return [i for part in parts for i in tokenizer(part)["input_ids"]]

    value = ["t", "e", "e"] if is_spelled else ["t", "ee"]
    first = ["h", "e"] if is_spelled else ["he"]
    response = ids('giving "', *first, '".\ngiving "', *value, '".')
    question = ids(problem.prompt)
    plain = Trace.from_ids(tokenizer, [*question, *response], len(question), problem=problem)
    assert plain.first_error is not None and (plain.first_error.expected, plain.first_error.got) == ("the", "tee")
    (right,) = erroneous_contexts(tokenizer, [plain], "mine", "string", 5).right_ids.tolist()
    assert tokenizer.decode([right]) == ("h" if is_spelled else "he")
