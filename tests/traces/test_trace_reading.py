"""Traces of every engine, server and harness, each read from a small file written here."""

import gzip
import io
import json
import struct
import zipfile
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import trace_tokenizers
from chainwright._errors import BadInput, BadTrace, TraceNotes, UnreadFields
from chainwright.tasks.base import Problem
from chainwright.traces import Trace, TraceSource, read_traces, write_traces

ASK, SAY, THOUGHT = "How many pens are there?", "There are 12 pens.", "I add 5 and 7."
WHOLE = f"<think>\n{THOUGHT}\n</think>\n\n{SAY}"
USER, REPLY = {"role": "user", "content": ASK}, {"role": "assistant", "content": SAY}
CHOICE = {"index": 0, "message": REPLY | {"reasoning_content": THOUGHT}, "finish_reason": "stop"}


@pytest.fixture
def tokenizer():
    return trace_tokenizers.byte_level()


def lines(tmp_path, *records, name="made.jsonl"):
    path = tmp_path / name
    path.write_text("\n".join(json.dumps(record, ensure_ascii=False) for record in records) + "\n", encoding="utf-8")
    return path


def pens(**more):
    return Problem("pens", 0, ASK, "", "12", (), rendering="natural", **more)


SPELLINGS = {
    "prompt, completion": {"prompt": ASK, "completion": SAY},
    "question, response": {"question": ASK, "response": SAY},
    "input, output": {"input": ASK, "output": SAY},
    "instruction, output": {"instruction": ASK, "output": SAY},
    "instruction, input, output": {"instruction": "How many pens", "input": "are there?", "output": SAY},
    "problem, solution": {"problem": ASK, "solution": SAY},
    "problem, solution, generation": {"problem": ASK, "solution": "5 + 7 = 12, so \\boxed{12}", "generation": SAY},
    "query, response": {"query": ASK, "response": SAY},
    "question, model_output": {"question": ASK, "output": SAY, "model_output": SAY},
    "text-generation server": {"inputs": ASK, "generated_text": SAY, "details": {"finish_reason": "eos_token"}},
    "messages": {"messages": [USER, REPLY]},
    "sharegpt": {"conversations": [{"from": "human", "value": ASK}, {"from": "gpt", "value": SAY}]},
    "completions": {"prompt": ASK, "choices": [{"text": SAY, "finish_reason": "stop"}]},
    "a batch": {"question": ASK, "response": {"status_code": 200, "body": {"choices": [{"message": REPLY}]}}},
    "an exchange": {"request": {"messages": [USER]}, "response": {"choices": [{"message": REPLY}], "object": "x"}},
    "vllm": {"prompt": ASK, "outputs": [{"index": 0, "text": SAY, "finish_reason": "stop"}]},
}  # fmt: skip


@pytest.mark.filterwarnings("ignore::chainwright._errors.UnreadFields")
@pytest.mark.parametrize("name", SPELLINGS)
def test_question_and_response_have_many_names(tmp_path, tokenizer, name):
    (trace,) = read_traces(lines(tmp_path, SPELLINGS[name]), tokenizer)
    assert (trace.prompt.split(), trace.response) == (ASK.split(), SAY)
    assert trace.stopped and trace.is_correct is (True if "solution" in name and "generation" in name else None)


