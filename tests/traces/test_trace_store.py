import errno
import json
import os
import re

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import trace_tokenizers
from chainwright import tasks
from chainwright._errors import BadInput, BadTrace
from chainwright.tasks import Problem, Slot
from chainwright.traces import SCHEMA_VERSION, Trace, read_traces, store, write_traces

TINY = ([3, 1, 4, 1, 5], (0, 2), (2, 4), (4, 5), [(0, 2), (2, 4), (4, 5)])


def wrong_trace():
    """A trace with every field filled, its response wrong in the second name."""
    problem = tasks.sample("parity", 3, 1, seed=3)[0]
    slot = [s for s in problem.slots if s.error_type == "name recall"][1]
    response = problem.chain[: slot.start] + "kate" + problem.chain[slot.end :]
    info = {"model": "tiny", "seed": 3, "temperature": 0.5, "greedy": False}
    tokenizer = trace_tokenizers.task_words()
    return Trace.from_text(tokenizer, problem.prompt, response, problem=problem, info=info)


@pytest.fixture
def traces():
    problems = [p for task in tasks.names() for p in tasks.sample(task, 2, 2)]
    problems += tasks.sample("llc", 2, 1, rendering="natural")
    tokenizer = trace_tokenizers.byte_level()
    made = [Trace.from_text(tokenizer, p.prompt, p.chain, problem=p) for p in problems]
    made.append(Trace.from_text(tokenizer, "The coin", "<think>日本語 🙂.</think>tails"))
    return [*made, wrong_trace(), Trace(*TINY), Trace(*TINY, stopped=False, is_correct=False)]


def test_what_is_written_is_read(tmp_path, traces):
    write_traces(tmp_path / "a.parquet", traces)
    assert read_traces(tmp_path / "a.parquet") == traces
    assert os.listdir(tmp_path) == ["a.parquet"]


def test_no_traces_and_more_than_one_batch(tmp_path):
    write_traces(tmp_path / "none.parquet", [])
    assert read_traces(tmp_path / "none.parquet") == []
    many = [Trace([i, *TINY[0][1:]], *TINY[1:]) for i in range(store._ROWS_AT_ONCE + 5)]
    write_traces(tmp_path / "many.parquet", iter(many))
    assert read_traces(tmp_path / "many.parquet") == many


@settings(deadline=None, max_examples=40)
@given(
    st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=30),
    st.dictionaries(st.text(max_size=5), st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | st.booleans()),
)
def test_any_text_and_info_come_back(tmp_path_factory, text, info):
    path = tmp_path_factory.mktemp("store") / "a.parquet"
    info = {key.encode(errors="replace").decode(): value for key, value in info.items()}
    trace = Trace(*TINY, response=text, prompt=text, info=info)
    write_traces(path, [trace])
    assert read_traces(path) == [trace]


def test_a_problem_made_by_hand_comes_back_with_its_slots(tmp_path):
    problem = Problem("mine", 1, "1 + 1 ?", "answer 2", "2", (Slot(7, 8, "sum", 0, "2"),))
    trace = Trace(*TINY, problem=problem)
    write_traces(tmp_path / "a.parquet", [trace])
    assert read_traces(tmp_path / "a.parquet")[0].problem == problem


def test_other_programs_read_the_columns(tmp_path):
    trace = wrong_trace()
    write_traces(tmp_path / "a.parquet", [trace, Trace(*TINY, info={"answer": 7})])
    table = pq.read_table(tmp_path / "a.parquet")
    row, bare = table.to_pylist()
    assert table.schema.metadata[b"chainwright.schema_version"] == b"1"
    assert table.schema.field("input_ids").type == pa.list_(pa.int32())
    assert row["input_ids"] == trace.input_ids.tolist()
    assert (row["task"], row["hops"], row["rendering"]) == ("parity", 3, "short")
    assert (row["prompt"], row["response"], row["answer"]) == (
        trace.problem.prompt,
        trace.response,
        trace.problem.answer,
    )
    assert (row["error_type"], row["is_correct"], row["stopped"]) == ("name recall", True, True)
    assert (row["question_start"], row["question_end"]) == trace.question
    assert (row["thinking_start"], row["thinking_end"]) == trace.thinking
    assert (row["summary_start"], row["summary_end"]) == trace.summary
    assert row["steps"][1] == {"start": trace.steps[1].start, "end": trace.steps[1].end}
    assert row["slots"][-1]["got"] == row["first_error"]["got"] == "kate"
    assert row["slots"][-1]["start"] == row["first_error_position"] == trace.first_error_position
    assert json.loads(row["info"])["temperature"] == 0.5
    assert json.loads(row["problem"])["task"] == "parity"
    assert (bare["task"], bare["answer"], bare["problem"]) == (None, "7", None)


