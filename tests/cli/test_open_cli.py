"""`diagnose` on problem sets and trace files, and `compare` on files of other engines, from the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from command_line import call
from instruct import instruct_model, instruct_tokenizer


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("open")
    instruct_model().save_pretrained(folder / "model")
    instruct_tokenizer().save_pretrained(folder / "model")
    asked = [{"question": f"How many pens are {i} and 1?", "answer": str(i + 1)} for i in range(3)]
    for name, texts in {"a": ("It is 1.", "It is 2.", "It is 3."), "b": ("It is 1.", "It is 9.", "It is 9.")}.items():
        lines = [{**one, "response": text} for one, text in zip(asked, texts, strict=True)]
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (folder / "asked.jsonl").write_text("\n".join(map(json.dumps, asked)))
    both = [
        {
            **one,
            "small": {"solution": "It is 9.", "is_correct": False},
            "big": {"solution": "It is 3.", "is_correct": True},
        }
        for one in asked
    ]
    (folder / "both.jsonl").write_text("\n".join(map(json.dumps, both)))
    return folder


def test_trace_files_end_in_a_report(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    code, printed = call("diagnose", "--traces", "a.jsonl", "b.jsonl", "--model", "model", "--no-steps", "-o", "runs")
    assert code == 0 and "Answers: 4 of 6 answers (67%" in printed, printed
    assert "Traces as" in (place / "runs" / "report.html").read_text(encoding="utf-8")


def test_a_problem_set_ends_in_a_report(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    words = ["--problems", "asked.jsonl", "--checker", "number", "--shots", "1", "-n", "2", "--model", "model"]
    code, printed = call("diagnose", *words, "--max-new-tokens", "3", "--no-steps", "-o", "asked")
    assert code == 0 and "Report: asked/report.html" in printed, printed
    study = json.loads((place / "asked" / "study.json").read_text())
    assert study["config"]["asking"]["shots"] == 1 and study["config"]["problems"]["n"] == 2
    assert len(json.loads((place / "asked" / "source" / "pool.json").read_text())) == 3


MISTAKES = [
    (["diagnose", "--traces", "no.jsonl"], "Cannot read no.jsonl: No such file"),
    (["diagnose", "--traces", "a.jsonl", "--task", "clf"], "--task asks for a task, but --problems or --traces"),
    (["diagnose", "a.jsonl"], "a.jsonl is no option; trace files are named with --traces"),
    (["diagnose", "--trust-labels"], "--trust-labels is about trace files; name some with --traces"),
    (["diagnose", "--checker", "number"], "--checker needs a problem set; name one with --problems"),
    (["diagnose", "--traces", "a.jsonl", "--trace-field", "response"], "--trace-field takes PART=FIELD"),
    (["diagnose", "--traces", "a.jsonl", "--trace-field", "response=text"], "there is no field 'text'"),
    (["diagnose", "--traces", "both.jsonl", "--written-by", "huge"], "No response is by 'huge'; the files name these"),
    (["compare", "a.jsonl", "b.jsonl"], "a.jsonl holds texts; name the model whose tokenizer is to read them"),
    (["compare", "a.jsonl", "b=both.jsonl", "--model", "model"], "has the same problem twice"),
]  # fmt: skip


def test_a_stop_string_has_line_ends(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    asked = ("--problems", "asked.jsonl", "--checker", "number", "--model", "model", "--no-steps")
    code, printed = call("diagnose", *asked, "--max-new-tokens", "2", "--stop", r"\n\nQ", "-o", "stopped")
    assert code == 0, printed
    config = json.loads((place / "stopped" / "study.json").read_text())["config"]
    assert config["decoding"]["stop"] == ["\n\nQ"]


@pytest.mark.parametrize(("words", "said"), MISTAKES, ids=[" ".join(words) for words, _ in MISTAKES])
def test_mistakes_are_one_sentence(place: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], said: str) -> None:
    monkeypatch.chdir(place)
    model = ["--model", "model", "-o", "wrong"] if words[0] == "diagnose" else []
    code, printed = call(*words, *model)
    assert code == 2 and said in printed, printed


def test_files_of_other_engines_are_compared_by_problem(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    code, printed = call("compare", "a.jsonl", "b.jsonl", "--model", "model")
    assert code == 0 and "All 3 responses, gains in answers over a" in printed and "-0.667" in printed, printed
    code, printed = call("compare", "both.jsonl@small", "both.jsonl@big", "--model", "model")
    assert code == 0 and "+0.333" in printed, printed