REASONINGS = {
    "messages": {"messages": [USER, REPLY | {"reasoning": THOUGHT}]},
    "parts": {"messages": [USER, {"role": "assistant", "content": [
        {"type": "thinking", "thinking": THOUGHT}, {"type": "text", "text": SAY}]}]},
    "chat": {"messages": [USER], "choices": [CHOICE]},
    "responses": {"input": ASK, "object": "response", "status": "completed", "output": [
        {"type": "reasoning", "summary": [{"type": "summary_text", "text": THOUGHT}]},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": SAY}]}]},
    "flat": {"question": ASK, "response": SAY, "thinking": THOUGHT},
}  # fmt: skip


@pytest.mark.parametrize("name", REASONINGS)
def test_reasoning_in_a_field_of_its_own_becomes_thinking(tmp_path, tokenizer, name):
    (trace,) = read_traces(lines(tmp_path, REASONINGS[name]), tokenizer)
    assert (trace.response, trace.style) == (WHOLE, "think")


def test_what_a_server_cut_did_not_stop(tmp_path, tokenizer):
    records = [
        {"question": ASK, "choices": [CHOICE | {"finish_reason": "length"}]},
        {"input": ASK, "status": "incomplete", "output": [{"type": "message", "content": [{"text": SAY}]}]},
        {"inputs": ASK, "generated_text": SAY, "details": {"finish_reason": "length"}},
        {"prompt": ASK, "outputs": [{"text": SAY, "finish_reason": "length"}]},
        {"question": ASK, "response": SAY, "finish_reason": "length"},
    ]
    assert [trace.stopped for trace in read_traces(lines(tmp_path, *records), tokenizer)] == [False] * 5


def test_several_choices_are_several_samples(tmp_path, tokenizer):
    texts = ["There are 12.", "There are 13.", "12"]
    records = [
        {"question": ASK, "answer": 12, "choices": [{"text": text} for text in texts]},
        {"question": "And cups?", "answer": 13, "responses": texts},
    ]
    traces = read_traces(lines(tmp_path, *records), tokenizer)
    assert [(trace.info["problem"], trace.info["sample"]) for trace in traces] == [
        (q, k) for q in (0, 1) for k in range(3)
    ]
    assert [trace.outcome for trace in traces[:3]] == ["right", "wrong", "right"]
    assert [trace.outcome for trace in traces[3:]] == ["wrong", "right", "wrong"]


def test_samples_on_lines_of_their_own_are_numbered(tmp_path, tokenizer):
    line = {"question": ASK, "response": SAY}
    traces = read_traces(lines(tmp_path, line, line, line | {"question": "Cups?"}, line), tokenizer)
    assert [(trace.info["problem"], trace.info["sample"]) for trace in traces] == [(0, 0), (0, 1), (1, 0), (0, 2)]
    assert len(TraceSource(files=(str(tmp_path / "made.jsonl"),), n=1).load(tokenizer).traces) == 3


def test_token_ids_of_this_tokenizer_are_used_as_they_are(tmp_path, tokenizer):
    before, after = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in (ASK, SAY))
    # two tokens for what the tokenizer writes as one: tokenising the text again would lose them
    own = [token for word in SAY for token in tokenizer(word, add_special_tokens=False)["input_ids"]]
    assert own != after
    record = {"prompt": ASK, "prompt_token_ids": before, "outputs": [{"text": SAY, "token_ids": own}]}
    (trace,) = read_traces(lines(tmp_path, record), tokenizer)
    assert trace.input_ids.tolist() == [*before, *own] and trace.response == SAY
    bare = record | {"outputs": [{"text": "", "token_ids": own}]}
    assert read_traces(lines(tmp_path, bare), tokenizer)[0] == replace(trace, info=trace.info)
    foreign = record | {"outputs": [{"text": SAY, "token_ids": [i + 3 for i in own]}]}
    with pytest.warns(TraceNotes, match=r"1 of 1 traces have token ids of another tokenizer \(line 1 of made\.jsonl\)"):
        (trace,) = read_traces(lines(tmp_path, foreign), tokenizer)
    assert trace.response_ids.tolist() == after


def test_a_batch_file_is_joined_with_its_requests(tmp_path, tokenizer):
    asked = lines(tmp_path, *({"custom_id": f"q{i}", "method": "POST", "url": "/v1/chat/completions",
                              "body": {"messages": [{"role": "user", "content": f"Say {i}."}]}} for i in range(2)),
                  name="requests.jsonl")  # fmt: skip
    said = lines(tmp_path, *({"custom_id": f"q{i}", "response": {"body": {"choices": [
        {"message": {"role": "assistant", "content": f"It is {i}."}}]}}} for i in (1, 0)))  # fmt: skip
    for order in ([asked, said], [said, asked]):
        traces = read_traces(order, tokenizer)
        assert [(trace.prompt.strip(), trace.response) for trace in traces] == [
            ("Say 1.", "It is 1."),
            ("Say 0.", "It is 0."),
        ]
    with pytest.raises(BadTrace, match=r"2 records cannot be read \(line 1 of made\.jsonl: there is no question"):
        read_traces(said, tokenizer)
    known = [Problem("say", 0, f"Say {i}.", "", str(i), (), labels={"id": f"q{i}"}) for i in range(2)]
    assert [trace.outcome for trace in read_traces(said, tokenizer, problems=known)] == ["right", "right"]


LM_EVAL = {
    "doc_id": 3, "doc": {"question": ASK, "answer": "5 + 7 = 12 #### 12", "level": 2}, "target": "12",
    "arguments": {"gen_args_0": {"arg_0": f"Q: 1+1?\nA: 2\n\nQ: {ASK}\nA:", "arg_1": {"until": ["Q:"]}}},
    "resps": [[" There are 12 pens."]], "filtered_resps": ["12"], "filter": "strict-match",
    "metrics": ["exact_match"], "doc_hash": "x", "prompt_hash": "y", "target_hash": "z", "exact_match": 1.0,
}  # fmt: skip


def test_logs_of_lm_eval_are_read(tmp_path, tokenizer):
    other = LM_EVAL | {"filter": "flexible-extract", "filtered_resps": ["[invalid]"], "exact_match": 0.0}
    path = lines(tmp_path, LM_EVAL, other, name="samples_pens_2026.jsonl")
    with pytest.warns(TraceNotes, match="1 responses are judged differently by several filters of lm-eval"):
        (trace,) = read_traces(path, tokenizer)
    assert (trace.prompt, trace.response) == (f"Q: 1+1?\nA: 2\n\nQ: {ASK}\nA:", " There are 12 pens.")
    assert trace.outcome == "right" and trace.info["file_label"] is True and trace.problem.labels["level"] == 2
    loglikelihoods = LM_EVAL | {"resps": [[[-1.5, False]], [[-2.0, True]]]}
    with pytest.raises(BadTrace, match="log-likelihoods of choices and no text"):
        read_traces(lines(tmp_path, loglikelihoods), tokenizer)
    chat = LM_EVAL | {"arguments": [[json.dumps([USER]), {"until": []}]]}
    (trace,) = read_traces(lines(tmp_path, chat), tokenizer)
    assert trace.prompt == ASK


def inspect_log(score="C"):
    sample = {
        "id": "pen", "epoch": 1, "input": ASK, "target": "12", "metadata": {"level": 1},
        "messages": [{"role": "system", "content": "Be brief."}, USER, REPLY],
        "output": {"model": "a/b", "choices": [{"message": {"role": "assistant", "content": [
            {"type": "reasoning", "reasoning": "attachment://abc"}, {"type": "text", "text": SAY}]},
            "stop_reason": "stop"}]},
        "scores": {"match": {"value": score, "answer": "12"}}, "attachments": {"abc": THOUGHT}, "events": [],
    }  # fmt: skip
    failed = sample | {"epoch": 2, "output": {"choices": []}, "error": {"message": "no network"}}
    return {"version": 2, "status": "success", "eval": {"model": "a/b", "task": "pens"}, "samples": [sample, failed]}


def zstd_zip(members):
    """Return a zip whose members are packed with zstd, as new logs are and Python's zipfile does not write."""
    plain = io.BytesIO()
    with zipfile.ZipFile(plain, "w") as archive:
        for name, value in members.items():
            archive.writestr(name, pa.compress(json.dumps(value).encode(), "zstd", asbytes=True))
    content, sizes = bytearray(plain.getvalue()), {n: len(json.dumps(v).encode()) for n, v in members.items()}
    with zipfile.ZipFile(plain) as archive:
        for info in archive.infolist():
            struct.pack_into("<H", content, info.header_offset + 8, 93)
            struct.pack_into("<I", content, info.header_offset + 22, sizes[info.filename])
            at = content.index(b"PK\x01\x02")
            while content[at + 46 : at + 46 + len(info.filename)] != info.filename.encode():
                at = content.index(b"PK\x01\x02", at + 1)
            struct.pack_into("<H", content, at + 10, 93)
            struct.pack_into("<I", content, at + 24, sizes[info.filename])
    return bytes(content)


@pytest.mark.parametrize("kind", ["json", "eval", "eval with zstd"])
def test_logs_of_inspect_are_read(tmp_path, tokenizer, kind):
    log = inspect_log()
    members = {"header.json": {"eval": log["eval"]}} | {
        f"samples/pen_epoch_{sample['epoch']}.json": sample for sample in log["samples"]
    }
    path = tmp_path / f"log.{kind[:4]}"
    if kind == "json":
        path.write_text(json.dumps(log))
    elif kind == "eval":
        with zipfile.ZipFile(path, "w") as archive:
            for name, value in members.items():
                archive.writestr(name, json.dumps(value), compress_type=zipfile.ZIP_DEFLATED)
    else:
        path.write_bytes(zstd_zip(members))
    with pytest.raises(BadTrace, match=r"sample pen, epoch 2 of log\.\w+: the sample ended in an error \(no network\)"):
        read_traces(path, tokenizer)
    with pytest.warns(TraceNotes, match="1 record could not be read and were skipped"):
        (trace,) = read_traces(path, tokenizer, skip_bad=True)
    assert trace.prompt == f"Be brief.\n\n{ASK}" and trace.response == WHOLE and trace.stopped
    assert (
        trace.outcome == "right"
        and trace.info["model"] == "a/b"
        and trace.problem.labels == {"id": "pen", "level": 1, "model": "a/b"}
    )


def test_a_damaged_inspect_log_is_named(tmp_path, tokenizer):
    path = tmp_path / "log.eval"
    path.write_bytes(zstd_zip({"samples/a_epoch_1.json": {}})[:60])
    with pytest.raises(BadTrace, match=r"log\.eval is no complete inspect log"):
        read_traces(path, tokenizer)


GRADED = {"question": ASK, "ground_truth": "5 + 7 = 12\nA: 12",
          "small": {"solution": "5 + 7 = 11\nA: 11", "is_correct": False},
          "large": {"solution": "5 + 7 = 12\nA: 12", "is_correct": True}}  # fmt: skip


def test_solutions_of_several_models_are_a_trace_each(tmp_path, tokenizer):
    path = lines(tmp_path, GRADED, GRADED | {"question": "And cups?"})
    found = TraceSource(files=(str(path),)).load(tokenizer)
    assert [(trace.info["model"], trace.outcome) for trace in found.traces] == [
        ("small", "wrong"),
        ("large", "right"),
    ] * 2
    assert found.writers == ["large", "small"] and not found.notes
    assert found.traces[0].problem.chain == GRADED["ground_truth"] and found.traces[0].problem.answer == "12"
    only = TraceSource(files=(str(path),), writers=("large",)).load(tokenizer).traces
    assert [trace.info["model"] for trace in only] == ["large", "large"]
    with pytest.raises(BadInput, match="No response is by 'huge'; the files name these models: large, small"):
        TraceSource(files=(str(path),), writers=("huge",)).load(tokenizer)


def test_problems_are_found_by_id_else_by_question(tmp_path, tokenizer):
    cups = Problem("pens", 0, "How many cups  are there in all of the cupboards?", "", "7", (), labels={"id": 2})
    records = [
        {"question": ASK, "response": "12"},
        {"prompt": f"Q: 1+1?\nA: 2\nQ: {cups.prompt}\nA:", "response": "7"},
        {"id": 2, "question": "Cups?", "response": "8"},
        {"id": 2, "question": f" {ASK}\n", "response": "12"},
        {"question": "How many forks are there?", "response": "7", "is_correct": True},
    ]
    with pytest.warns(TraceNotes, match=r"1 of 5 traces have no problem of the set \(line 5 of made\.jsonl\)"):
        traces = read_traces(lines(tmp_path, *records), tokenizer, problems=[pens(labels={"id": 1}), cups])
    assert [trace.problem and trace.problem.answer for trace in traces] == ["12", "7", "7", "12", None]
    assert [trace.outcome for trace in traces] == ["right", "right", "wrong", "right", "right"]
    assert [trace.info["problem"] for trace in traces[:4]] == [0, 1, 1, 0]


def test_judgements_that_contradict_ours_are_named_and_not_overridden(tmp_path, tokenizer):
    records = [
        {"question": ASK, "response": "It is 13.", "answer": "12", "is_correct": True},
        {"question": "Cups?", "response": "It is 7.", "answer": "7", "is_correct": True},
    ]
    path = lines(tmp_path, *records)
    words = (
        r"1 of 2 judgements of the file contradict ours \(line 1 of made\.jsonl: the file says right, the answer read"
    )
    with pytest.warns(TraceNotes, match=words + ".*; ours is used"):
        assert [trace.is_correct for trace in read_traces(path, tokenizer)] == [False, True]
    with pytest.warns(TraceNotes, match="the file's is used"):
        trusted = read_traces(path, tokenizer, trust_labels=True)
    assert [trace.is_correct for trace in trusted] == [True, True]


def test_a_question_goes_through_the_chat_template_and_a_prompt_does_not(tmp_path, tokenizer, monkeypatch):
    turns = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}[assistant]"
    monkeypatch.setattr(tokenizer, "chat_template", turns)
    path = lines(tmp_path, {"question": ASK, "response": SAY}, {"prompt": ASK, "response": SAY})
    assert [trace.prompt for trace in read_traces(path, tokenizer)] == [f"[user]{ASK}[assistant]", ASK]
    assert read_traces(path, tokenizer, chat_template=False)[0].prompt == f"{ASK}\n\n"
    monkeypatch.setattr(tokenizer, "chat_template", f"{turns}<think>\n")
    closed, thought = read_traces(
        lines(tmp_path, {"question": ASK, "response": SAY}, {"question": ASK, "response": f"{THOUGHT}</think>{SAY}"}),
        tokenizer,
    )
    assert closed.prompt.endswith("<think>\n\n</think>\n\n") and closed.summary.end > closed.summary.start
    assert thought.prompt.endswith("<think>") and thought.thinking.end > thought.thinking.start


