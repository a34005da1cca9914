from collections.abc import Sequence
from dataclasses import replace

import pytest
from report_examples import make_diagnosis

from chainwright import Finding
from chainwright.diagnose import HeadCheck
from chainwright.diagnose.facts import facts_of
from chainwright.evaluation.accuracy import Accuracy
from chainwright.figures import words as plain
from chainwright.report import words
from chainwright.report.gather import gather


@pytest.mark.parametrize(
    ("share", "said"),
    [(0, "0%"), (0.001, "<1%"), (0.005, "<1%"), (0.25, "25%"), (0.994, "99%"), (0.999, ">99%"), (1, "100%")],
)
def test_percentages_do_not_round_to_none_or_all(share: float, said: str) -> None:
    assert plain.percent(share) == said


def test_numbers_come_with_their_nouns() -> None:
    assert plain.counted(1, "problem") == "1 problem"
    assert plain.counted(1200, "problem") == "1,200 problems"
    assert plain.counted(0, "try", "tries") == "0 tries"
    assert plain.span_of([5, 12, 7]) == "5 to 12"
    assert plain.span_of([20, 20]) == "20"
    assert plain.listed([]) == ""
    assert plain.listed(["a"]) == "a"
    assert plain.listed(["a", "b", "c"]) == "a, b and c"


def test_an_interval_stays_within_none_and_all() -> None:
    assert plain.between(-1e-12, 1 + 1e-12) == "0% to 100%"


def test_the_check_is_said_in_counts_with_intervals() -> None:
    said = words.check_sentence(HeadCheck([1, 7], 0.8, 0.9375, 5, 16))
    assert "without L1H7" in said
    assert "4 of 5 failing contexts (80%; 95% interval 38% to 96%)" in said
    assert "15 of 16 right ones (94%; 95% interval 72% to 99%)" in said
    assert words.check_sentence(None).startswith("Not checked")


def test_breaking_points_name_the_fewest_hops_below_a_half() -> None:
    def row(task: str, hops: int, exact: float) -> dict[str, object]:
        return {"task": task, "hops": hops, "exact": exact}

    rows = [row("parity", 4, 1.0), row("parity", 8, 0.4), row("parity", 9, 0.2), row("objc", 5, 0.9)]
    said = words.breaking_points(Accuracy(rows=rows))
    assert said.endswith("Parity-NL 8; 1 task never fell below half.")
    assert words.breaking_points(Accuracy(rows=rows[:1])).startswith("At every hop count")


def test_easily_guessed_answers_are_named() -> None:
    assert "54% of the Parity-NL problems" in words.chance_note({"parity": 0.54, "objc": 0.1})
    assert words.chance_note({"objc": 0.1}) == ""


def certainty_of(findings: Sequence[Finding]) -> list[str]:
    return words.certainty(facts_of(findings), gather(findings))


def test_certainty_counts_traces_and_warns_of_cut_responses() -> None:
    diagnosis = make_diagnosis({"parity": (2, 4), "objc": (3,)})
    said = " ".join(certainty_of(diagnosis))
    assert "12 traces in 3 cells" in said
    assert "4 problems each; 6 chains went wrong" in said
    assert "a measured 50% is compatible with 15% to 85%" in said
    assert "2 of 4 is compatible with" in said
    cut = [replace(trace, stopped=False) for trace in diagnosis.traces]
    rows = [row | {"n_cut": row["n"]} for row in diagnosis.accuracy.rows]
    diagnosis = replace(diagnosis, traces=cut, findings=[Accuracy(rows=rows), *diagnosis.findings[1:]])
    assert "12 responses met the token limit" in " ".join(certainty_of(diagnosis))
