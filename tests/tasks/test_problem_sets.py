"""Problem sets: each kind and format, what is refused, samples and options."""

import csv
import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from chainwright import load_problems
from chainwright._errors import BadInput, ProblemSetWarning
from chainwright.tasks import from_record
from chainwright.tasks.problem_sets import ProblemSource

PLAIN = [{"question": f"What is {i} and {i}?", "answer": 2 * i} for i in range(1, 8)]


def lines(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def loaded(tmp_path, records, **more):
    return load_problems(lines(tmp_path / "set.jsonl", records), **more)


GSM = {"question": "Two bags of 600?", "answer": "There are 2*600=<<2*600=1200>>1200 nuts.\n#### 1,200"}
GPQA = {"Question": "Why?", "Correct Answer": "r", "Incorrect Answer 1": "s", "Incorrect Answer 2": "t"}
GPQA |= {"Incorrect Answer 3": "u", "Subdomain": "Optics", "Record ID": "rec1"}
MATH = {"problem": "Find $x$.", "solution": r"We try \boxed{1}, then $\boxed{\frac{1}{\sqrt{2}}}$.", "level": "Level 2"}
AQUA = {"question": "Which?", "options": ["A)one", "B)two"], "rationale": "So it is.", "correct": "B"}
MMLU = {"question": "Which?", "choices": ["one", "two", "three"], "answer": 2, "subject": "law"}
ARC = {"id": "q7", "question": "Which?", "choices": {"text": ["one", "two"], "label": ["1", "2"]}, "answerKey": "2"}
BBH = {"input": "Which?\nOptions:\n(A) one\n(B) two", "target": "(B)"}
RL = {"prompt": [{"role": "user", "content": "How many?"}], "reward_model": {"ground_truth": "4"}, "ability": "math"}

KINDS = [
    # record, kind, question, answer, checker, labels
    (GSM, "gsm8k", "Two bags of 600?", "1200", "number", {}),
    ({"question": "Q", "ground_truth": "It is 3.\nA: 3"}, "gsm8k", "Q", "3", "number", {}),
    (MATH, "math", "Find $x$.", r"\frac{1}{\sqrt{2}}", "math", {"level": "Level 2"}),
    (MATH | {"answer": "7", "unique_id": "a/1"}, "math", "Find $x$.", "7", "math", {"level": "Level 2", "id": "a/1"}),
    (
        {"ID": "I-3", "Problem": "P", "Answer": 33, "Year": 2001},
        "aime",
        "P",
        "33",
        "number",
        {"id": "I-3", "year": 2001},
    ),
    (
        {"Body": "Ann has 3", "Question": "How many?", "Answer": 3.0, "Type": "Sum", "ID": "c1"},
        "svamp",
        "Ann has 3. How many?",
        "3",
        "number",
        {"type": "Sum", "id": "c1"},
    ),
    (
        {"sQuestion": " How many? ", "lSolutions": [39.0], "iIndex": 0},
        "multiarith",
        "How many?",
        "39",
        "number",
        {"id": 0},
    ),
    (AQUA, "aqua", "Which?\n\n(A) one\n(B) two", "B", "choice", {}),
    (MMLU, "choice", "Which?\n\n(A) one\n(B) two\n(C) three", "C", "choice", {"subject": "law"}),
    (MMLU | {"answer": "B"}, "choice", "Which?\n\n(A) one\n(B) two\n(C) three", "B", "choice", {"subject": "law"}),
    (MMLU | {"answer": "three"}, "choice", "Which?\n\n(A) one\n(B) two\n(C) three", "C", "choice", {"subject": "law"}),
    (ARC, "choice", "Which?\n\n(A) one\n(B) two", "B", "choice", {"id": "q7"}),
    (
        {"question": "Which?", "A": "one", "B": "two", "answer": "B"},
        "choice",
        "Which?\n\n(A) one\n(B) two",
        "B",
        "choice",
        {},
    ),
    (
        {"question": "Which?", "opa": "x", "opb": "y", "opc": "z", "opd": "w", "cop": 3},
        "choice",
        "Which?\n\n(A) x\n(B) y\n(C) z\n(D) w",
        "D",
        "choice",
        {},
    ),
    (
        {"sentence": "It", "question": "Which?", "option1": "one", "option2": "two", "answer": "2"},
        "choice",
        "Which?\n\n(A) one\n(B) two",
        "B",
        "choice",
        {"sentence": "It"},
    ),
    (BBH, "bbh", BBH["input"], "B", "choice", {}),
    ({"input": "not true is", "target": "False"}, "bbh", "not true is", "False", "exact", {}),
    ({"question": "Is it?", "answer": True}, "qa", "Is it?", "yes", "exact", {}),
    (
        {"Query": "How many?", "Expected": "4 apples", "topic": "fruit"},
        "qa",
        "How many?",
        "4 apples",
        "number",
        {"topic": "fruit"},
    ),
    ({"instruction": "Add.", "input": "2, 2", "output": "4"}, "qa", "Add.\n2, 2", "4", "number", {}),
    ({"question": "Who?", "answer": {"value": "Ann", "aliases": ["A"]}}, "qa", "Who?", "Ann", "exact", {}),
    ({"question": "Solve.", "answer": r"x^2 + \pi"}, "qa", "Solve.", r"x^2 + \pi", "math", {}),
    (RL, "qa", "How many?", "4", "number", {"ability": "math"}),
]


@pytest.mark.parametrize(("record", "kind", "question", "answer", "checker", "labels"), KINDS)
def test_a_kind_is_known_by_its_fields(tmp_path, record, kind, question, answer, checker, labels):
    made = ProblemSource(source=str(lines(tmp_path / "set.jsonl", [record]))).load()
    (problem,) = made.problems
    assert made.kind == kind
    assert (problem.prompt, problem.answer, problem.checker, dict(problem.labels)) == (
        question,
        answer,
        checker,
        labels,
    )
    assert (problem.task, problem.hops, problem.slots, problem.rendering) == ("set", 0, (), "natural")
    assert from_record(json.loads(json.dumps(problem.to_record()))) == problem


def test_a_body_that_ends_in_a_clause_goes_on(tmp_path):
    (problem,) = loaded(
        tmp_path, [{"Body": "A pen costs 3. If Ann buys 2", "Question": "How much is it?", "Answer": 6.0}]
    )
    assert problem.prompt == "A pen costs 3. If Ann buys 2, how much is it?"


def test_a_worked_solution_is_a_right_response(tmp_path):
    (gsm,) = loaded(tmp_path, [GSM])
    assert gsm.chain == "There are 2*600=1200 nuts.\n#### 1,200"
    (aqua,) = loaded(tmp_path, [AQUA])
    assert aqua.chain == "So it is.\nThe answer is (B)."
    (math,) = loaded(tmp_path, [MATH])
    assert math.chain == MATH["solution"]
    for problem in (gsm, aqua):
        assert problem.judge(problem.chain).is_right


@pytest.mark.parametrize("ending", ["jsonl", "json", "csv", "tsv", "parquet", "jsonl.gz"])
def test_every_format_gives_the_same_problems(tmp_path, ending):
    path = tmp_path / f"set.{ending}"
    if ending == "parquet":
        pq.write_table(pa.Table.from_pylist(PLAIN), path)
    elif ending in ("csv", "tsv"):
        with path.open("w", newline="", encoding="utf-8-sig") as file:
            table = csv.DictWriter(file, ["question", "answer"], delimiter="," if ending == "csv" else "\t")
            table.writeheader()
            table.writerows(PLAIN)
    elif ending == "json":
        path.write_text(json.dumps(PLAIN))
    else:
        text = "\ufeff" + "\r\n\r\n".join(json.dumps(record) for record in PLAIN)
        path.write_bytes(gzip.compress(text.encode()) if ending.endswith("gz") else text.encode())
    problems = load_problems(path)
    assert [(p.prompt, p.answer) for p in problems] == [(r["question"], str(r["answer"])) for r in PLAIN]


@pytest.mark.parametrize(
    "wrapped",
    [
        {"examples": PLAIN, "canary": "x"},
        {"version": 1, "data": PLAIN},
        {"rows": [{"row_idx": i, "row": record} for i, record in enumerate(PLAIN)]},
        {f"q{i}": record for i, record in enumerate(PLAIN)},
        {"question": [r["question"] for r in PLAIN], "answer": [r["answer"] for r in PLAIN]},
    ],
)
def test_what_surrounds_the_records_is_taken_off(tmp_path, wrapped):
    (tmp_path / "set.json").write_text(json.dumps(wrapped))
    assert [p.answer for p in load_problems(tmp_path / "set.json")] == [str(2 * i) for i in range(1, 8)]


def test_lines_in_a_file_called_json_are_read(tmp_path):
    assert len(load_problems(lines(tmp_path / "set.json", PLAIN))) == 7


def test_a_split_of_a_json_file_or_a_folder(tmp_path):
    (tmp_path / "set.json").write_text(json.dumps({"train": PLAIN[:2], "test": PLAIN[2:]}))
    assert len(load_problems(tmp_path / "set.json", split="test")) == 5
    with pytest.raises(BadInput, match=r"holds several lists \(train, test\); choose one with split="):
        load_problems(tmp_path / "set.json")
    with pytest.raises(BadInput, match=r"has no split 'dev'; it has train, test"):
        load_problems(tmp_path / "set.json", split="dev")
    folder = tmp_path / "folder"
    folder.mkdir()
    lines(folder / "train.jsonl", PLAIN[:2])
    lines(folder / "test-1.jsonl", PLAIN[2:4])
    lines(folder / "test-2.jsonl", PLAIN[4:])
    assert [p.answer for p in load_problems(folder, split="test")] == ["6", "8", "10", "12", "14"]
    assert len(load_problems(folder, data_files="train*")) == 2
    with pytest.raises(BadInput, match=r"several splits \(test, train\)"):
        load_problems(folder)
    with pytest.raises(BadInput, match=r"no split 'dev'; it has test, train"):
        load_problems(folder, split="dev")
    with pytest.raises(BadInput, match=r"has no file 'x.csv', which data_files names"):
        load_problems(folder, data_files="x.csv")


def test_fields_can_be_named(tmp_path):
    records = [{"a": {"b": "How many?"}, "c": 4, "question": "not this"}]
    (problem,) = loaded(tmp_path, records, fields={"question": "a.b", "answer": "c"})
    assert (problem.prompt, problem.answer, problem.labels) == ("How many?", "4", {"question": "not this"})
    with pytest.raises(BadInput, match=r"No record of .* has the field of answer=d; they have a, c, question"):
        loaded(tmp_path, records, fields={"answer": "d"})
    with pytest.raises(BadInput, match=r"Unknown role of a field 'anser'; known: question, answer, choices, chain, id"):
        loaded(tmp_path, records, fields={"anser": "c"})
    with pytest.raises(
        BadInput, match=r"have the fields a, c, in which no question with an answer is found; name them"
    ):
        loaded(tmp_path, [{"a": 1, "c": 2}])


BROKEN = [
    ('{"question": "Q", "answer"', "line 3 is not JSON"),
    ("[1, 2]", "line 3 is no table of fields, but a list"),
    ('{"question": "Q"}', r"line 3 lacks the field 'answer' \(it has question\)"),
    ('{"question": "Q", "answer": null}', "line 3 the field 'answer' is empty"),
    ('{"question": "Q", "answer": NaN}', "line 3 the field 'answer' is empty"),
    ('{"question": "Q", "answer": Infinity}', "line 3 the field 'answer' is inf, which is no answer"),
    ('{"question": "  ", "answer": 1}', "line 3 the field 'question' is empty"),
    ('{"question": ["a"], "answer": 1}', "line 3 the field 'question' is no text"),
    ('{"question": "Q", "answer": ["a", "b"]}', "line 3 the field 'answer' is a list of 2 answers"),
    ('{"question": "Q", "answer": "many"}', r"line 3 the answer 'many' has no number \(checker number\)"),
]


@pytest.mark.parametrize(("line", "fault"), BROKEN)
def test_a_broken_record_is_named_or_left_out(tmp_path, line, fault):
    path = tmp_path / "set.jsonl"
    good = [json.dumps(record) for record in PLAIN for _ in "ab"]
    path.write_text("\n".join([good[0], "", line, *good[2:]]))
    with pytest.raises(BadInput, match=f"set.jsonl: 1 record of 14 cannot be used: {fault}.*skip-bad"):
        load_problems(path, checker="number")
    with pytest.warns(ProblemSetWarning, match=rf"1 record was left out of .*set\.jsonl: {fault}"):
        made = ProblemSource(source=str(path), skip_bad=True, checker="number").load()
    assert len(made.problems) == 13 and made.bad_records[0].place == "line 3"


def test_rows_of_a_table_with_too_few_cells_are_named_by_their_first_line(tmp_path):
    path = tmp_path / "set.csv"
    path.write_text('question,answer\n"How\nmany?",4\nHow many?\nWhich?,5\n')
    with pytest.raises(BadInput, match=r"line 4 has 1 cells, and the header 2"):
        load_problems(path)
    assert [p.prompt for p in load_problems(path, skip_bad=True)] == ["How\nmany?", "Which?"]
    path.write_text("question;answer\nHow many, then?;3,5\n")
    assert [p.answer for p in load_problems(path)] == ["3,5"]
    path.write_text("answer,answer\n1,2\n")
    with pytest.raises(BadInput, match=r"two columns called 'answer'"):
        load_problems(path)


def test_options_that_do_not_fit_are_named(tmp_path):
    for change, fault in [
        ({"answer": 3}, r"the field 'answer' is 3, and there are 3 options \(the first is 0\)"),
        ({"answer": "D"}, "the field 'answer' is 'D', which is none of the 3 options"),
        ({"choices": ["one"]}, "the field 'choices' is no list of 2 to 26 options"),
        ({"choices": ["one", "one"], "answer": "one"}, "is the text of 2 options, 'one'"),
        ({"choices": "one or two"}, "the field 'choices' is no list of options"),
    ]:
        with pytest.raises(BadInput, match=f"line 1 .*{fault}"):
            loaded(tmp_path, [MMLU | change])


def test_files_that_cannot_be_read(tmp_path):
    (tmp_path / "gsm8k_test.jsonl").touch()
    with pytest.raises(
        BadInput, match=r"There is no file or folder .*gsm8k_tset.jsonl.*Did you mean .*gsm8k_test.jsonl"
    ):
        load_problems(tmp_path / "gsm8k_tset.jsonl")
    for name, content, fault in [
        ("a.jsonl", b"", "is empty"),
        ("a.json", b"[]", "has no records"),
        ("b.json", b"17", "holds a number; it must hold a list"),
        ("c.json", b"[{", "is not JSON"),
        ("d.jsonl", b'{"a": 1}\n{"a": "\xff"}', "is not UTF-8 in line 2"),
        ("e.parquet", b"PAR1", "is not a complete Parquet file"),
        ("f.txt", b"hello", "is none of the formats that are read"),
        ("g.csv", b"question,answer\n", "has no records"),
    ]:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(BadInput, match=fault):
            load_problems(tmp_path / name)
    with pytest.raises(BadInput, match=r"one file without splits; drop split='test'"):
        loaded(tmp_path, PLAIN, split="test")
    with pytest.raises(BadInput, match=r"revision is for data sets of the Hub"):
        loaded(tmp_path, PLAIN, revision="main")
    with pytest.raises(BadInput, match=r"Unknown kind of problem set 'gsm'; known: auto, gpqa, .*Did you mean 'gsm8k'"):
        loaded(tmp_path, PLAIN, kind="gsm")
    with pytest.raises(BadInput, match=r"Unknown checker 'numbr'; known: .*Did you mean 'number'"):
        loaded(tmp_path, PLAIN, checker="numbr")
    with pytest.raises(BadInput, match=r"lacks the field|does not end in '#### '"):
        loaded(tmp_path, PLAIN, kind="gsm8k")
    with pytest.raises(BadInput, match=r"None of the 7 records .* can be used: line 1 .*; and 4 more"):
        loaded(tmp_path, PLAIN, kind="gsm8k", skip_bad=True)


def test_the_first_n_or_a_sample_that_depends_on_the_seed_alone(tmp_path):
    first = [p.answer for p in loaded(tmp_path, PLAIN, n=3)]
    assert first == ["2", "4", "6"]
    drawn = [p.answer for p in loaded(tmp_path, PLAIN, n=5, seed=1)]
    assert drawn[:3] == [p.answer for p in loaded(tmp_path, PLAIN, n=3, seed=1)]
    assert len(set(drawn)) == 5 and drawn != [p.answer for p in loaded(tmp_path, PLAIN, n=5, seed=2)]
    with pytest.warns(ProblemSetWarning, match="has 7 problems that can be used, fewer than the 9 wanted"):
        assert len(loaded(tmp_path, PLAIN, n=9)) == 7


def test_what_occurs_twice_is_warned_about(tmp_path):
    records = [record | {"id": i // 2} for i, record in enumerate([*PLAIN[:3], PLAIN[0]])]
    with pytest.warns(ProblemSetWarning) as warned:
        assert len(loaded(tmp_path, records)) == 4
    assert [str(each.message).partition(", ")[2] for each in warned] == [
        "1 record has the question of an earlier one (line 1, line 4); all are taken.",
        "2 records have the id of an earlier one (line 1, line 2, line 3, ...); all are taken.",
    ]


def test_options_are_shuffled_by_seed_and_the_letter_follows(tmp_path):
    records = [MMLU | {"question": f"Which of {i}?", "answer": i % 3} for i in range(30)]
    plain = loaded(tmp_path, records)
    one = loaded(tmp_path, records, shuffle_choices=True)
    two = loaded(tmp_path, records[:5], shuffle_choices=True)
    for before, after in zip(plain, one, strict=True):
        right = before.choices["ABC".index(before.answer)]
        assert after.choices["ABC".index(after.answer)] == right and sorted(after.choices) == sorted(before.choices)
        assert [before.choices[i] for i in after.facts["order"]] == list(after.choices)
        assert f"({after.answer}) {right}" in after.prompt
    assert one[:5] == two and {p.answer for p in one[::3]} == {"A", "B", "C"}
    (pinned,) = loaded(tmp_path, [MMLU | {"choices": ["one", "two", "none of the above"]}], shuffle_choices=True)
    assert pinned.choices[2] == "none of the above" and pinned.answer == "C"
    (letters,) = loaded(tmp_path, [MMLU | {"choices": ["one", "two", "both A and B"]}], shuffle_choices=True)
    assert letters.choices == ("one", "two", "both A and B")
    with pytest.raises(BadInput, match=r"has no options to shuffle"):
        loaded(tmp_path, PLAIN, shuffle_choices=True)


def test_the_right_option_of_gpqa_is_not_always_the_first(tmp_path):
    problems = loaded(tmp_path, [GPQA | {"Question": f"Why {i}?"} for i in range(40)])
    assert {p.answer for p in problems} == set("ABCD")
    for problem in problems:
        assert problem.choices["ABCD".index(problem.answer)] == "r" and problem.facts["shuffle_seed"] == 0
        assert problem.labels == {"subdomain": "Optics", "id": "rec1"}


def test_a_checker_of_text_reads_the_text_of_the_right_option(tmp_path):
    (problem,) = loaded(tmp_path, [MMLU], checker="contains")
    assert problem.answer == "three" and problem.check("It must be number three.")


def test_the_hash_depends_on_what_is_asked_and_judged(tmp_path):
    path = lines(tmp_path / "set.jsonl", PLAIN)
    digests = {ProblemSource(source=str(path), **more).load().sha256 for more in ({}, {"n": 3}, {"checker": "exact"})}
    assert len(digests) == 3
    assert ProblemSource(source=str(path)).load().sha256 in digests


def test_a_set_never_has_the_name_of_a_task(tmp_path):
    assert load_problems(lines(tmp_path / "parity.jsonl", PLAIN))[0].task == "parity (set)"
    assert loaded(tmp_path, PLAIN, name="mine")[0].task == "mine"
    with pytest.raises(BadInput, match=r"must not be empty or that of a task; got 'clf'"):
        loaded(tmp_path, PLAIN, name="clf")
