"""The sections on comparisons, flips and tables, and the reports of studies."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from report_examples import EVIL, page_of

from chainwright import BadInput
from chainwright._registry import names
from chainwright._tables import Tables
from chainwright.evaluation.comparison import Comparison, compare
from chainwright.evaluation.flips import Flips, flips
from chainwright.models.load import load_model
from chainwright.report.sections import comparison, tables
from chainwright.report.sections.flips import shown
from chainwright.report.study import summary_of, write_study_report
from chainwright.studies import Study
from chainwright.studies.plan import plan_of
from outcomes import two_ways
from study_plans import Squares


def compared(**names: str) -> Comparison:
    traces = two_ways()
    return compare({names.get(name, name): found for name, found in traces.items()})


def moved() -> Flips:
    return flips(two_ways(), load_model("reasoner").tokenizer, flagged={"repair": [[1]] * 10})


def data_of(page: str) -> dict:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)
    assert found is not None
    return json.loads(found[1])


def test_a_comparison_alone_makes_a_report() -> None:
    page = page_of([compared(), moved()])
    assert re.findall(r'<section id="([a-z]+)">', page) == ["found", "comparison", "flips"]
    assert re.findall(r'data-figure="([a-z-]+)"', page) == ["ways", "chains-by-hops", "answers-by-hops"]
    assert "none gets 30% of 10 whole chains right." in page
    assert "Not distinguishable from it at this sample size: repair (+20.0)." in page
    assert "On 4 problems of 10 the ways disagree" in page and "flagged, that is, decided again" in page
    (data,) = data_of(page)["sections"]["flips"]
    assert data["names"] == ["none", "repair"] and [p["number"] for p in data["problems"]] == [0, 2, 3, 7]


def test_ways_that_gain_and_lose_for_certain_are_told_apart() -> None:
    found = compared()
    ends = {"gain": (0.05, 0.3), "loss": (-0.3, -0.1), "same": (-0.1, 0.1)}
    base = found.overall("none")
    rows = [base, *({**base, "name": k, "exact_gain": (a + b) / 2, "exact_gain_low": a, "exact_gain_high": b}
                    for k, (a, b) in ends.items())]  # fmt: skip
    assert comparison.verdict(replace(found, rows=rows)) == [
        "none gets 30% of 10 whole chains right.",
        "Points more: gain (+17.5).",
        "Points fewer: loss (-20.0).",
        "Not distinguishable from it at this sample size: same (+0.0).",
    ]


def test_text_of_users_and_models_is_escaped() -> None:
    found = moved()
    evil = replace(found, texts=[EVIL, *found.texts[1:]], problems=[{**p, "prompt": EVIL} for p in found.problems])
    rows = [{EVIL: EVIL, "n": 1}]
    page = page_of([compared(repair=EVIL), evil, Tables(title=EVIL, tables={EVIL: rows}, notes=[EVIL])])
    assert EVIL not in page and EVIL in data_of(page)["sections"]["flips"][0]["texts"]


def test_flips_that_are_too_many_are_cut_and_the_page_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    found = moved()
    whole = shown(found, 10**6)
    assert len(whole["problems"]) == 4
    cut = shown(found, 1200)
    assert 0 < len(cut["problems"]) < 4
    for problem in cut["problems"]:
        same = next(p for p in whole["problems"] if p["number"] == problem["number"])
        for a, b in zip(problem["answers"], same["answers"], strict=True):
            assert cut["chains"][a["chain"]] == whole["chains"][b["chain"]]
    monkeypatch.setattr("chainwright.report.sections.flips.MAX_BYTES", 1200)
    assert "of them are here, the others would make this file too large" in page_of([found])


def test_without_flips_there_is_no_such_section() -> None:
    traces = two_ways()
    same = flips({"a": traces["none"], "b": traces["none"]}, load_model("reasoner").tokenizer)
    page = page_of([compared(), same])
    assert 'id="flips"' not in page and same.problems == []


def test_tables_show_numbers_and_draw_thresholds() -> None:
    rows = [{"tau": t, "precision": 0.5, "recall": 0.5, "flagged": 0.1, "gain": 0.0, "low": 0.0, "high": 0.0}
            for t in (0.1, 0.2)]  # fmt: skip
    found = Tables(title="Ablations", tables={"tau": rows, "what": [{"a": None, "b": 0.12345}], "none": []})
    page = page_of([found])
    assert re.findall(r'data-figure="([a-z-]+)"', page) == ["thresholds"]
    assert "<td>-</td>" in page and '<td class="n">0.123</td>' in page and "<p>none: none.</p>" in page
    assert list(found.lines())[:4] == ["### tau", "", "| tau | precision | recall | flagged | gain | low | high |",
                                       "|---|---|---|---|---|---|---|"]  # fmt: skip
    assert found.to_frame().num_rows == 3 and "tau (2), what (1), none (0)" in found.summary()
    assert tables.section.__doc__


def test_every_kind_of_study_of_ours_is_known() -> None:
    kinds = {"diagnosis", "reproduce tcr", "reproduce stepflow", "reproduce back-attention", "iteration-heads"}
    assert kinds <= set(names("study"))
    with pytest.raises(BadInput, match="Unknown study kind 'tesseracts'; known: "):
        plan_of("tesseracts")


def test_studies_without_findings_or_an_end_have_no_report(tmp_path: Path) -> None:
    study = Study.make(tmp_path / "s", Squares())
    with pytest.raises(BadInput, match=r"is not finished; resume it with: python squares\.py"):
        write_study_report(tmp_path / "s")
    study.run()
    with pytest.raises(BadInput, match="A report needs at least one finding; got none"):
        write_study_report(tmp_path / "s")
    assert summary_of(study) == [] and not (tmp_path / "s" / "report.html").exists()
