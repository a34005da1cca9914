import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import trace_tokenizers
from chainwright._errors import BadInput, BadTrace
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


BAD = [
    (b'{"question": "a", "response": ', "not JSON: Expecting value: line 1 column 31 (char 30)"),
    (b"\xff\xfe", "not UTF-8 at byte 0"),
    (b"  ", "the line is empty"),
    (b"[1]", "a JSON object is needed, got list"),
    ({"question": "a"}, "neither 'response' nor 'completion' is there"),
    ({"response": "a"}, "neither 'question' nor 'prompt' is there"),
    ({"question": 5, "response": "a"}, "'question' is int, not text"),
    ({"question": "a", "response": None}, "'response' is NoneType, not text"),
    ({"question": "", "response": "a"}, "the question is empty"),
    ({"question": "a", "response": "b", "is_correct": "yes"}, "'is_correct' is 'yes', not true or false"),
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
    assert message.count("neither 'question' nor 'prompt' is there") == 10
    assert "line 10:" in message and "line 11:" not in message
    assert message.endswith("; and 2 more); mend them, or leave them out with --skip-bad (skip_bad=True).")
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
