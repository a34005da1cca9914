"""Accuracy in the report: sets by label, and the answers that could not be read."""

from __future__ import annotations

from report_examples import page_of

from chainwright.evaluation.accuracy import evaluate
from chainwright.tasks import Problem
from chainwright.traces import Trace
from trace_tokenizers import byte_level


def answered(i: int, response: str, *, stopped: bool = True) -> Trace:
    name = f"How many? {i}"
    labels = {"id": i, "level": f"Level {i % 2}"}
    problem = Problem("shop", 0, name, "", "5", (), "natural", checker="number", labels=labels)
    return Trace.from_text(byte_level(), name, response, problem=problem, stopped=stopped)


def test_a_set_is_shown_by_label_with_what_could_not_be_read() -> None:
    said = ["#### 5", "#### 6", "I do not know <b>&amp;", "#### 5", "We begin"]
    traces = [answered(i, text, stopped=text != "We begin") for i, text in enumerate(said)]
    page = page_of(evaluate(traces), traces=traces)
    assert 'data-figure="accuracy-by-label"' in page and 'data-figure="accuracy"' not in page
    assert "Accuracy against hops" not in page
    assert (
        "Of 5 responses, 1 has no answer that could be read and 1 was cut by the token limit before an answer" in page
    )
    assert "<td>no answer is announced</td>" in page and "know <b>" not in page
    assert "They are not right" in page
    page = page_of(evaluate(traces[:-1]), traces=traces[:-1])
    assert "1 has no answer that could be read. It is not right" in page


def test_a_set_whose_answers_were_all_read_says_nothing_of_it() -> None:
    traces = [answered(i, "#### 5") for i in range(4)]
    page = page_of(evaluate(traces), traces=traces)
    assert "could be read" not in page and "Answers that could not be read" not in page
