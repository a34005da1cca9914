"""First errors of traces made by hand: shares, key types, entropies."""

import pytest
import torch

from chainwright import tasks
from chainwright.diagnose import first_errors
from chainwright.scoring import TokenScores
from chainwright.tasks import Problem
from chainwright.traces import Trace
from trace_tokenizers import byte_level, task_words

OTHER = {"name recall": ("kate", "ann"), "action recall": ("flips", "stays"), "state update": ("heads", "tails")}


def gold(problem: Problem) -> Trace:
    return Trace.from_text(task_words(), problem.prompt, problem.chain, problem=problem)


def wrong(problem: Problem, kind: str, nth: int = 0) -> Trace:
    """Return a trace whose n-th slot of a kind says something else."""
    slots = [slot for slot in problem.slots if slot.error_type == kind]
    slot = slots[nth]
    value = next(word for word in OTHER[kind] if word != slot.value)
    text = problem.chain[: slot.start] + value + problem.chain[slot.end :]
    trace = Trace.from_text(task_words(), problem.prompt, text, problem=problem)
    assert trace.first_error is not None and trace.first_error.error_type == kind
    return trace


def unreadable(problem: Problem) -> Trace:
    trace = Trace.from_text(task_words(), problem.prompt, "? ? ?", problem=problem)
    assert trace.first_error is not None and trace.first_error.error_type == "unparsed"
    return trace


def parity(n: int, hops: int = 4) -> list[Problem]:
    """Return problems in which somebody flips, so that every kind of slot is there."""
    found = tasks.sample("parity", hops, 6 * n, seed=1)
    return [p for p in found if sum(s.error_type == "state update" for s in p.slots) >= 2][:n]


def entropies(trace: Trace, at: dict[int, float], elsewhere: float) -> TokenScores:
    values = torch.full((len(trace),), elsewhere)
    for position, value in at.items():
        values[position] = value
    return TokenScores(torch.zeros(len(trace)), values, torch.zeros(len(trace), dtype=torch.long))


def test_shares_by_task_hops_and_type() -> None:
    short, long = parity(4, 4), parity(3, 6)
    traces = [gold(short[0]), wrong(short[1], "name recall"), wrong(short[2], "name recall"),
              wrong(short[3], "action recall"), wrong(long[0], "action recall"), gold(long[1]),
              unreadable(long[2])]  # fmt: skip
    found = first_errors(traces)
    cells = {(r["hops"], r["error_type"]): (r["n"], r["n_errors"], r["n_traces"]) for r in found.rows}
    assert cells == {
        (4, "name recall"): (2, 3, 4),
        (4, "action recall"): (1, 3, 4),
        (6, "action recall"): (1, 2, 3),
        (6, "unparsed"): (1, 2, 3),
    }
    assert [r["share"] for r in found.rows] == [2 / 3, 1 / 3, 1 / 2, 1 / 2]
    whole = {r["error_type"]: (r["n"], r["n_errors"], r["n_traces"], r["is_key"]) for r in found.by_task}
    assert whole == {
        "name recall": (2, 5, 7, True),
        "action recall": (2, 5, 7, True),
        "unparsed": (1, 5, 7, False),
    }
    assert found.key_types == {"parity": ["name recall", "action recall"]}
    assert found.entropy == [] and found.config == {"key_share": 0.3}
    assert found.summary() == "parity: 5 wrong chains; first errors: name recall 40%, action recall 40%, unparsed 20%"
    assert found.to_frame().to_pylist() == found.rows


@pytest.mark.parametrize(("n_kind", "n_all"), [(3, 10), (6, 20), (9, 30)])
def test_exactly_30_percent_is_a_key_type_and_less_is_not(n_kind: int, n_all: int) -> None:
    problems = parity(n_all)
    kinds = ["action recall"] * n_kind + ["name recall"] * (n_all - n_kind)
    at_30 = first_errors([wrong(p, kind) for p, kind in zip(problems, kinds, strict=True)])
    assert at_30.key_types == {"parity": ["name recall", "action recall"]}
    kinds = ["action recall"] * (n_kind - 1) + ["name recall"] * (n_all - n_kind + 1)
    below = first_errors([wrong(p, kind) for p, kind in zip(problems, kinds, strict=True)])
    assert below.key_types == {"parity": ["name recall"]}
    assert first_errors([wrong(p, k) for p, k in zip(problems, kinds, strict=True)], key_share=0.9).key_types == {}


def test_unparsed_is_never_a_key_type_and_still_counts_as_an_error() -> None:
    problems = parity(10)
    traces = [unreadable(p) for p in problems[:8]] + [wrong(p, "name recall") for p in problems[8:]]
    found = first_errors(traces)
    assert found.key_types == {}
    assert {r["error_type"]: r["share"] for r in found.by_task} == {"unparsed": 0.8, "name recall": 0.2}


def test_traces_without_errors_or_problems() -> None:
    assert first_errors([]).summary() == "No errors."
    plain = Trace.from_text(task_words(), "ann", "flips")
    right = [gold(p) for p in parity(2)]
    found = first_errors([plain, *right])
    assert found.rows == [] and found.by_task == [] and found.key_types == {}
    assert found.summary() == "No errors.\n1 trace was not judged." and first_errors(right).summary() == "No errors."
    one = first_errors([plain, wrong(parity(1)[0], "name recall")])
    assert [r["n_traces"] for r in one.rows] == [1]


def elsewhere(is_correct: bool) -> Trace:
    return Trace.from_text(task_words(), "ann", "flips", is_correct=is_correct)


