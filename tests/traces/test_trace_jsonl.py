import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import trace_tokenizers
from chainwright._errors import BadInput, BadTrace, UnreadFields
from chainwright.traces import Trace, read_jsonl, read_traces, write_traces


@pytest.fixture
def tokenizer():
    return trace_tokenizers.byte_level()


def written(tmp_path, *lines):
    path = tmp_path / "made.jsonl"
    path.write_bytes(b"\n".join(line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines))
    return path


def test_texts_become_traces(tmp_path, tokenizer):
    path = written(
        tmp_path,
        {
            "question": "The coin",
            "response": "<think>It is heads up now.</think>heads",
            "is_correct": True,
            "id": 4,
        },
        {"prompt": "The coin", "completion": "tails\n", "answer": "tails", "extra": [1]},
        b"",
    )
    with pytest.warns(UnreadFields, match=r"made\.jsonl has fields that are not read: 'extra' \(1 line\)\."):
        traces, bad_lines = read_jsonl(path, tokenizer)
    assert bad_lines == []
    response = "<think>It is heads up now.</think>heads"
    info = {"source": "made.jsonl", "line": 1, "id": 4}
    assert traces[0] == Trace.from_text(tokenizer, "The coin", response, is_correct=True, info=info)
    assert traces[0].style == "think" and traces[0].is_correct is True
    assert traces[1].info == {"source": "made.jsonl", "line": 2, "answer": "tails"}
    assert (traces[1].response, traces[1].prompt, traces[1].is_correct) == ("tails\n", "The coin", None)
    write_traces(tmp_path / "a.parquet", traces)
    assert read_traces(tmp_path / "a.parquet") == traces


def test_the_style_is_given_to_every_line(tmp_path, tokenizer):
    path = written(tmp_path, {"question": "a", "response": "It is heads up now.</think>x"})
    assert read_jsonl(path, tokenizer, style="plain").traces[0].style == "plain"
    with pytest.raises(BadInput, match="Unknown trace style 'r1'"):
        read_jsonl(path, tokenizer, style="r1")


@pytest.mark.parametrize("key", ["reasoning_content", "reasoning", "thinking"])
def test_reasoning_in_a_field_of_its_own_is_the_thinking(tmp_path, tokenizer, key):
    line = {"prompt": "How many pens?", "completion": "There are 12 pens.", key: "I add 5 and 7."}
    opened = line | {"prompt": "How many pens?<think>\n"}
    none = line | {key: None}
    (first, second, third), _ = read_jsonl(written(tmp_path, line, opened, none), tokenizer)
    assert first.response == "<think>\nI add 5 and 7.\n</think>\n\nThere are 12 pens." and first.style == "think"
    for trace in (first, second):
        thinking, summary = (
            tokenizer.decode(trace.input_ids[slice(*span)]) for span in (trace.thinking, trace.summary)
        )
        assert "I add 5 and 7." in thinking and summary.strip() == "There are 12 pens."
    assert second.response == "I add 5 and 7.\n</think>\n\nThere are 12 pens."
    assert third.style == "plain" and third.response == "There are 12 pens."


def test_reasoning_goes_between_the_markers_of_the_style(tmp_path, tokenizer):
    path = written(tmp_path, {"prompt": "a", "completion": "b", "reasoning": "x", "thinking": "x"})
    (trace,) = read_jsonl(path, tokenizer, style="harmony").traces
    assert trace.style == "harmony" and trace.response is not None and trace.response.endswith("<|message|>b")
    assert trace.thinking.start < trace.thinking.end < trace.summary.end
    with pytest.raises(BadTrace, match="line 1: there is reasoning, but the plain style has no thinking; use another"):
        read_jsonl(path, tokenizer, style="plain")


@pytest.mark.parametrize("key", ["is_correct", "correct"])
@pytest.mark.parametrize(
    ("value", "is_correct"),
    [
        (True, True), (False, False), (1, True), (0, False), (None, None),
        ("true", True), ("False", False), ("1", True), ("0", False),
    ],
)  # fmt: skip
def test_judgements_are_read(tmp_path, tokenizer, key, value, is_correct):
    (trace,) = read_jsonl(written(tmp_path, GOOD | {key: value}), tokenizer).traces
    assert trace.is_correct is is_correct


