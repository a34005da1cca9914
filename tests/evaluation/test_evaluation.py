"""Accuracy with intervals, against numbers worked out by hand."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from chainwright import tasks
from chainwright._errors import BadInput
from chainwright._stats import wilson
from chainwright.evaluation.accuracy import Accuracy, evaluate
from chainwright.evaluation.comparison import Comparison, compare
from chainwright.report.lines import by_cell, by_task, comparison_lines
from chainwright.report.sections.comparison import verdict
from chainwright.tasks import Problem
from chainwright.traces import Trace
from outcomes import outcome, two_ways
from trace_tokenizers import byte_level, task_words


def by_hand(k: int, n: int, z: float = 1.959963984540054) -> tuple[float, float]:
    """Return centre minus and plus half width of the score interval (Wilson, 1927)."""
    p = k / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * (p * (1 - p) / n + z * z / (4 * n * n)) ** 0.5
    return centre - half, centre + half


def trace(problem: Problem, text: str | None = None, **changes: object) -> Trace:
    found = Trace.from_text(task_words(), problem.prompt, problem.chain if text is None else text, problem=problem)
    return Trace(**({f: getattr(found, f) for f in found.__dataclass_fields__} | changes))


@pytest.mark.parametrize(("k", "n"), [(0, 10), (1, 10), (5, 10), (10, 10), (39, 40), (1, 1)])
def test_wilson_is_the_score_interval(k: int, n: int) -> None:
    assert tuple(wilson(k, n)) == pytest.approx(by_hand(k, n), abs=1e-12)


def test_wilson_by_textbook_numbers() -> None:
    assert wilson(5, 10) == pytest.approx((0.2366, 0.7634), abs=5e-5)
    assert wilson(0, 10) == pytest.approx((0.0, 0.2775), abs=5e-5)
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)  # Newcombe (1998), table I
    assert wilson(5, 10, 0.9).low > wilson(5, 10).low


def test_cells_in_order_with_answers_chains_and_cut_responses() -> None:
    clf, parity, short = (tasks.sample(*cell, 3) for cell in (("clf", 4), ("parity", 5), ("parity", 2)))
    lucky = parity[0].chain.replace(parity[0].chain.splitlines()[1], parity[0].chain.splitlines()[2])
    traces = [
        trace(clf[0]),
        trace(parity[0], lucky),
        trace(parity[1], stopped=False),
        trace(parity[2], "", stopped=False),
        trace(short[0]),
        trace(clf[1], "? ?"),
    ]
    rows = evaluate(traces).rows
    assert [(r["task"], r["hops"], r["n"]) for r in rows] == [("clf", 4, 2), ("parity", 2, 1), ("parity", 5, 3)]
    whole = rows[2]
    assert (whole["accuracy"], whole["exact"], whole["n_cut"]) == (2 / 3, 1 / 3, 2)
    assert (whole["low"], whole["high"]) == tuple(wilson(2, 3))
    assert (whole["exact_low"], whole["exact_high"]) == tuple(wilson(1, 3))
    assert whole["tokens"] == sum(len(t.response_ids) for t in traces[1:4]) / 3
    assert (rows[0]["accuracy"], rows[0]["exact"], rows[0]["n_cut"]) == (0.5, 0.5, 0)
    assert (rows[1]["accuracy"], rows[1]["high"]) == (1.0, pytest.approx(1.0))


def test_summary_and_table() -> None:
    found = evaluate(
        [trace(p) for h in (4, 2) for p in tasks.sample("llc", h, 2)] + [trace(tasks.sample("clf", 3, 1)[0])]
    )
    assert found.summary() == "llc: 2 hops 1.00, 4 hops 1.00\nclf: 3 hops 1.00"
    assert found.to_frame().to_pylist() == found.rows
    assert evaluate([]).rows == [] and evaluate([]).summary() == ""


def test_traces_that_cannot_be_judged_are_refused_by_number() -> None:
    (problem,) = tasks.sample("parity", 2, 1)
    plain = Trace.from_text(task_words(), "ann", "flips")
    with pytest.raises(BadInput, match="Trace 1 has no problem and no judgement, so it is unknown whether it is right"):
        evaluate([trace(problem), plain])
    with pytest.raises(BadInput, match="Trace 0 was not judged by its problem"):
        evaluate([trace(problem, is_correct=None)])


def judged(is_correct: bool) -> Trace:
    return Trace.from_text(task_words(), "ann", "flips", is_correct=is_correct)


def test_traces_that_were_judged_elsewhere_count_under_an_unknown_task() -> None:
    (problem,) = tasks.sample("parity", 2, 1)
    found = evaluate([judged(True), trace(problem), judged(False)])
    other, own = found.rows
    assert (other["task"], other["hops"], other["n"], other["accuracy"]) == ("unknown", None, 2, 0.5)
    assert (other["exact"], other["exact_low"], other["n_read"]) == (None, None, 0)
    assert (own["task"], own["hops"], own["exact"], own["n_read"]) == ("parity", 2, 1.0, 1)
    assert found.summary() == "unknown task: 0.50\nparity: 2 hops 1.00"
    assert found.to_frame().to_pylist() == found.rows
    figure = found.plot()
    assert [list(t.y) for t in figure.data if t.mode == "markers"] == [[0.5], [1.0]]


def test_a_problem_without_slots_has_no_exact_chains() -> None:
    problem = Problem("mine", 1, "ann", chain="", answer="bob", slots=())
    (row,) = evaluate([trace(problem, "bob"), trace(problem, "cat")]).rows
    assert (row["task"], row["accuracy"], row["exact"], row["n_read"]) == ("mine", 0.5, None, 0)


def test_comparisons_leave_unknown_chains_out() -> None:
    """Slotless problems have no whole chain: unknown is neither right nor wrong."""
    problem = Problem("mine", 1, "ann", chain="", answer="bob", slots=())
    found = compare({"a": [trace(problem, "cat")] * 3, "b": [trace(problem, "bob")] * 3})
    for row in found.rows:
        assert row["n"] == 3 and row["n_read"] == 0
        assert all(row[key] is None for key in ("exact", "exact_gain", "exact_gain_low", "n_fixed", "n_broken", "p"))
    assert found.overall("b")["gain"] == 1.0
    assert found.summary() == (
        "a: answers 0.000, whole chains unknown, 1 tokens\n"
        "b: answers 1.000 (+1.000, 95% +1.000 to +1.000), whole chains unknown, 1 tokens"
    ).replace("1 tokens", f"{found.overall('a')['tokens']:.0f} tokens")
    first, second = found.by_way()
    assert (second["chains right"], second["gain in answers"], second["p"]) == (None, "+1.000", None)
    assert list(first) == list(second)
    chains, _, answers, gains = found.plot().data
    assert (chains.name, list(chains.x), list(answers.x), list(gains.x)) == (
        "whole chains (unknown)", [], [0.0, 1.0], [1.0],
    )  # fmt: skip
    assert [list(line.y) for line in found.plot("chains").data] == [[], []]
    assert verdict(found) == [
        "a gets 0% of 3 answers right.",
        "Whole chains are unknown: the problems have no slots, or no chain was read.",
        "Points more: b (+100.0).",
    ]
    assert "Gain in chains" not in "\n".join(comparison_lines(found))


def test_comparisons_of_some_unknown_chains_count_the_others() -> None:
    known, unknown = tasks.sample("parity", 2, 1)[0], Problem("mine", 1, "ann", chain="", answer="bob", slots=())
    found = compare(
        {"a": [outcome(known, False), trace(unknown, "bob")], "b": [outcome(known, True), trace(unknown, "bob")]}
    )
    row = found.overall("b")
    assert (row["n"], row["n_read"], row["exact"], row["exact_gain"], row["n_fixed"]) == (2, 1, 1.0, 1.0, 1)
    assert "whole chains 1.000 of the 1 that were read (+1.000" in found.summary()
    assert [line["chains read"] for line in found.by_way()] == [1, 1]
    assert verdict(found)[0] == "a gets 0% of 1 whole chain that were read (of 2) right."
    assert [line["b"] for line in by_cell(found)] == ["1.00", None]
    assert [line["task"] for line in by_task(found)] == ["Parity-NL"]
    assert found.plot("chains") is not None


def test_chains_that_could_not_be_read_are_in_no_share() -> None:
    problems = tasks.sample("moas", 2, 3, rendering="natural")
    texts = [p.chain for p in problems[:2]] + [f"Answer: {problems[2].answer}"]
    traces = [
        Trace.from_text(byte_level(), p.prompt, f"<think>Hm.</think>\n\n{text}", problem=p)
        for p, text in zip(problems, texts, strict=True)
    ]
    (row,) = evaluate(traces).rows
    assert (row["accuracy"], row["exact"], row["n_read"], row["n"]) == (1.0, 1.0, 2, 3)


def test_compare_pairs_problems_and_counts_what_is_fixed_and_broken() -> None:
    found = compare(two_ways())
    row = found.overall("repair")
    assert (row["n"], row["n_fixed"], row["n_broken"]) == (10, 3, 1)
    assert row["exact"] == pytest.approx(0.5) and row["exact_gain"] == pytest.approx(0.2)
    assert row["exact_gain_low"] <= 0.2 <= row["exact_gain_high"]
    assert row["p"] == pytest.approx(0.625)  # 4 moved, 3 one way: 2 * (4 + 1) / 16
    four = next(r for r in found.rows if r["hops"] == 4 and r["name"] == "repair")
    assert (four["n"], four["exact"], four["exact_gain"]) == (4, 0.5, 0.25)
    assert found.overall("none")["exact_gain"] == 0.0 and found.baseline == "none"
    assert "3 fixed, 1 broken" in found.summary()
    assert found.to_frame().num_rows == len(found.rows) == 2 * 4


def test_compare_refuses_other_problems_and_nothing() -> None:
    one, two = (tasks.sample("clf", 3, 2, seed) for seed in (0, 1))
    first, other = ([outcome(p, True) for p in ps] for ps in (one, two))
    with pytest.raises(BadInput, match="Trace 0 of 'b' is of another problem"):
        compare({"a": first, "b": other})
    with pytest.raises(BadInput, match="'b' has 1 traces, the first way has 2"):
        compare({"a": first, "b": first[:1]})
    with pytest.raises(BadInput, match="at least one trace"):
        compare({"a": []})


def test_a_comparison_is_a_table_for_readers_and_three_figures() -> None:
    found = replace(compare(two_ways()), costs={"repair": {"seconds": 0.5}})
    first, second = found.by_way()
    assert first["way"] == "none" and first["gain"] is None and first["seconds"] is None
    assert (second["fixed"], second["broken"], second["p"], second["seconds"]) == (3, 1, "0.62", 0.5)
    assert second["gain"] == "+0.200" and second["95%"].startswith("-0.") and " to +0." in second["95%"]
    assert found.names == ["none", "repair"] and len(found.cells) == 4
    assert [trace.name for trace in found.plot().data] == ["whole chains"] * 2 + ["final answers"] * 2
    assert [list(t.y) for t in found.plot("chains").data] == [[2 / 6, 1 / 4], [3 / 6, 2 / 4]]
    assert found.plot("answers").data[0].name == "none"
    with pytest.raises(BadInput, match="view must be one of ways, chains, answers; got 'hops'"):
        found.plot("hops")  # type: ignore[arg-type]


def test_a_comparison_keeps_its_costs_and_reads_those_without(tmp_path: Path) -> None:
    found = replace(compare(two_ways()), costs={"repair": {"flagged": "1.00%"}}, title="Two ways")
    assert Comparison.load(found.save(tmp_path / "new")) == found
    old = compare(two_ways()).save(tmp_path / "old")
    record = json.loads((old / "result.json").read_text())
    del record["values"]["costs"], record["values"]["title"]
    (old / "result.json").write_text(json.dumps(record))
    assert Comparison.load(old) == compare(two_ways())


def of_set(answer: str, response: str, *, stopped: bool = True, **labels: str | int) -> Trace:
    """A response to a problem of a set, judged by the checker `number`."""
    name = f"How many? {labels.get('id', '')}"
    problem = Problem("shop", 0, name, "", answer, (), "natural", checker="number", labels=labels)
    return Trace.from_text(byte_level(), name, response, problem=problem, stopped=stopped)


def test_unread_and_cut_answers_are_counted_apart_and_labels_break_accuracy_down() -> None:
    traces = [
        of_set("5", "#### 5", id="a", level="Level 10", length=1),
        of_set("5", "#### 6", id="b", level="Level 9", length=2),
        of_set("5", "No idea", id="c", level="Level 9", length=3),
        of_set("5", "So we add 2 and", stopped=False, id="d", level="Level 10", length=4),
    ]
    found = evaluate(traces)
    (row,) = found.rows
    assert (row["n"], row["accuracy"], row["n_unread"], row["n_cut_answers"], row["n_cut"]) == (4, 0.25, 1, 1, 1)
    assert found.summary() == "shop: 0.25 (1 of 4 not read, 1 of 4 cut)"
    assert [
        (r["label"], r["value"], r["n"], r["accuracy"], r["n_unread"], r["n_cut_answers"]) for r in found.by_label
    ] == [
        ("level", "Level 9", 2, 0.0, 1, 0),
        ("level", "Level 10", 2, 0.5, 0, 1),
    ]
    assert (found.by_label[1]["low"], found.by_label[1]["high"]) == tuple(wilson(1, 2))
    assert found.unread == [
        {
            "trace": 2,
            "task": "shop",
            "id": "c",
            "answer": "5",
            "rule": "no answer is announced",
            "extracted": None,
            "end": "No idea",
        }
    ]
    figure = found.plot()
    assert [list(t.x) for t in figure.data] == [[0.25], [0.0, 0.5]]
    assert list(figure.layout.yaxis.ticktext) == ["<b>shop</b>", "Level 9", "Level 10"]


def test_several_responses_to_one_problem_make_no_group_and_twenty_unread_answers_are_listed() -> None:
    found = evaluate([of_set("5", "No idea", id=i % 2, level=i % 2) for i in range(30)])
    assert found.by_label == [] and len(found.unread) == 20 and found.rows[0]["n_unread"] == 30


def test_a_saved_accuracy_from_before_labels_is_read(tmp_path: Path) -> None:
    evaluate([of_set("5", "#### 5", id="a")]).save(tmp_path / "new")
    record = json.loads((tmp_path / "new" / "result.json").read_text())
    del record["values"]["by_label"], record["values"]["unread"], record["values"]["rows"][0]["n_unread"]
    (tmp_path / "new" / "result.json").write_text(json.dumps(record))
    old = Accuracy.load(tmp_path / "new")
    assert old.by_label == [] and old.summary() == "shop: 1.00"
