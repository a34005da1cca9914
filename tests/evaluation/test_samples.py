"""Several responses to each problem: mean@S, pass@k, maj@k, and intervals that resample problems."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from chainwright import compare, evaluate, tasks, write_report
from chainwright._errors import BadInput
from chainwright._stats import bootstrap_interval, cluster_interval, wilson
from chainwright.evaluation import evaluate_samples
from chainwright.evaluation.clusters import has_samples, numbered, share_interval
from chainwright.evaluation.comparison import same_question
from chainwright.evaluation.samples import SampleAccuracy, majority_accuracy, pass_at
from chainwright.tasks import Problem
from chainwright.traces import Trace
from chat_templates import chat_tokenizer


def problem(i: int = 0, checker: str = "number") -> Problem:
    return Problem("sums", 0, f"{i} + 41?", "", str(i + 41), (), rendering="natural", checker=checker)


def response(p: Problem, answer: object, index: int, sample: int, *, stopped: bool = True) -> Trace:
    text = "I do not know." if answer is None else f"The answer is {answer}."
    info = {"problem": index, "sample": sample}
    return Trace.from_text(chat_tokenizer(None), p.prompt, text, problem=p, info=info, stopped=stopped)


def responses(*answers: list[object]) -> list[Trace]:
    return [response(problem(i), a, i, j) for i, own in enumerate(answers) for j, a in enumerate(own)]


def value(found: SampleAccuracy, measure: str, k: int) -> float | None:
    (row,) = [row for row in found.rows if (row["measure"], row["k"]) == (measure, k) and row["task"] == "sums"]
    return row["value"]


def majority_by_hand(votes: list[object], right: object, k: int) -> float:
    total = 0.0
    drawn = list(combinations(range(len(votes)), k))
    for chosen in drawn:
        counts: dict[object, int] = {}
        for i in chosen:
            if votes[i] is not None:
                counts[votes[i]] = counts.get(votes[i], 0) + 1
        best = [answer for answer, n in counts.items() if n == max(counts.values())]
        total += (right in best) / len(best) if best else 0.0
    return total / len(drawn)


@pytest.mark.parametrize("k", range(1, 8))
@pytest.mark.parametrize(
    "votes", ["1112233", "1223344", "2222222", "111....", "12.3.4.", ".......", "1111111", "1122334"]
)
def test_the_majority_is_that_of_all_choices_of_k(votes: str, k: int) -> None:
    answers = [None if vote == "." else vote for vote in votes]
    others = [votes.count(other) for other in sorted(set(votes) - {"1", "."})]
    got = majority_accuracy(votes.count("1"), others, votes.count("."), k)
    assert got == pytest.approx(majority_by_hand(answers, "1", k), abs=1e-12)


@pytest.mark.parametrize("n_right", range(7))
def test_pass_at_k_is_the_share_of_choices_with_a_right_one(n_right: int) -> None:
    for k in range(1, 7):
        choices = list(combinations(range(6), k))
        want = sum(any(i < n_right for i in chosen) for chosen in choices) / len(choices)
        assert pass_at(6, n_right, k) == pytest.approx(want, abs=1e-12)


def test_measures_are_means_over_problems() -> None:
    found = evaluate_samples(responses([41, 41, 7, 7], [42, 42, 42, 5], [1, 2, 3, None]))
    assert value(found, "mean", 4) == pytest.approx((2 / 4 + 3 / 4 + 0) / 3)
    assert value(found, "pass", 2) == pytest.approx((pass_at(4, 2, 2) + pass_at(4, 3, 2)) / 3)
    assert value(found, "pass", 4) == pytest.approx(2 / 3)
    assert value(found, "maj", 4) == pytest.approx((0.5 + 1 + 0) / 3), "a tie is split"
    assert (found.n_samples, found.n_unread, found.n_cut, found.n_traces) == (4, 1, 0, 12)
    assert [row["k"] for row in found.rows] == [4, 2, 4, 4]
    assert found.summary() == "sums: mean@4 0.417, pass@2 0.611, pass@4 0.667, maj@4 0.500 (3 problems)"
    assert "1 of 12 answers could not be read" in found.note
    assert found.to_frame().to_pylist() == found.rows


def test_intervals_resample_problems() -> None:
    found = evaluate_samples(responses([41, 7], [42, 42], [1, 2], [44, 44]), n_resamples=500, seed=3)
    per_problem = [0.5, 1.0, 0.0, 1.0]
    row = found.rows[0]
    assert (row["low"], row["high"]) == bootstrap_interval(per_problem, n_resamples=500, seed=3)
    alike = evaluate_samples(responses([41, 41, 41], [42, 42, 42])).rows[0]
    assert (alike["low"], alike["high"]) == wilson(2, 2), "two problems, not six answers"


def test_spellings_of_one_answer_vote_together() -> None:
    found = evaluate_samples(responses([41, "7.0", "7", 41, "14/2"]))
    assert value(found, "maj", 5) == 0.0, "three of five say seven"
    by_word = [
        Trace.from_text(
            chat_tokenizer(None), "Which side?", f"Answer: {said}", info={"problem": 0, "sample": i},
            problem=Problem("mine", 1, "Which side?", "", "heads", ()),
        )
        for i, said in enumerate(["heads", "Tails", "tails"])
    ]  # fmt: skip
    (row,) = [row for row in evaluate_samples(by_word).rows if row["measure"] == "maj"]
    assert row["value"] == 0.0


def test_answers_that_were_judged_elsewhere_have_no_majority() -> None:
    traces = [
        Trace.from_text(chat_tokenizer(None), "Why?", "So.", is_correct=i > 0, info={"problem": 0, "sample": i})
        for i in range(3)
    ]
    found = evaluate_samples(traces)
    assert [row["value"] for row in found.rows if row["measure"] == "maj"] == [None]
    assert found.rows[0]["value"] == pytest.approx(2 / 3) and "maj" not in found.summary()
    assert [row["value"] for row in found.table()][-1] == "-"


def test_several_cells_and_all_of_them() -> None:
    pair = [
        Trace.from_text(chat_tokenizer(None), "x", p.chain, problem=p, info={"problem": 0, "sample": j})
        for p in (tasks.sample("parity", 2, 1)[0], tasks.sample("clf", 3, 1)[0])
        for j in range(2)
    ]
    found = evaluate_samples(pair)
    assert list(dict.fromkeys((row["task"], row["hops"]) for row in found.rows)) == [
        ("parity", 2), ("clf", 3), ("all", None),
    ]  # fmt: skip
    assert all(row["value"] == 1.0 for row in found.rows)


def test_what_cannot_be_measured() -> None:
    traces = responses([41, 41], [42, 1, 2])
    assert evaluate_samples(traces).n_samples == 2, "the fewest of a problem"
    with pytest.raises(BadInput, match="k must be from 1 to the number of responses to each problem, 2; got 3"):
        evaluate_samples(traces, ks=[1, 3])
    with pytest.raises(BadInput, match="There are no traces"):
        evaluate_samples([])
    with pytest.raises(BadInput, match="Trace 0 was not judged"):
        evaluate_samples([Trace.from_text(chat_tokenizer(None), "Why?", "So.")])


def test_a_finding_is_saved_and_loaded(tmp_path: Path) -> None:
    found = evaluate_samples(responses([41, 7], [42, 42]))
    found.save(tmp_path / "f")
    assert SampleAccuracy.load(tmp_path / "f") == found


# -- accuracy and comparisons do not take responses to one problem for independent draws ------------------------------


def test_problems_are_numbered() -> None:
    traces = responses([41, 7], [42, 42])
    assert numbered(traces) == [0, 0, 1, 1] and has_samples(traces)
    alone = [replace(trace, info={}) for trace in (traces[0], traces[0])]
    assert numbered(alone) == [0, 1] and not has_samples(alone), "a problem that is in a set twice"


def test_the_interval_of_accuracy_resamples_problems() -> None:
    traces = responses([41] * 8, [1] * 8, [43] * 8, [2] * 8)
    (row,) = evaluate(traces).rows
    want = cluster_interval([1.0] * 8 + [0.0] * 8 + [1.0] * 8 + [0.0] * 8, numbered(traces), n_resamples=2000, seed=0)
    assert (row["n"], row["accuracy"], (row["low"], row["high"])) == (32, 0.5, want)
    assert row["high"] - row["low"] > 2 * (wilson(16, 32).high - wilson(16, 32).low)
    single = [replace(trace, info={}) for trace in traces]
    (row,) = evaluate(single).rows
    assert (row["low"], row["high"]) == wilson(16, 32)
    assert share_interval([True] * 6, [0, 0, 0, 1, 1, 1]) == wilson(2, 2)


def test_the_cluster_bootstrap_is_that_of_sums_over_counts() -> None:
    values, clusters = [1.0, 0.0, 1.0, 1.0, 0.0], [4, 4, 9, 2, 2]
    generator = np.random.default_rng(7)
    groups = [[1.0, 0.0], [1.0, 0.0], [1.0]]  # clusters 2, 4, 9
    means = []
    for _ in range(300):
        drawn = [v for i in generator.integers(0, 3, size=3) for v in groups[i]]
        means.append(sum(drawn) / len(drawn))
    low, high = cluster_interval(values, clusters, n_resamples=300, seed=7)
    assert (low, high) == pytest.approx(tuple(np.quantile(means, (0.025, 0.975))))


def test_a_comparison_pairs_samples_and_resamples_problems() -> None:
    base = responses([1] * 6, [1] * 6, [43] * 6)
    other = responses([41] * 6, [1] * 6, [43] * 6)
    row = compare({"a": base, "b": other}).overall("b")
    change = [1.0] * 6 + [0.0] * 12
    want = cluster_interval(change, numbered(base), n_resamples=2000, seed=0)
    assert (row["gain"], (row["gain_low"], row["gain_high"])) == (pytest.approx(1 / 3), want)
    with pytest.raises(BadInput, match="Trace 0 of 'b' is of another sample"):
        compare({"a": base, "b": [*reversed(other[:6]), *other[6:]]})


def chains(n_wrong: int, n: int = 6) -> list[Trace]:
    problem = tasks.sample("parity", 2, 1)[0]
    wrong = problem.chain.replace("flips", "stays") if "flips" in problem.chain else problem.chain.replace("st", "fl")
    return [
        Trace.from_text(
            chat_tokenizer(None), "x", wrong if j < n_wrong else problem.chain, problem=problem,
            info={"problem": 0, "sample": j},
        )
        for j in range(n)
    ]  # fmt: skip


def test_the_test_of_a_comparison_counts_problems() -> None:
    row = compare({"a": chains(6), "b": chains(0)}).overall("b")
    assert row["n_fixed"] == 6 and row["p"] == 1.0, "one problem that moved says nothing, however many responses"
    alone = {name: [replace(t, info={}) for t in own] for name, own in (("a", chains(6)), ("b", chains(0)))}
    assert compare(alone).overall("b")["p"] == pytest.approx(2 * 0.5**6)


def test_a_problem_of_a_task_is_the_same_with_other_demonstrations() -> None:
    one, none = (tasks.sample("parity", 2, 1, rendering="natural", n_demonstrations=n)[0] for n in (1, 0))
    assert one != none and same_question(one, none)
    assert not same_question(one, tasks.sample("parity", 2, 2, rendering="natural")[1])
    assert not same_question(problem(0), problem(1)) and not same_question(problem(0), None)


def test_a_report_shows_the_measures(tmp_path: Path) -> None:
    found = evaluate_samples(responses([41, 7], [42, 42]))
    page = write_report(found, tmp_path / "a.html").read_text(encoding="utf-8")
    assert '<section id="samples">' in page and "pass@2" in page and "ties are split" in page