THOUGHT = "<think>\nI add 5 and 7.\n</think>\n\nThere are 12 pens."
USER, ASSISTANT = {"role": "user", "content": "How many pens?"}, {"role": "assistant", "content": "There are 12 pens."}
CHOICE = {"index": 0, "message": ASSISTANT | {"reasoning_content": "I add 5 and 7."}, "finish_reason": "stop"}
NESTED = {
    "messages": {"messages": [USER, ASSISTANT | {"reasoning": "I add 5 and 7."}]},
    "messages with parts": {
        "messages": [
            USER | {"content": [{"type": "text", "text": "How many pens?"}]},
            ASSISTANT | {"content": [{"thinking": "I add 5 and 7."}, {"type": "text", "text": "There are 12 pens."}]},
        ]
    },
    "prompt and completion": {"prompt": [USER], "completion": [ASSISTANT | {"thinking": "I add 5 and 7."}]},
    "a message": {"prompt": "How many pens?", "completion": ASSISTANT | {"reasoning_content": "I add 5 and 7."}},
    "choices": {"prompt": "How many pens?", "choices": [CHOICE]},
    "messages and choices": {"messages": [USER], "choices": [CHOICE]},
    "a server's response": {"question": "How many pens?", "response": {"id": "x", "choices": [CHOICE]}},
    "a batch": {"question": "How many pens?", "response": {"status_code": 200, "body": {"choices": [CHOICE]}}},
    "a choice of text": {
        "prompt": "How many pens?", "choices": [{"text": "There are 12 pens."}], "reasoning": "I add 5 and 7.",
    },
}  # fmt: skip


@pytest.mark.parametrize("name", NESTED)
def test_messages_and_responses_of_servers_are_read(tmp_path, tokenizer, name):
    (trace,) = read_jsonl(written(tmp_path, NESTED[name] | {"correct": 1}), tokenizer).traces
    assert (trace.prompt, trace.response, trace.style) == ("How many pens?", THOUGHT, "think")
    assert trace.is_correct is True and trace.stopped


def test_messages_go_through_the_chat_template_if_there_is_one(tmp_path, tokenizer, monkeypatch):
    turns = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
    template = turns + "{% if add_generation_prompt %}[assistant]{% endif %}"
    monkeypatch.setattr(tokenizer, "chat_template", template)
    line = {"messages": [{"role": "system", "content": "Be brief."}, USER, ASSISTANT]}
    (trace,) = read_jsonl(written(tmp_path, line), tokenizer).traces
    assert trace.prompt == "[system]Be brief.[user]How many pens?[assistant]" and trace.response == ASSISTANT["content"]


def test_a_response_that_a_server_cut_did_not_stop(tmp_path, tokenizer):
    cut = {"message": {"role": "assistant", "content": None, "reasoning": "I add"}, "finish_reason": "length"}
    (trace,) = read_jsonl(written(tmp_path, {"prompt": "How many?", "choices": [cut]}), tokenizer).traces
    assert not trace.stopped and trace.response is not None and "I add" in trace.response


def test_fields_that_are_not_read_are_named_once(tmp_path, tokenizer):
    path = written(tmp_path, GOOD | {"colour": "x", "weight": 1}, GOOD | {"colour": "y"}, GOOD)
    with pytest.warns(UnreadFields) as seen:
        read_jsonl(path, tokenizer)
    assert len(seen) == 1 and "'colour' (2 lines), 'weight' (1 line)" in str(seen[0].message)


BAD = [
    (b'{"question": "a", "response": ', "not JSON: Expecting value: line 1 column 31 (char 30)"),
    (b"\xff\xfe", "not UTF-8 at byte 0"),
    (b"  ", "the line is empty"),
    (b"[1]", "a JSON object is needed, got list"),
    ({"question": "a"}, "there is no response (a field such as"),
    ({"response": "a"}, "there is no question (a field such as"),
    ({"question": 5, "response": "a"}, "'question' is int, not text"),
    ({"question": "a", "response": None}, "'response' is NoneType, not text"),
    ({"question": "", "response": "a"}, "the question is empty"),
    ({"question": "a", "response": "b", "is_correct": "yes"}, "'is_correct' is 'yes', not true or false"),
    ({"question": "a", "response": "b", "correct": 2}, "'correct' is 2, not true or false (or 1 or 0)"),
    ({"question": "a", "response": "b", "correct": 1.0}, "'correct' is 1.0, not true or false"),
    ({"question": "a", "response": "b", "correct": 1, "is_correct": False}, "'is_correct' and 'correct' contradict"),
    ({"question": "a", "response": "b", "reasoning": ["x"]}, "'reasoning' is list, not text"),
    ({"question": "a", "response": "b", "reasoning": "x", "thinking": "y"}, "'reasoning' and 'thinking' hold diff"),
    ({"question": "a", "response": "<think>x</think>b", "reasoning": "x"}, "there is reasoning in a field of its own"),
    ({"question": "a", "choices": []}, "'choices' is not a list of choices"),
    ({"question": "a", "response": {"status": 500}}, "'response' is neither text nor a message, and has no choices"),
    ({"messages": "hello"}, "'messages' is not a list of messages with roles"),
    ({"messages": [{"content": "a"}]}, "a message is not an object with a role and content"),
    ({"messages": [{"role": "user", "content": "a"}]}, "there is no response (a field such as"),
    ({"messages": [{"role": "assistant", "content": "a"}]}, "there is no question (a field such as"),
    ({"question": "a", "choices": [{"message": {"content": 5}}]}, "the content of a message is int, not text"),
    ({"question": "a", "response": "b", "id": {}}, "'id' is neither text nor a number"),
    (b'{"question": "a", "response": "\\ud800"}', "'response' holds half of a surrogate pair"),
    (b"[" * 200_000, "nested too deeply"),
]
GOOD = {"question": "The coin", "response": "tails"}


