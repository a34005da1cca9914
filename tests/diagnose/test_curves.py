"""Curves of entropy and log-probability, compared with sums written out by hand."""

import math

import pytest
import torch

import trace_tokenizers
from chainwright._errors import BadInput
from chainwright._finding import Finding
from chainwright.diagnose import curves
from chainwright.diagnose.curves import answer_span
from chainwright.scoring import TokenScores
from chainwright.tasks.base import Problem
from chainwright.traces import Trace


@pytest.fixture
def tokenizer():
    return trace_tokenizers.byte_level()


def trace(tokenizer, response, answer="12", question="How many?", **more):
    problem = Problem("pens", 0, question, "", answer, (), rendering="natural", checker="number")
    return Trace.from_text(tokenizer, question, response, problem=problem, **more)


def scored(one, entropy):
    """Return scores whose entropy is a function of the relative position, and its negative as log-probability."""
    n, start = len(one), one.response_start
    values = torch.full((n,), float("nan"))
    for i in range(start, n):
        values[i] = entropy((i - start + 0.5) / (n - start))
    return TokenScores(-values, values, torch.zeros(n, dtype=torch.long))


def by_hand(traces, scores, n_bins, bin_):
    """Return the mean over traces of the mean over the tokens of a bin."""
    means = []
    for one, score in zip(traces, scores, strict=True):
        own = score.entropy[one.response_start :].tolist()
        inside = [v for i, v in enumerate(own) if int((i + 0.5) / len(own) * n_bins) == bin_]
        if inside:
            means.append(sum(inside) / len(inside))
    return sum(means) / len(means)


def found(rows, **keys):
    return next(row for row in rows if all(row[key] == value for key, value in keys.items()))


def test_means_are_those_written_out_by_hand(tokenizer):
    right = [trace(tokenizer, f"I add {i} and more. The answer is 12.", question=f"Q{i}?") for i in range(4)]
    wrong = [trace(tokenizer, f"I take {i} away, then some. The answer is 13.", question=f"Q{i}?") for i in range(4)]
    scores = [scored(t, lambda x, k=k: x * x + k) for k, t in enumerate([*right, *wrong])]
    got = curves([*right, *wrong], scores, tokenizer, n_bins=4, n_resamples=200)
    assert got.counts == {"right": 4, "wrong": 4, "unread": 0, "cut": 0, "unjudged": 0} and got.n_problems == 4
    for k, place in enumerate(["0% to 25%", "25% to 50%", "50% to 75%", "75% to 100%"]):
        means = {}
        for group, traces, own in (("right", right, scores[:4]), ("wrong", wrong, scores[4:])):
            means[group] = by_hand(traces, own, 4, k)
            row = found(got.rows, measure="entropy", group=group, place=place)
            assert row["mean"] == pytest.approx(means[group]) and row["low"] < row["mean"] < row["high"]
            assert found(got.rows, measure="logprob", group=group, place=place)["mean"] == pytest.approx(-means[group])
        change = found(got.differences, measure="entropy", place=place)
        assert change["mean"] == pytest.approx(means["wrong"] - means["right"])
    # wrong traces have 4 nats more than the right ones of the same problem, give or take the length
    assert found(got.separation, measure="entropy")["auc"] == 1 == found(got.separation, measure="logprob")["auc"]


def test_the_area_under_the_curve_counts_pairs(tokenizer):
    traces = [trace(tokenizer, text, question=f"Q{i}?") for i, text in enumerate(["12", "12", "13", "14"])]
    scores = [scored(t, lambda x, v=v: v) for t, v in zip(traces, [1.0, 2.0, 2.0, 3.0], strict=True)]
    # pairs (wrong, right): (2, 1) above, (2, 2) even, (3, 1) and (3, 2) above
    assert found(curves(traces, scores).separation, measure="entropy")["auc"] == pytest.approx(3.5 / 4)


def test_samples_of_one_problem_stay_together_in_the_interval(tokenizer):
    apart = [trace(tokenizer, "12", question=f"Q{i}?") for i in range(8)]
    together = [trace(tokenizer, "12", question=f"Q{i // 4}?") for i in range(8)]
    scores = [scored(t, lambda x, i=i: float(i // 4)) for i, t in enumerate(apart)]
    wide, narrow = (
        found(curves(traces, scores).rows, measure="entropy", place="whole response") for traces in (together, apart)
    )
    assert wide["mean"] == narrow["mean"] == 0.5
    assert (wide["low"], wide["high"]) == (0, 1) and 0 < narrow["low"] < narrow["high"] < 1


def test_the_answer_has_a_place_of_its_own(tokenizer):
    one = trace(tokenizer, "5 + 7 = 12, so the answer is 12. Bye.")
    start, end = answer_span(one, tokenizer)
    assert tokenizer.decode(one.input_ids[start:end]).strip() == "12"
    assert tokenizer.decode(one.input_ids[end:]) == ". Bye."
    values = torch.arange(len(one)).float()
    got = curves([one], [TokenScores(-values, values, values.long())], tokenizer)
    assert found(got.rows, measure="entropy", place="answer")["mean"] == pytest.approx(values[start:end].mean().item())
    assert not [row for row in curves([one], [TokenScores(-values, values, values)]).rows if row["place"] == "answer"]


def test_unread_and_cut_answers_are_counted_and_not_compared(tokenizer):
    traces = [
        trace(tokenizer, "12"),
        trace(tokenizer, "I do not know."),
        trace(tokenizer, "I add 5 and", stopped=False),
    ]
    got = curves(traces, [scored(t, lambda x: x) for t in traces])
    assert got.counts == {"right": 1, "wrong": 0, "unread": 1, "cut": 1, "unjudged": 0}
    assert {row["group"] for row in got.rows} == {"right"} and not got.differences and not got.separation
    assert "All 1 answers that could be read are right; without wrong ones nothing can be compared." in got.summary()


def test_traces_that_nothing_judged_are_one_group(tokenizer):
    one = Trace.from_text(tokenizer, "How many?", "There are 12.")
    got = curves([one], [scored(one, lambda x: 1.0)])
    assert {row["group"] for row in got.rows} == {"all"} and got.counts["unjudged"] == 1
    assert "No response was judged" in got.summary()
    assert found(got.rows, measure="entropy", place="whole response")["mean"] == 1.0


def test_curves_are_kept_drawn_and_refused(tokenizer, tmp_path):
    one = trace(tokenizer, "12")
    got = curves([one], [scored(one, lambda x: 1.0)])
    got.save(tmp_path / "curves")
    assert Finding.load(tmp_path / "curves") == got and got.to_frame().num_rows == len(got.rows)
    assert {t.name for t in got.plot().data if t.name} == {"right answers"}
    assert all(row["mean"] is None or math.isfinite(row["mean"]) for row in got.rows)
    with pytest.raises(BadInput, match="got 1 traces, 0 scores and 20 bins"):
        curves([one], [])