def test_calls_of_tools_are_part_of_the_response(tmp_path, tokenizer):
    call = {"type": "function", "function": {"name": "add", "arguments": '{"a": 5, "b": 7}'}}
    (trace,) = read_traces(
        lines(tmp_path, {"messages": [USER, {"role": "assistant", "content": None, "tool_calls": [call]}]}), tokenizer
    )
    assert trace.response.startswith("\n<tool_call>\n") and '"name": "add"' in trace.response


def test_fields_can_be_named(tmp_path, tokenizer):
    path = lines(tmp_path, {"q": ASK, "answer": SAY, "meta": {"gold": "12"}})
    with pytest.raises(BadTrace, match="there is no response"):
        read_traces(path, tokenizer)
    (trace,) = read_traces(path, tokenizer, fields={"question": "q", "response": "answer", "answer": "meta.gold"})
    assert (trace.response, trace.outcome) == (SAY, "right")
    with pytest.raises(BadTrace, match=r"line 1 of made\.jsonl: there is no field 'x', which was to be the response"):
        read_traces(path, tokenizer, fields={"response": "x"})
    with pytest.raises(BadInput, match="Unknown part of a trace 'reply'; known: prompt, question"):
        read_traces(path, tokenizer, fields={"reply": "x"})


def test_other_kinds_of_file(tmp_path, tokenizer):
    record = {"question": ASK, "response": SAY, "answer": "12"}
    (tmp_path / "list.json").write_text(json.dumps([record, record]))
    (tmp_path / "by_id.json").write_text(json.dumps({"a": record, "b": record, "c": record}))
    (tmp_path / "one.json").write_text(json.dumps({"question": ASK, "responses": [SAY, SAY], "answer": "12"}))
    (tmp_path / "inner.json").write_text(json.dumps({"results": [record]}))
    (tmp_path / "lines.json").write_text(f"{json.dumps(record)}\n{json.dumps(record)}\n")
    (tmp_path / "packed.jsonl.gz").write_bytes(gzip.compress(json.dumps(record).encode()))
    (tmp_path / "table.csv").write_text(f'question,response,answer\n"{ASK}","{SAY}",12\n', encoding="utf-8-sig")
    pq.write_table(pa.Table.from_pylist([record]), tmp_path / "rows.parquet")
    for name, n in {
        "list.json": 2,
        "by_id.json": 3,
        "one.json": 2,
        "inner.json": 1,
        "lines.json": 2,
        "packed.jsonl.gz": 1,
        "table.csv": 1,
        "rows.parquet": 1,
    }.items():
        traces = read_traces(tmp_path / name, tokenizer)
        assert [trace.outcome for trace in traces] == ["right"] * n, name


