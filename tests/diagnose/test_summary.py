"""The facts of findings, and their two wordings."""

import pytest
import torch

from chainwright.diagnose import ErrorTable, HeadCheck, HeadRoles, RoleFinding
from chainwright.diagnose.facts import facts_of
from chainwright.diagnose.summary import paragraphs, summary_lines
from chainwright.evaluation.accuracy import Accuracy
from chainwright.evaluation.comparison import Comparison


def entropies(kind: str, wrong: float, right: float | None, n: int, **ends: float | None) -> dict[str, object]:
    row = {"task": "clf", "error_type": kind, "entropy_wrong": wrong, "entropy_right": right, "n_wrong": n}
    return row | {"n_right": 9, "wrong_low": None, "wrong_high": None, "right_low": None, "right_high": None} | ends


def errors(*entropy: dict[str, object]) -> ErrorTable:
    counts = {"operation recall": 6, "fewer hops": 3, "unparsed": 1}
    rows = [
        {"task": "clf", "error_type": kind, "n": n, "n_errors": 10, "n_traces": 20, "share": n / 10, "is_key": n > 2}
        for kind, n in counts.items()
    ]
    return ErrorTable(rows=[], by_task=rows, entropy=list(entropy))


def role(kind: str, check: HeadCheck | None) -> RoleFinding:
    maps = ("writing_correct", "writing_erroneous", "effect_correct", "effect_erroneous", "rectification")
    lists = ("answer_writing", "correct_processing", "erroneous_processing", "basic")
    values = dict.fromkeys((*maps, "corrected", "kept"), torch.zeros(2, 3)) | {name: [] for name in lists}
    return RoleFinding.of("clf", kind, HeadRoles(**values, n_correct=4, n_erroneous=4), check)


def test_the_line_on_entropy_says_what_its_numbers_are() -> None:
    """The table keeps a median per type; their mean, weighted by errors, is no median of all tokens."""
    rows = [("operation recall", 0.9, 0.1, 6), ("fewer hops", 0.3, 0.4, 3), ("unparsed", 9.0, 0.0, 1)]
    table = errors(*(entropies(*row) for row in rows))
    (line,) = [line for line in summary_lines(facts_of([table])) if line.startswith("Uncertainty")]
    assert line == (
        "Uncertainty: entropy is 0.70 nats at first errors vs 0.20 at correct slots of the same type (medians per "
        "error type, averaged over errors)."
    )
    assert (6 * 0.9 + 3 * 0.3) / 9 == pytest.approx(0.7) and (6 * 0.1 + 3 * 0.4) / 9 == pytest.approx(0.2)


def test_the_paragraph_counts_types_with_clear_differences() -> None:
    clear = entropies("operation recall", 0.9, 0.1, 6, wrong_low=0.5, right_high=0.2)
    (text,) = paragraphs(facts_of([errors(clear, entropies("fewer hops", 0.3, 0.4, 3))]), "toy")
    assert "for 1 of the 2 error types that can be compared (by median entropy); for the one type with enough" in text
    (both,) = paragraphs(facts_of([errors(clear)]), "toy")
    assert "for the one error type that can be compared" in both
    (all_,) = paragraphs(facts_of([errors(clear, entropies("fewer hops", 0.5, 0.4, 3))]), "toy")
    assert "for all 2 error types that can be compared" in all_
    few = paragraphs(facts_of([errors(entropies("fewer hops", 0.3, 0.4, 3))]), "toy")[0]
    assert "for 0 of the 1 error type" in few and "none of them has enough tokens" in few


def test_both_wordings_have_the_same_numbers() -> None:
    rows = [{"task": "clf", "hops": h, "n": 10, "exact": share} for h, share in ((2, 1.0), (8, 0.4))]
    checks = [HeadCheck([1, 2], 0.5, 0.75, 4, 4), HeadCheck([0, 1], 0.0, 1.0, 12, 4)]
    found = [Accuracy(rows=rows), errors(), role("operation recall", checks[0]), role("fewer hops", checks[1])]
    facts = facts_of(found)
    lines, text = summary_lines(facts), " ".join(paragraphs(facts, "toy"))
    assert "right in 100% of problems at the fewest hops asked (2) and in 40% at the most (8)" in lines[0]
    assert "toy got 14 of 20 whole chains (70%" in text and "it got 4 of 10 chains (40%" in text
    assert "60% of 10 first errors are recall errors; key types: CLF operation recall, fewer hops." in lines[1]
    assert "a recall error: 6 of 10 wrong chains (60%" in text
    assert "fixes 12% of 16 held-out failing contexts and keeps 88% of the right ones" in lines[4]
    assert "2 of 16 failing contexts (12%" in text and "7 of 8 right ones (88%" in text
    assert "silencing layer 1 head 2 alone puts the right token first in 50% of 4" in lines[3]
    assert "L1H2 fixed 2 of 4 contexts (50%" in text


def test_a_gain_that_may_be_none_is_said_to_be() -> None:
    ends = {"exact_gain": 0.1, "exact_gain_low": -0.05, "exact_gain_high": 0.2}
    row = {"task": "all", "hops": None, "n": 10, "n_fixed": 2, "n_broken": 1, **ends}
    ways = [row | {"name": name, "exact": share} for name, share in (("alone", 0.5), ("it", 0.6))]
    facts = facts_of([Comparison(baseline="alone", rows=ways)])
    assert "+10.0 points (95% -5.0 to +20.0); 2 fixed, 1 broken" in summary_lines(facts)[0]
    assert "not distinguishable from zero at this sample size" in paragraphs(facts, "toy")[0]


def test_nothing_is_said_of_what_was_not_measured() -> None:
    assert summary_lines(facts_of([])) == [] and paragraphs(facts_of([]), "toy") == []
    assert len(summary_lines(facts_of([]), searched_heads=True)) == 2


def test_the_text_says_that_only_some_heads_were_silenced() -> None:
    whole, part = role("operation recall", None), role("fewer hops", None)
    part.config.update(method="screened", measured=0.25)
    assert any(
        "each of the 6 attention heads was silenced" in text for text in paragraphs(facts_of([errors(), whole]), "m")
    )
    (said,) = [text for text in paragraphs(facts_of([errors(), whole, part]), "m") if "To find the cause" in text]
    assert "the 25% of the 6 attention heads that an estimate ranks highest were silenced in turn" in said
