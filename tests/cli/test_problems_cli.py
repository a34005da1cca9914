"""The command `problems`, and the options of a problem set."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from chainwright import BadInput
from chainwright.cli._problems import PROBLEM_SET, problem_source
from command_line import call

NOTHING = {option.field: option.parameter.default for option in PROBLEM_SET.options("x")}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    records = [{"q": f"How many are {i}?", "a": i, "level": f"L{i % 2}", "extra": [1, 2]} for i in range(4)]
    records += [{"q": "How many?", "level": "L0"}]
    file = tmp_path / "mine.jsonl"
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    return file


def test_what_is_read_is_shown_before_anything_is_computed(path: Path) -> None:
    code, printed = call("problems", path, "--field", "question=q", "--field", "answer=a")
    assert code == 0
    for part in [
        "4 problems from 5 records, called 'mine'",
        "Kind: qa. Fields: q, a. Checker: number.",
        "Fields that are not read: extra.",
        "There are no worked solutions.",
        "Records that cannot be used (1)",
        "lacks the field 'a' (it has q, level)",
        "Other commands refuse the set for them; leave them out with --skip-bad.",
        "L0 (2), L1 (2)",
        "How many are 0? Right answer: 0",
        "How many are 1? Right answer: 1",
    ]:
        assert part in printed, part
    assert "How many are 2?" not in printed
    code, printed = call("problems", path, "--field", "question=q,answer=a", "--skip-bad", "-n", 2, "--examples", 0)
    assert code == 0 and "2 problems from 5 records" in printed and "They are left out." in printed


def test_mistakes_end_in_one_sentence(path: Path) -> None:
    code, printed = call("problems", path)
    assert code == 2 and "no question with an answer is found" in printed
    code, printed = call("problems", path.with_name("mine.json"))
    assert code == 2 and f"Did you mean {path}?" in printed
    code, printed = call("problems", path, "--field", "question")
    assert code == 2 and "--field takes ROLE=FIELD, such as question=prompt or answer=target; got 'question'" in printed


def test_options_make_a_source() -> None:
    assert problem_source(NOTHING) is None
    source = problem_source(NOTHING | {"source": "x.jsonl", "fields": ["question=q"], "skip_bad": True}, n=3, seed=1)
    assert source is not None and (source.source, source.fields, source.n, source.seed) == (
        "x.jsonl",
        {"question": "q"},
        3,
        1,
    )
    with pytest.raises(BadInput, match="--field, --checker needs a problem set; name one with --problems"):
        problem_source(NOTHING | {"checker": "number", "fields": ["question=q"]})