def test_our_own_files_need_no_tokenizer_and_other_models_read_their_texts(tmp_path, tokenizer):
    own = Trace.from_text(tokenizer, ASK, SAY, problem=pens())
    write_traces(tmp_path / "own.parquet", [own])
    assert read_traces(tmp_path / "own.parquet") == [own]
    assert read_traces(tmp_path / "own.parquet", tokenizer) == [own]
    other = trace_tokenizers.byte_fallback()
    with pytest.warns(TraceNotes, match="1 of 1 traces have token ids of another tokenizer"):
        (read,) = read_traces(tmp_path / "own.parquet", other)
    assert read.response == SAY and read.problem == own.problem and read.input_ids.tolist() != own.input_ids.tolist()
    write_traces(tmp_path / "bare.parquet", [Trace.from_text(tokenizer, ASK, SAY, is_correct=False)])
    with pytest.warns(TraceNotes, match="contradict ours"):
        (judged,) = read_traces(tmp_path / "bare.parquet", tokenizer, problems=[pens()])
    assert judged.outcome == "right" and judged.input_ids.tolist() == own.input_ids.tolist()


BAD_FILES = [
    ("no.jsonl", None, BadInput, "Cannot read .*no.jsonl: No such file"),
    ("a.txt", b"x", BadInput, r"a\.txt is none of \.jsonl, \.ndjson"),
    ("a.jsonl", b"", BadInput, r"a\.jsonl has no traces"),
    ("a.json", b"3", BadTrace, "holds one int; a list of JSON objects is needed"),
    ("a.jsonl.gz", b"\x1f\x8b\x00", BadTrace, "is no complete gzip file"),
    ("a.parquet", b"PAR1", BadTrace, "is not a complete Parquet file"),
    ("a.csv", b"\xff", BadTrace, "is not UTF-8 at byte 0"),
    ("a.jsonl", b'{"question": "a", "choices": []}', BadTrace, "'choices' is not a list of choices"),
    ("a.jsonl", b'{"question": "a", "response": {"error": {"message": "busy"}}}', BadTrace, r"server \(busy\)"),
    ("a.jsonl", b'{"messages": [{"role": "wizard", "content": "a"}]}', BadTrace, "unknown role 'wizard'"),
    ("a.jsonl", b'{"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}', BadTrace, "type 'image_url'"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "content", "kind", "words"), BAD_FILES)
