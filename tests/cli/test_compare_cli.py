"""`chainwright compare`: the last step of the loop, on trace files."""

from __future__ import annotations

from pathlib import Path

import pytest

from chainwright import tasks
from chainwright._errors import BadInput
from chainwright.cli._trace_files import read_ways, tokenizer_of
from chainwright.decode.run import generate
from chainwright.models.load import load_model
from chainwright.traces import Trace, write_traces
from command_line import call
from outcomes import outcome, ten_problems, two_ways


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two files of the same ten problems, the second one's backwards, and some that cannot be compared."""
    folder = tmp_path_factory.mktemp("files")
    ways = two_ways()
    write_traces(folder / "none.parquet", ways["none"])
    write_traces(folder / "repair.parquet", ways["repair"][::-1])
    write_traces(folder / "fewer.parquet", ways["repair"][2:])
    write_traces(folder / "other.parquet", [outcome(p, True) for p in tasks.sample("clf", 3, 10, seed=9)])
    write_traces(folder / "twice.parquet", ways["none"] + ways["none"][:1])
    plain = Trace.from_text(load_model("reasoner").tokenizer, "a question", "answer 1")
    write_traces(folder / "plain.parquet", [plain])
    (folder / "broken.parquet").write_bytes((folder / "none.parquet").read_bytes()[:500])
    (folder / "lines.jsonl").write_text('{"question": "a", "response": "b"}\n')
    return folder


def test_ways_are_paired_by_problem_in_whatever_order_they_lie(files: Path) -> None:
    found = read_ways([f"a={files / 'none.parquet'}", str(files / "repair.parquet")])
    assert list(found) == ["a", "repair"]
    assert found == {"a": two_ways()["none"], "repair": two_ways()["repair"]}


def test_the_table_is_printed_and_the_report_written(files: Path, tmp_path: Path) -> None:
    words = ("compare", f"alone={files / 'none.parquet'}", f"repaired={files / 'repair.parquet'}")
    code, printed = call(*words)
    assert code == 0 and "All 10 problems, gains in whole chains over alone" in printed
    assert "+0.200" in printed and "Whole chains right" in printed and "Report" not in printed
    report = tmp_path / "report.html"
    code, printed = call(*words, "--model", "reasoner", "-o", report)
    assert code == 0 and "Report:" in printed
    page = report.read_text(encoding="utf-8")
    assert 'id="comparison"' in page and 'id="flips"' in page and "Chainwright: report" in page
    code, printed = call(*words, "-o", report)
    assert code == 2 and "exists; pass --overwrite" in printed


MISTAKES = [
    (["none.parquet"], "needs two trace files or more; got 1"),
    (["a=none.parquet", "a=repair.parquet"], "Two ways are called 'a'"),
    (["none.parquet", "none.parquet"], "Two ways are called 'none'"),
    (["none.parquet", "b=missing.parquet"], r"There is no file .*missing\.parquet \(for 'b'\)"),
    (
        ["none.parquet", "b=lines.jsonl"],
        r"lines\.jsonl holds texts; name the model whose tokenizer is to read them with --model",
    ),
    (["none.parquet", "b=broken.parquet"], r"broken\.parquet"),
    (["none.parquet", "b=fewer.parquet"], "'b' is of other problems than 'none': of 10 it lacks 2, and it has 0"),
    (["none.parquet", "b=other.parquet"], "of 10 it lacks 10, and it has 10 that 'none' has not"),
    (["none.parquet", "b=twice.parquet"], r"has the same problem twice \(trace 10: clf, 3 hops\)"),
    (["none.parquet", "b=plain.parquet"], r"Trace 0 of .*plain\.parquet has no problem to be judged by"),
]


@pytest.mark.parametrize(("words", "said"), MISTAKES, ids=[" ".join(words) for words, _ in MISTAKES])
def test_mistakes_are_one_sentence_with_exit_code_2(
    files: Path, words: list[str], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import re

    monkeypatch.chdir(files)
    code, printed = call("compare", *words)
    assert code == 2 and re.search(said, printed), printed


def test_the_tokenizer_is_that_of_the_model_that_the_traces_name(tmp_path: Path) -> None:
    model, tokenizer = load_model("reasoner")
    traces = generate(model, tokenizer, tasks.sample("clf", 3, 2), progress=False)
    assert tokenizer_of({"a": traces, "b": traces}, None).get_vocab() == tokenizer.get_vocab()
    with pytest.raises(BadInput, match="The tokenizer of 'world' is not the one that the traces of 'a' were written"):
        tokenizer_of({"a": traces}, "world")
    by_hand = {"a": traces, "b": [outcome(p, True) for p in ten_problems()]}
    with pytest.raises(BadInput, match="The traces name these models: none, reasoner; say with --model"):
        tokenizer_of(by_hand, None)