def test_nothing_is_replaced_unless_asked(tmp_path):
    path = tmp_path / "a.parquet"
    write_traces(path, [Trace(*TINY)])
    with pytest.raises(BadInput, match=r"a\.parquet is already there; choose another name, or .*overwrite=True"):
        write_traces(path, [])
    assert len(read_traces(path)) == 1
    write_traces(path, [], overwrite=True)
    assert read_traces(path) == []
    with pytest.raises(BadInput, match="is a folder"):
        write_traces(tmp_path, [], overwrite=True)


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_a_full_disk_keeps_the_old_file_and_leaves_no_other(tmp_path, monkeypatch, failing):
    path = tmp_path / "a.parquet"
    write_traces(path, [Trace(*TINY)])

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(store.os, failing, full)
        with pytest.raises(BadInput, match=r"Cannot write .*a\.parquet: No space left on device; nothing") as caught:
            write_traces(path, [], overwrite=True)
    assert isinstance(caught.value.__cause__, OSError)
    assert os.listdir(tmp_path) == ["a.parquet"]
    assert len(read_traces(path)) == 1


def test_a_disk_that_fills_up_while_writing(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(store.pq.ParquetWriter, "write_table", full)
    with pytest.raises(BadInput, match="free space"):
        write_traces(tmp_path / "a.parquet", [Trace(*TINY)])
    assert os.listdir(tmp_path) == []


def test_traces_that_break_off_leave_nothing(tmp_path):
    def some():
        yield Trace(*TINY)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_traces(tmp_path / "a.parquet", some())
    with pytest.raises(BadInput, match="write_traces takes traces; item 1 is a str"):
        write_traces(tmp_path / "a.parquet", [Trace(*TINY), "text"])
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("trace", "reason"),
    [
        (Trace(*TINY, response="\ud800"), "'utf-8' codec can't encode character '\\ud800' in position 0"),
        (Trace([2**31, *TINY[0][1:]], *TINY[1:]), "2147483648"),
    ],
)
def test_what_a_file_cannot_hold_is_named_by_its_number(tmp_path, trace, reason):
    with pytest.raises(BadTrace, match=re.escape("Trace 2 cannot be written: ") + ".*" + re.escape(reason)):
        write_traces(tmp_path / "a.parquet", [Trace(*TINY), Trace(*TINY), trace, Trace(*TINY)])
    assert os.listdir(tmp_path) == []


def test_a_file_that_may_not_grow(tmp_path):
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (600, hard))
    try:
        with pytest.raises(BadInput, match=r"Cannot write .*a\.parquet: .*File too large"):
            write_traces(tmp_path / "a.parquet", [Trace(*TINY)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert os.listdir(tmp_path) == []


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(BadInput, match="No such file or directory; nothing was changed there"):
        write_traces(tmp_path / "no" / "a.parquet", [])
    (tmp_path / "file").touch()
    with pytest.raises(BadInput, match="Not a directory"):
        write_traces(tmp_path / "file" / "a.parquet", [])
    with pytest.raises(BadInput, match=r"File name too long"):
        write_traces(tmp_path / ("a" * 300), [])
    with pytest.raises(BadInput, match=r"Cannot read .*a\.parquet: No such file"):
        read_traces(tmp_path / "a.parquet")


def rewritten(path, change=lambda table: table, **metadata):
    table = change(pq.read_table(path))
    pq.write_table(table.replace_schema_metadata(metadata or table.schema.metadata), path)


def test_a_newer_schema_is_refused_with_both_versions(tmp_path):
    path = tmp_path / "a.parquet"
    write_traces(path, [Trace(*TINY)])
    rewritten(path, **{"chainwright.schema_version": "7"})
    message = f"a.parquet has schema version 7, and this Chainwright reads up to version {SCHEMA_VERSION}"
    with pytest.raises(BadTrace, match=re.escape(message)):
        read_traces(path)


def test_files_of_another_kind_are_refused_by_name(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"a": [1]}), path)
    with pytest.raises(BadTrace, match=r"a\.parquet is a Parquet file, but not of traces.*read_jsonl"):
        read_traces(path)
    path.write_text("not parquet at all, whatever its name says")
    with pytest.raises(BadTrace, match=r"a\.parquet is not a complete Parquet file of traces .+; it may be truncated"):
        read_traces(path)
    path.write_bytes(b"")
    with pytest.raises(BadTrace, match=r"a\.parquet is not a complete Parquet file"):
        read_traces(path)


