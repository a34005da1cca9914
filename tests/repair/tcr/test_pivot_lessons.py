"""Everything that needs first errors works without slots, on pivots: contexts, head roles, TCR, TCR-gold."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cache

import pytest
import torch

from chainwright import tasks
from chainwright._errors import BadInput
from chainwright.decode.run import generate
from chainwright.diagnose import (
    PivotConfig,
    correct_contexts,
    erroneous_contexts,
    find_pivots,
    first_errors,
    head_roles,
    with_first_errors,
)
from chainwright.diagnose.pivots.completers import Asked, Completer, Ending, GoldChain
from chainwright.models.load import LoadedModel, load_model
from chainwright.repair import GoldDetector
from chainwright.repair.tcr.config import CandidateConfig, FitConfig, TrainConfig
from chainwright.repair.tcr.fit import fit_tcr
from chainwright.repair.tcr.repair import TCR
from chainwright.repair.tcr.selector import RandomSelector
from chainwright.repair.tcr.training_data import lessons_of
from chainwright.scoring import TokenScores, score_all
from chainwright.tasks import Problem
from chainwright.traces import Trace, read_traces, write_traces

SMALL = FitConfig(
    candidates=CandidateConfig(n_contexts=6, min_errors=3, n_lessons=20, max_heads=2),
    training=TrainConfig(n_epochs=2, n_hidden=8),
    decision="vote",
)


class KnowsTheChain(Completer):
    """The gold chain for problems whose slots were taken away: it looks the whole problem up by its prompt."""

    name, is_exact = "gold chain", True

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.whole = {problem.prompt: problem for problem in problems}
        self.inner = GoldChain(reasoner().tokenizer)

    def complete(self, asked: Sequence[Asked], seed: int) -> list[list[Ending]]:
        known = [
            each._replace(trace=replace(each.trace, problem=self.whole[each.trace.problem.prompt])) for each in asked
        ]
        return self.inner.complete(known, seed)


@cache
def reasoner() -> LoadedModel:
    return load_model("reasoner", device="cpu")


@cache
def whole() -> list[Trace]:
    """Return greedy traces whose first errors the slots know."""
    return generate(*reasoner(), tasks.sample("clf", 14, 40, rendering="short"), progress=False)


def without_slots(problem: Problem | None) -> Problem:
    assert problem is not None
    return Problem(problem.task, 0, problem.prompt, "", problem.answer, ())


@cache
def searched() -> list[Trace]:
    """Return the same traces of problems without slots, with first errors that come from pivots."""
    problems = [trace.problem for trace in whole()]
    tokenizer = reasoner().tokenizer
    plain = [
        Trace.from_ids(tokenizer, t.input_ids, t.response_start, problem=without_slots(t.problem)) for t in whole()
    ]
    assert all(not trace.slots and trace.first_error is None for trace in plain)
    found = find_pivots(
        *reasoner(), plain, config=PivotConfig(temperature=1.0), completer=KnowsTheChain(problems), progress=False
    )
    return with_first_errors(tokenizer, plain, found)


@cache
def scores() -> list[TokenScores]:
    return score_all(reasoner().model, searched())


def known(traces: Sequence[Trace]) -> list[Trace]:
    return [trace for trace in traces if trace.first_error is not None and "pivot_token" in trace.info]


def test_pivots_of_the_gold_chain_are_the_first_errors_of_the_slots() -> None:
    wrong = [(a, b) for a, b in zip(searched(), whole(), strict=True) if b.outcome == "wrong"]
    assert len(wrong) >= 8
    assert [a.first_error_position for a, _ in wrong] == [b.first_error_position for _, b in wrong]
    assert all(a.first_error is None for a in searched() if a.outcome == "right")
    assert first_errors(searched()).key_types == {"clf": ["pivot"]}


def test_contexts_end_at_pivots_and_right_ones_are_as_far_in_and_as_unsure() -> None:
    tokenizer, traces = reasoner().tokenizer, searched()
    wrong = erroneous_contexts(tokenizer, traces, "clf", "pivot", 8)
    assert len(wrong) == min(8, len(known(traces))) >= 5
    for row, (i, position) in enumerate(wrong.sites):
        assert position == traces[i].first_error_position
        assert int(wrong.right_ids[row]) == traces[i].info["pivot_token"] != int(wrong.predicted_ids[row])
    right = correct_contexts(traces, wrong, 8, scores=scores())
    assert len(right) == 8 and torch.equal(right.right_ids, right.predicted_ids)
    assert len({i for i, _ in right.sites}) == 8

    def entropy(sites: list[list[int]]) -> float:
        return sum(float(scores()[i].entropy[position]) for i, position in sites) / len(sites)

    every = [float(e) for i, t in enumerate(traces) if t.outcome == "right" for e in scores()[i].entropy[1:]]
    assert abs(entropy(right.sites) - entropy(wrong.sites)) < abs(sum(every) / len(every) - entropy(wrong.sites)) / 2
    for i, position in right.sites:
        assert traces[i].outcome == "right" and position >= traces[i].response_start
        assert int(scores()[i].argmax[position]) == int(traces[i].input_ids[position])
    by_place = correct_contexts(traces, wrong, 8)
    shares = [
        [(p - traces[i].response_start) / (len(traces[i]) - traces[i].response_start) for i, p in contexts.sites]
        for contexts in (wrong, by_place)
    ]
    assert max(abs(a - b) for a, b in zip(*shares, strict=False)) < 0.05


def test_without_a_right_response_there_is_nothing_to_compare() -> None:
    wrong_only = known(searched())
    wrong = erroneous_contexts(reasoner().tokenizer, wrong_only, "clf", "pivot", 4)
    with pytest.raises(BadInput, match="No response to problems of 'clf' is right"):
        correct_contexts(wrong_only, wrong, 4)


def test_head_roles_come_out_of_pivots() -> None:
    traces = searched()
    wrong = erroneous_contexts(reasoner().tokenizer, traces, "clf", "pivot", 5)
    roles = head_roles(reasoner().model, correct_contexts(traces, wrong, 5, scores=scores()), wrong)
    assert (roles.n_correct, roles.n_erroneous) == (5, 5) and roles.erroneous_processing


def test_lessons_are_the_responses_up_to_their_pivots_and_wrong_ones_without_are_left_out() -> None:
    tokenizer, traces = reasoner().tokenizer, searched()
    lessons = lessons_of(tokenizer, traces)
    n_right = sum(trace.outcome == "right" for trace in traces)
    assert len(lessons) == n_right + len(known(traces))
    trace = known(traces)[0]
    (lesson,) = lessons_of(tokenizer, [trace])
    assert lesson.ids == [*trace.input_ids[: trace.first_error_position].tolist(), trace.info["pivot_token"]]
    assert lesson.kinds[-1] == "pivot" and len(lesson.kinds) == len(lesson.ids) - lesson.n_prompt
    unknown = replace(trace, first_error=None, first_error_position=None)
    assert unknown.outcome == "wrong" and lessons_of(tokenizer, [unknown]) == []


def test_pivots_replace_slots_where_a_problem_has_both() -> None:
    slotted = next(t for t in whole() if t.outcome == "wrong")
    found = find_pivots(
        *reasoner(), [slotted], config=PivotConfig(temperature=1.0), completer=GoldChain(reasoner().tokenizer),
        progress=False,
    )  # fmt: skip
    (trace,) = with_first_errors(reasoner().tokenizer, [slotted], found)
    assert trace.first_error is not None and trace.first_error.error_type == "pivot"
    if "pivot_token" in trace.info:
        (lesson,) = lessons_of(reasoner().tokenizer, [trace])
        assert len(lesson.ids) == trace.first_error_position + 1


def test_first_errors_of_pivots_survive_a_file(tmp_path: object) -> None:
    path = f"{tmp_path}/traces.parquet"
    write_traces(path, searched())
    assert read_traces(path) == searched()


def test_gold_flags_exactly_the_pivots() -> None:
    model, tokenizer = reasoner()
    traces = [*known(searched())[:4], *[t for t in searched() if t.outcome == "right"][:2]]
    gold = GoldDetector.of_traces(tokenizer, traces)
    flagged: list[tuple[int, int]] = []

    class Watching(GoldDetector):
        def flags(self, seen):  # type: ignore[no-untyped-def]
            found = super().flags(seen)
            for row in found.nonzero()[:, 0].tolist():
                prompts = [trace.input_ids[: trace.response_start].tolist() for trace in traces]
                flagged.append((prompts.index(list(seen.prompts[row])), len(seen.contexts[row])))
            return found

    watched = TCR([(0, 0)], RandomSelector(1), Watching(gold.right), end_ids=[2])
    generate(model, tokenizer, [trace.problem for trace in traces], repair=watched, progress=False, max_new_tokens=90)
    assert sorted(flagged) == [(i, trace.first_error_position) for i, trace in enumerate(traces[:4])]


def test_gold_refuses_two_responses_to_one_prompt() -> None:
    trace = known(searched())[0]
    with pytest.raises(BadInput, match="Trace 1 has the prompt of an earlier one"):
        GoldDetector.of_traces(reasoner().tokenizer, [trace, trace])


@pytest.mark.slow
def test_a_small_tcr_is_fitted_on_pivots() -> None:
    fitted = fit_tcr(*reasoner(), searched(), config=SMALL)
    assert fitted.heads and list(fitted.candidates.types) == ["clf: pivot"]
    assert TCR.from_fit(fitted).heads == fitted.heads


def test_traces_whose_first_errors_are_unknown_are_refused_with_the_remedy() -> None:
    unknown = [replace(trace, first_error=None, first_error_position=None) for trace in searched()[:6]]
    with pytest.raises(BadInput, match="look for pivots first"):
        fit_tcr(*reasoner(), unknown, config=SMALL)