@pytest.mark.parametrize(("line", "reason"), BAD)
def test_a_bad_line_is_named_with_its_reason(tmp_path, tokenizer, line, reason):
    path = written(tmp_path, GOOD, line, GOOD)
    with pytest.raises(BadTrace, match=re.escape(f"made.jsonl has 1 line that cannot be read (line 2: {reason}")):
        read_jsonl(path, tokenizer)
    traces, bad_lines = read_jsonl(path, tokenizer, skip_bad=True)
    assert [trace.info["line"] for trace in traces] == [1, 3]
    assert len(bad_lines) == 1 and bad_lines[0].number == 2
    assert bad_lines[0].reason.startswith(reason)


def test_many_bad_lines_are_counted_and_the_first_ten_named(tmp_path, tokenizer):
    path = written(tmp_path, *[b"{}"] * 12, GOOD)
    with pytest.raises(BadTrace) as caught:
        read_jsonl(path, tokenizer)
    message = str(caught.value)
    assert "has 12 lines that cannot be read" in message
    assert message.count("there is no response") == 10
    assert "line 10:" in message and "line 11:" not in message
    assert message.endswith("; and 2 more); fix them, or skip them with --skip-bad (skip_bad=True).")
    assert len(read_jsonl(path, tokenizer, skip_bad=True).bad_lines) == 12


def test_an_empty_file_and_none(tmp_path, tokenizer):
    assert read_jsonl(written(tmp_path), tokenizer) == ([], [])
    with pytest.raises(BadInput, match=r"Cannot read .*no\.jsonl: No such file or directory; name a file of JSON"):
        read_jsonl(tmp_path / "no.jsonl", tokenizer)


def test_a_byte_order_mark_and_windows_line_ends_do_no_harm(tmp_path, tokenizer):
    path = tmp_path / "made.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(GOOD).encode() + b"\r\n" + json.dumps(GOOD).encode() + b"\r\n")
    assert len(read_jsonl(path, tokenizer).traces) == 2


@settings(deadline=None, max_examples=60)
@given(st.lists(st.binary(max_size=30), max_size=6))
def test_any_bytes_are_either_traces_or_bad_lines(tmp_path_factory, lines):
    path = tmp_path_factory.mktemp("jsonl") / "made.jsonl"
    path.write_bytes(b"\n".join(lines))
    traces, bad_lines = read_jsonl(path, trace_tokenizers.byte_level(), skip_bad=True)
    content = path.read_bytes().removeprefix(b"\xef\xbb\xbf")
    n_lines = content.count(b"\n") + (not content.endswith(b"\n") and content != b"")
    assert len(traces) + len(bad_lines) == n_lines


def test_reasoning_goes_between_the_markers_of_the_prompt_or_the_users(tmp_path):
    tokenizer = trace_tokenizers.byte_level()
    path = tmp_path / "made.jsonl"
    record = {"prompt": "ann", "completion": "tails", "reasoning": "heads"}
    path.write_text("\n".join(json.dumps(record | {"prompt": p}) for p in ("ann", "ann[THINK]", "ann<think>\nOh")))
    own, opened, usual = read_jsonl(path, tokenizer).traces
    assert own.response == "<think>\nheads\n</think>\n\ntails"
    assert opened.response == "heads\n[/THINK]\n\ntails" and usual.response == "heads\n</think>\n\ntails"
    assert all(trace.style == "think" and trace.summary.start < len(trace) for trace in (own, opened, usual))
    (mine, *_) = read_jsonl(path, tokenizer, markers=("<plan>", "</plan>")).traces
    assert mine.response == "<plan>\nheads\n</plan>\n\ntails" and mine.style == "think"
