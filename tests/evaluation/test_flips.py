"""Flips: the problems on which ways disagree, with texts of tokens that add up to the responses."""

from pathlib import Path

import pytest

from chainwright import BadInput, Finding
from chainwright.evaluation.comparison import compare
from chainwright.evaluation.flips import Flips, flips
from chainwright.models.load import load_model
from outcomes import outcome, ten_problems, two_ways


@pytest.fixture(scope="module")
def found() -> Flips:
    return flips(two_ways(), load_model("reasoner").tokenizer, flagged={"repair": [[0, 2]] * 10})


def test_only_problems_on_which_the_ways_disagree_are_kept(found: Flips) -> None:
    assert [problem["index"] for problem in found.problems] == [0, 2, 3, 7]
    assert [[a["is_right"] for a in row] for row in found.answers] == [[True, False], *[[False, True]] * 3]
    row = compare(two_ways()).overall("repair")
    assert found.counts("none", "repair") == (row["n_fixed"], row["n_broken"]) == (3, 1)
    assert found.counts("repair", "none") == (1, 3)
    assert "On 4 of 10 problems the ways disagree" in found.summary() and "fixes 3 and breaks 1" in found.summary()


def test_texts_of_tokens_add_up_to_the_response(found: Flips) -> None:
    traces = two_ways()
    for problem, row in zip(found.problems, found.answers, strict=True):
        for name, answer in zip(found.names, row, strict=True):
            trace = traces[name][problem["index"]]
            pieces = found.chains[answer["chain"]]
            assert len(pieces) == len(trace.response_ids)
            assert "".join(found.texts[i] for i in pieces) == trace.response
    assert found.to_frame().num_rows == 8


def test_errors_and_flags_stand_at_their_tokens(found: Flips) -> None:
    before, after = found.answers[0]
    assert before["error"] is None and before["flagged"] is None and after["flagged"] == [0, 2]
    error, pieces = after["error"], found.chains[after["chain"]]
    assert error["got"] == found.texts[pieces[error["at"]]].strip() in ("web/", "lib/")


def test_flips_are_saved_and_loaded_as_any_finding(found: Flips, tmp_path: Path) -> None:
    read = Finding.load(found.save(tmp_path / "flips"))
    assert isinstance(read, Flips) and read.summary() == found.summary() and read.chains == found.chains


def test_other_problems_and_other_flags_are_refused() -> None:
    tokenizer, first = load_model("reasoner").tokenizer, [outcome(p, True) for p in ten_problems()]
    with pytest.raises(BadInput, match="'b' has 9 traces, the first way has 10"):
        flips({"a": first, "b": first[1:]}, tokenizer)
    with pytest.raises(BadInput, match="'b' has 10 traces, but flags of 2; give one list each"):
        flips({"a": first, "b": first}, tokenizer, flagged={"b": [[1], []]})