def test_what_cannot_be_read_is_named(tmp_path, tokenizer, name, content, kind, words):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(kind, match=words):
        read_traces(tmp_path / name, tokenizer)


def test_texts_need_a_tokenizer_and_a_folder_is_no_file(tmp_path, tokenizer):
    with pytest.raises(BadInput, match="holds texts, so a tokenizer is needed"):
        read_traces(lines(tmp_path, {"question": ASK, "response": SAY}))
    (tmp_path / "logs.json").mkdir()
    with pytest.raises(BadInput, match="is a folder; name the trace files in it"):
        read_traces(tmp_path / "logs.json", tokenizer)
    with pytest.raises(BadInput, match="Unknown format of traces 'vllm2'; known: auto"):
        read_traces(tmp_path / "made.jsonl", tokenizer, format="vllm2")


def test_bad_records_are_counted_and_skipped(tmp_path, tokenizer):
    path = lines(tmp_path, {"question": ASK, "response": SAY}, {"question": ASK}, {"response": SAY})
    with pytest.raises(BadTrace, match=r"2 records cannot be read \(line 2 of made.*; line 3 of made.*\); fix them"):
        read_traces(path, tokenizer)
    found = TraceSource(files=(str(path),), skip_bad=True).load(tokenizer)
    assert len(found.traces) == 1 and [record.place for record in found.bad_records] == ["line 2", "line 3"]
    with pytest.warns(UnreadFields, match=r"'colour' \(1 record\)"):
        read_traces(lines(tmp_path, {"question": ASK, "response": SAY, "colour": "red"}), tokenizer)


def test_a_changed_file_has_another_digest(tmp_path):
    path = lines(tmp_path, {"question": ASK, "response": SAY})
    source = TraceSource(files=(str(path),))
    before = source.digests()
    lines(tmp_path, {"question": ASK, "response": "13"})
    assert list(before) == [str(path)] and source.digests() != before
