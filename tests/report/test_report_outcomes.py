"""Traces of problems without slots in the report: by outcome and label, and with characters of several tokens whole."""

from __future__ import annotations

import pytest

import trace_tokenizers
from chainwright.evaluation.accuracy import evaluate
from chainwright.report.gather import gather
from chainwright.report.page import render
from chainwright.report.readings import extras, filters, group_traces, reader_data, with_spaces
from chainwright.tasks.base import Problem
from chainwright.traces import Trace

LOOP = "let me see if this is right. " * 20


@pytest.fixture
def material():
    tokenizer = trace_tokenizers.byte_level()
    traces = [
        Trace.from_text(
            tokenizer,
            "How many?",
            text,
            problem=Problem("pens", 0, "How many?", "", "12", (), checker="number", labels={"id": i, "level": i % 2}),
            info={"problem": i, "sample": 0, "model": "a" if i < 2 else "b"},
            stopped=text != "I add 5 and",
        )
        for i, text in enumerate(
            ["12", "13", "I do not know.", "I add 5 and", LOOP, "求 </script><b>13</b> $\\frac{1}{2}$ 13"]
        )
    ]
    return gather([evaluate(traces)], traces=traces, tokenizer=tokenizer)


def test_traces_are_grouped_by_what_became_of_the_answer(material):
    groups = {group.label: (group.indices, group.has_error) for group in group_traces(material)}
    assert {label: sorted(indices) for label, (indices, _) in groups.items()} == {
        "wrong answer": [1, 5],
        "answer not read": [2],
        "cut before an answer": [3],
        "endless repetition": [4],
        "right answer": [0],
    }
    assert next(iter(groups)) == "wrong answer" and next(reversed(groups)) == "right answer"
    assert [label for label, (_, has_error) in groups.items() if not has_error] == ["right answer"]


def test_traces_can_be_filtered_by_label_and_say_what_was_read(material):
    assert filters(material.traces) == [["level", "0"], ["level", "1"], ["model", "a"], ["model", "b"]]
    data = reader_data(material, extras(material))
    wrong = next(trace for trace in data["traces"] if trace["number"] == 1)
    assert wrong["labels"] == {"level": "1", "model": "a"} and wrong["name"] == "problem 1"
    assert (wrong["outcome"], wrong["hops"], wrong["read"][0]) == ("wrong answer", None, "13")
    unread = next(trace for trace in data["traces"] if trace["number"] == 2)
    assert unread["read"][0] is None and unread["read"][1]


def test_a_page_of_them_is_safe(material):
    page = render(material)
    assert '<label for="trace-label">Label</label>' in page and '<label for="group">Outcome</label>' in page
    assert "</script><b>13" not in page and "1 ended in endless repetition" in page


@pytest.mark.parametrize(
    "text", ["所以答案是 $\\frac{3}{4}$。", "a 🐈 b 👩‍👩‍👧, c", "求", "naïve café", "", "plain words"]
)
def test_characters_of_several_tokens_are_shown_whole(text):
    tokenizer = trace_tokenizers.byte_level()
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    strings = [tokenizer.decode([i], clean_up_tokenization_spaces=False) for i in ids]
    spaced = with_spaces(strings, text)
    assert "".join(spaced) == text and len(spaced) == len(ids)


def test_bytes_that_stand_nowhere_in_the_text_stay_as_they_are():
    assert with_spaces(["\ufffd", "a"], "b") == ["\ufffd", "a"]