def test_wrong_traces_without_a_located_error_are_counted() -> None:
    found = first_errors([elsewhere(False)] * 3 + [elsewhere(True)])
    assert found.summary() == "unknown task: 3 wrong traces, none with a located first error"
    counts = {"n_traces": 4, "n_wrong": 3, "n_unlocated": 3, "n_unjudged": 0, "n_unread": 0}
    assert found.answers == [{"task": "unknown", **counts}]
    assert found.by_task == [] and found.key_types == {}
    assert first_errors([elsewhere(True)]).summary() == "No errors."


def test_chains_and_answers_are_counted_apart() -> None:
    own = Problem("mine", 1, "ann", chain="", answer="bob", slots=())
    mine = [Trace.from_text(task_words(), "ann", text, problem=own) for text in ("cat", "bob")]
    lucky = next(t for p in parity(20) for t in [wrong(p, "action recall")] if t.is_correct)
    found = first_errors([lucky, *mine])
    assert found.summary() == (
        "parity: 1 wrong chain; first errors: action recall 100%\nmine: 1 wrong trace, none with a located first error"
    )
    counts = {row["task"]: (row["n_traces"], row["n_wrong"], row["n_unlocated"]) for row in found.answers}
    assert counts == {"parity": (1, 0, 0), "mine": (2, 1, 1)}


def test_a_slip_corrected_in_the_thinking_is_no_first_error() -> None:
    (problem,) = tasks.sample("moas", 3, 1, rendering="natural")
    slot = problem.slots[0]
    slip = problem.chain[: slot.start] + "999" + problem.chain[slot.end :]
    thought = f"<think>\n{slip}\nWait.\n{problem.chain}\n</think>\n\n"
    right = Trace.from_text(byte_level(), problem.prompt, thought + problem.chain, problem=problem)
    assert first_errors([right] * 4).summary() == "No errors."
    last = problem.slots[-1]
    bad = problem.chain[: last.start] + "999" + problem.chain[last.end :]
    wrong_ = Trace.from_text(byte_level(), problem.prompt, thought + bad, problem=problem)
    assert first_errors([wrong_]).summary().startswith("moas: 1 wrong chain; first errors: ")


def test_tasks_are_kept_apart() -> None:
    (other,) = tasks.sample("clf", 3, 1)
    found = first_errors([unreadable(other), wrong(parity(1)[0], "name recall")])
    assert [(r["task"], r["n_errors"]) for r in found.by_task] == [("clf", 1), ("parity", 1)]
    assert found.key_types == {"parity": ["name recall"]}


def test_entropy_at_errors_and_at_such_slots_when_right() -> None:
    """Medians by hand: wrong at 2.0, 1.0 and 4.0; right name slots all at 0.25 but for the raised ones."""
    traces = [wrong(p, "name recall", nth) for p, nth in zip(parity(3), (0, 1, 2), strict=True)]
    values = (2.0, 1.0, 4.0)
    scores = [entropies(t, {t.first_error_position: v}, 0.25) for t, v in zip(traces, values, strict=True)]
    scores[2].entropy[traces[2].slots[0].start] = 9.0  # another kind of slot
    (row,) = first_errors(traces, scores).entropy
    n_right = sum(s.is_right and s.error_type == "name recall" for t in traces for s in t.slots)
    assert n_right == 3, "0, 1 and 2 names before the wrong one"
    assert row == {
        "task": "parity",
        "error_type": "name recall",
        "entropy_wrong": 2.0,
        "n_wrong": 3,
        "entropy_right": 0.25,
        "n_right": 3,
        **dict.fromkeys(["wrong_low", "wrong_high", "right_low", "right_high"]),
    }


def test_medians_of_six_and_more_have_intervals() -> None:
    traces = [wrong(p, "name recall", 0) for p in parity(6)]
    scores = [entropies(t, {t.first_error_position: float(i)}, 0.1) for i, t in enumerate(traces)]
    (row,) = first_errors(traces, scores).entropy
    assert (row["wrong_low"], row["entropy_wrong"], row["wrong_high"]) == (0.0, 2.5, 5.0)


def test_shares_have_intervals() -> None:
    (row,) = first_errors([wrong(p, "name recall") for p in parity(2)]).by_task
    assert row["share"] == 1.0 == row["high"]
    assert row["low"] == pytest.approx(0.3424, abs=1e-4)  # 1 / (1 + 1.96^2 / 2)


def test_entropy_of_an_even_number_and_of_slots_that_were_never_right() -> None:
    first, second = parity(2)
    traces = [wrong(first, "name recall", 0), wrong(second, "name recall", 0)]
    scores = [entropies(t, {t.first_error_position: v}, 0.1) for t, v in zip(traces, (1.0, 2.0), strict=True)]
    (row,) = first_errors(traces, scores).entropy
    assert (row["entropy_wrong"], row["n_wrong"]) == (1.5, 2)
    assert (row["entropy_right"], row["n_right"]) == (None, 0)
    with pytest.raises(ValueError, match=r"shorter|longer"):
        first_errors(traces, scores[:1])


def test_answers_that_could_not_be_read_or_were_cut_are_not_wrong() -> None:
    problem = Problem("shop", 0, "How many?", "", "5", (), "natural", checker="number")
    said = [("#### 5", True), ("No idea", True), ("We begin", False)]
    traces = [
        Trace.from_text(byte_level(), "How many?", text, problem=problem, stopped=stopped) for text, stopped in said
    ]
    found = first_errors(traces)
    assert (found.answers[0]["n_wrong"], found.answers[0]["n_unlocated"], found.answers[0]["n_unread"]) == (0, 0, 2)
    assert found.summary() == "2 answers could not be read or were cut."
    wrong = Trace.from_text(byte_level(), "How many?", "#### 6", problem=problem)
    assert first_errors([*traces, wrong]).summary().startswith("shop: 1 wrong trace, none with a located first error")