def test_missing_columns_and_other_types_are_named(tmp_path):
    path = tmp_path / "a.parquet"
    write_traces(path, [Trace(*TINY)])
    rewritten(path, lambda table: table.drop_columns(["steps", "info"]))
    with pytest.raises(BadTrace, match=r"a\.parquet lacks the columns steps, info"):
        read_traces(path)
    write_traces(path, [Trace(*TINY)], overwrite=True)
    rewritten(path, lambda t: t.set_column(t.schema.get_field_index("stopped"), "stopped", pa.array(["yes!"])))
    with pytest.raises(BadTrace, match=r"a\.parquet is not a complete Parquet file of traces"):
        read_traces(path)


def test_every_truncation_and_every_flipped_byte_is_noticed(tmp_path):
    path = tmp_path / "a.parquet"
    traces = [wrong_trace()]
    write_traces(path, traces)
    whole = path.read_bytes()
    for n in range(0, len(whole), 97):
        path.write_bytes(whole[:n])
        with pytest.raises(BadTrace):
            read_traces(path)
    n_unnoticed = 0
    for n in range(4, len(whole) // 2, 61):
        path.write_bytes(whole[:n] + bytes([whole[n] ^ 0xFF]) + whole[n + 1 :])
        try:
            n_unnoticed += read_traces(path) != traces
        except BadTrace:
            continue
    assert n_unnoticed == 0


@pytest.mark.parametrize(
    ("column", "value", "reason"),
    [
        ("thinking_start", 9, "thinking must begin at token 2"),
        ("info", "{", "Expecting property name"),
        ("info", "[]", ""),
        ("problem", "{}", "schema version None"),
        ("problem", '{"schema_version": 99}', "99"),
        ("input_ids", None, ""),
        ("style", "none", "Unknown trace style"),
    ],
)
def test_a_row_that_is_no_trace_is_named(tmp_path, column, value, reason):
    path = tmp_path / "a.parquet"
    write_traces(path, [Trace(*TINY), Trace(*TINY)])

    def change(table):
        values = table.column(column).to_pylist()
        i = table.schema.get_field_index(column)
        return table.set_column(i, table.schema.field(i), pa.array([values[0], value], table.schema.field(i).type))

    rewritten(path, change)
    with pytest.raises(BadTrace, match=rf"Row 1 of .*a\.parquet is not a valid trace: .*({reason})"):
        read_traces(path)


def set_trace(response, **more):
    """A trace of a problem of a set, judged by what its text announces."""
    labels = {"level": 3, "share": 0.5, "id": "q1"}
    problem = Problem(
        "shop", 0, "Which colour?", "", "B", (), rendering="natural", labels=labels, choices=("red", "blue")
    )
    return Trace.from_text(trace_tokenizers.byte_level(), problem.prompt, response, problem=problem, **more)


def test_a_verdict_and_the_problem_of_a_set_travel(tmp_path):
    made = [set_trace("The answer is B."), set_trace("The answer is A."), set_trace("????")]
    write_traces(tmp_path / "a.parquet", made)
    back = read_traces(tmp_path / "a.parquet")
    assert back == made
    assert [trace.verdict.is_right for trace in back] == [True, False, None]
    assert [trace.outcome for trace in back] == ["right", "wrong", "unread"]
    assert back[0].problem.labels == {"level": 3, "share": 0.5, "id": "q1"} and back[0].problem.choices == (
        "red",
        "blue",
    )
    assert json.loads(pq.read_table(tmp_path / "a.parquet")["problem"][0].as_py())["schema_version"] == 2


def test_a_file_from_before_verdicts_is_read(tmp_path):
    path = tmp_path / "a.parquet"
    write_traces(path, [set_trace("The answer is B."), set_trace("The answer is A."), Trace(*TINY)])
    table = pq.read_table(path)
    pq.write_table(table.drop_columns(["verdict"]), path)
    back = read_traces(path)
    assert [trace.verdict for trace in back] == [None, None, None]
    assert [trace.outcome for trace in back] == ["right", "wrong", None]


def test_an_answer_that_a_limit_cut_off_is_cut_and_not_wrong():
    problem = Problem("shop", 0, "How many?", "", "12", ())
    tokenizer = trace_tokenizers.byte_level()
    ids = [*tokenizer("How many?")["input_ids"], *tokenizer("The answer is 1", add_special_tokens=False)["input_ids"]]
    n_question = len(tokenizer("How many?")["input_ids"])
    whole = Trace.from_ids(tokenizer, ids, n_question, problem=problem)
    cut = Trace.from_ids(tokenizer, ids, n_question, problem=problem, stopped=False)
    assert (whole.outcome, whole.is_correct) == ("wrong", False)
    assert (cut.outcome, cut.is_correct, cut.verdict.is_right) == ("cut", False, None)
