"""`generate --out` and `evaluate --out`: stopped at any moment, the same command resumes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from chainwright import generate, load_model, read_traces, tasks
from chainwright.repair.run import Cost
from chainwright.studies import generation
from command_line import call

ASK = ("-t", "clf", "--hops", "2,3", "-n", 5, "--temperature", 1.5, "--seed", 3, "-q")


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generation, "ROWS", 4)


def interrupted_after(n_parts: int, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    real, seen = generation.generate, []

    def stopping(*args: object, **kwargs: object) -> object:
        if len(seen) == n_parts:
            raise KeyboardInterrupt
        seen.append(1)
        return real(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(generation, "generate", stopping)
    return monkeypatch


@pytest.mark.parametrize("command", ["generate", "evaluate"])
def test_what_was_decoded_is_not_decoded_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    path = tmp_path / "t.parquet"
    assert call(command, *ASK, "-o", tmp_path / "whole.parquet")[0] == 0
    with monkeypatch.context() as patch:
        code, printed = call_with(interrupted_after(2, patch), command, *ASK, "-o", path)
    assert code == 130 and "run the same command again to resume" in printed
    assert sorted(p.name for p in (tmp_path / "t.parquet.parts").glob("part*")) == ["part-000000", "part-000001"]
    code, printed = call(command, *ASK[:5], 6, *ASK[6:], "-o", path)
    assert code == 2 and "n is 5 there, 6 was asked" in printed
    with monkeypatch.context() as patch:
        assert call_with(interrupted_after(1, patch), command, *ASK, "-o", path)[0] == 0, "one part was left"
    assert path.read_bytes() == (tmp_path / "whole.parquet").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["t.parquet", "whole.parquet"]


def call_with(patch: pytest.MonkeyPatch, *args: object) -> tuple[int, str]:
    return call(*args)


def test_parts_joined_are_what_one_call_gives(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    assert call("generate", *ASK, "-o", path)[0] == 0
    problems = [problem for hops in (2, 3) for problem in tasks.sample("clf", hops, 5, 3)]
    model, tokenizer = load_model("reasoner")
    expected = generate(model, tokenizer, problems, temperature=1.5, seed=3, progress=False)
    assert [t.input_ids.tolist() for t in read_traces(path)] == [t.input_ids.tolist() for t in expected]
    later = generate(model, tokenizer, problems[6:], temperature=1.5, seed=3, first_row=6, progress=False)
    assert [t.response for t in later] == [t.response for t in expected[6:]]


def test_a_file_that_is_there_is_replaced_only_if_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "t.parquet"
    path.write_text("mine")
    for command in ("generate", "evaluate"):
        code, printed = call(command, *ASK, "-o", path)
        assert code == 2 and "pass --overwrite" in printed and path.read_text() == "mine"
    with monkeypatch.context() as patch:
        assert call_with(interrupted_after(2, patch), "generate", *ASK, "--overwrite", "-o", path)[0] == 130
    assert path.read_text() == "mine"
    with monkeypatch.context() as patch:
        assert call_with(interrupted_after(1, patch), "generate", *ASK, "--overwrite", "-o", path)[0] == 0
    assert len(read_traces(path)) == 10
    code, printed = call("evaluate", "--traces", path, "-o", tmp_path / "x.parquet")
    assert code == 2 and "--out writes new traces, but --traces only reads some" in printed


def test_another_repair_of_the_same_name_is_told_apart(tmp_path: Path) -> None:
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "a.json").write_text("1")
    first = generation.identity_of(str(tmp_path / "r"))
    (tmp_path / "r" / "a.json").write_text("2")
    assert generation.identity_of(str(tmp_path / "r")) != first
    assert generation.identity_of(None) is None and generation.identity_of("owner/name") == "owner/name"


def test_the_cost_of_a_repair_is_that_of_all_parts(tmp_path: Path) -> None:
    counts = []
    for more in ((), ("-o", tmp_path / "t.parquet")):
        code, printed = call("evaluate", *ASK, "--repair", "tcr-reasoner", *more)
        assert code == 0
        counts.append(re.findall(r"Repair: (\d+) tokens, (\d+) flagged \(.*?\), (\d+) changed", printed))
    assert counts[0] == counts[1] and int(counts[0][0][0]) > 0


def test_costs_add_up_by_repair() -> None:
    one = Cost(10, 2, 1, 0, 10, 1, 5, 2.0, 1.0)
    other = Cost(30, 0, None, 7, 30, 0, 0, 4.0, 0.5, {"stepflow": Cost(30, n_sites=7)})
    want = Cost(40, 2, 1, 7, 40, 1, 5, 6.0, 1.5, {"stepflow": Cost(30, n_sites=7)})
    assert Cost.one_after_the_other([one, other]) == want
