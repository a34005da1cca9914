"""The table of findings: every record fits, the committed page is the generated one, and bad records are named."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from chainwright import BadInput
from chainwright.cli import app
from chainwright.cli._command import ASKED
from chainwright.cli._results import command_line, write_result
from chainwright.models import load_model
from chainwright.reproduce.findings import FINDINGS, PAPERS, Result, findings_page, read_results, save_result
from chainwright.reproduce.findings.diagnosed import diagnosed_results
from chainwright.reproduce.findings.page import column
from chainwright.reproduce.findings.rules import Above, AtLeast, AtMost, Between, Gain, NoRule, Rule
from chainwright.studies.diagnosis import DiagnoseConfig, run_diagnosis

DOCS = Path(__file__).parent.parent.parent / "docs"
MEASURED: Mapping[str, Any] = {
    "finding": "tcr-gain", "model": "reasoner", "value": 0.05, "shown": "+0.050", "low": 0.01, "high": 0.09, "n": 40,
    "n_what": "problems", "seeds": [1, 2], "chosen_on": "Fitted on seed 3.", "command": "chainwright reproduce tcr",
}  # fmt: skip


def _without(*names: str, **changes: Any) -> dict[str, Any]:
    return {name: value for name, value in MEASURED.items() if name not in names} | changes


def test_the_committed_page_is_the_generated_one() -> None:
    page = findings_page(read_results(DOCS / "results"))
    assert (DOCS / "findings.md").read_text(encoding="utf-8") == page, "run `chainwright reproduce findings`"


def test_the_catalogue_covers_the_four_papers_and_every_finding_has_a_result_on_smollm2() -> None:
    assert {finding.paper for finding in FINDINGS.values()} == set(PAPERS) and len(FINDINGS) >= 24
    results = read_results(DOCS / "results")
    for finding in FINDINGS:
        mine = [r for r in results if r.finding == finding and column(r) == "SmolLM2"]
        assert mine and all(r.outcome == "measured" or r.reason for r in mine), finding


def test_no_cell_of_the_column_of_smollm2_is_empty() -> None:
    rows = re.findall(r"^\| .*`\w+-[\w-]+` \|.*$", (DOCS / "findings.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert len(rows) == len(FINDINGS)
    for row in rows:
        assert row.split(" | ")[3].strip(), row


@pytest.mark.parametrize(
    ("rule", "value", "low", "high", "verdict"),
    [
        (AtLeast(0.8, 0.5), 0.8, None, None, "agrees"),
        (AtLeast(0.8, 0.5), 0.6, None, None, "agrees in part"),
        (AtLeast(0.8, 0.5), 0.4, 0.1, 0.9, "does not agree"),
        (AtMost(0.2, 0.5), 0.2, None, None, "agrees"),
        (AtMost(0.2, 0.5), 0.5, None, None, "agrees in part"),
        (AtMost(0.2, 0.5), 0.51, None, None, "does not agree"),
        (Between((0.4, 0.8), (0.2, 1.0)), 0.6, None, None, "agrees"),
        (Between((0.4, 0.8), (0.2, 1.0)), 0.9, None, None, "agrees in part"),
        (Between((0.4, 0.8), (0.2, 1.0)), 0.1, None, None, "does not agree"),
        (Above(), 0.3, 0.1, 0.5, "agrees"),
        (Above(), 0.3, -0.1, 0.7, "does not agree"),
        (Gain(0.1), 0.05, 0.01, 0.09, "agrees"),
        (Gain(0.1), 0.04, 0.01, 0.07, "agrees in part"),
        (Gain(0.1), 0.3, 0.0, 0.6, "does not agree"),
        (NoRule(), 0.3, None, None, "measured"),
    ],
)
def test_a_verdict_follows_from_value_and_interval(
    rule: Rule, value: float, low: float | None, high: float | None, verdict: str
) -> None:
    assert rule.verdict(value, low, high) == verdict
    assert rule.words


def test_a_record_is_saved_and_read_again(tmp_path: Path) -> None:
    result = Result(**MEASURED)
    path = save_result(tmp_path, result)
    assert path == tmp_path / "reasoner" / "tcr-gain.json"
    assert json.loads(path.read_text(encoding="utf-8")) == dict(MEASURED)
    absent = Result(finding="tcr-hit", model="smollm2-hops", outcome="not run", reason="No selector was trained.")
    save_result(tmp_path, absent)
    assert read_results(tmp_path) == [result, absent]
    assert [r.verdict for r in (result, absent)] == ["agrees", "not run"]


@pytest.mark.parametrize(
    ("record", "sentence"),
    [
        (_without(finding="tcr-gian"), "Unknown finding 'tcr-gian'"),
        (_without(model="a/b"), "model must be a name"),
        (_without("value"), "value is missing"),
        (_without("shown"), "shown is missing"),
        (_without("command"), "command is missing"),
        (_without(command="/home/me/run.sh"), "the command must begin with chainwright "),
        (_without("low"), "low and high go together"),
        (_without("low", "high"), "follows from the 95% interval"),
        (_without(low=0.06), "0.05 is outside of its interval"),
        (_without("n_what"), "n and n_what go together"),
        (_without(n=0), "n must be a whole number from 1"),
        (_without(reason="It was late."), "a reason why not makes no sense"),
        (_without(outcome="not run"), "needs a reason"),
        (_without(outcome="not run", reason="It was late."), "so it cannot be 'not run'"),
        (_without(valeu=3), "Unknown setting 'valeu'"),
    ],
)
def test_a_bad_record_is_refused_in_a_sentence(tmp_path: Path, record: dict[str, Any], sentence: str) -> None:
    with pytest.raises(BadInput, match=re.escape(sentence)):
        Result.from_record(record)
    path = tmp_path / "reasoner" / "tcr-gain.json"
    path.parent.mkdir()
    path.write_text(json.dumps(record), encoding="utf-8")
    with pytest.raises(BadInput, match=re.escape(f"{path} cannot be used: ") + ".*" + re.escape(sentence)):
        read_results(tmp_path)


def test_a_record_in_the_place_of_another_and_a_damaged_one_are_named(tmp_path: Path) -> None:
    path = save_result(tmp_path, Result(**MEASURED))
    moved = path.with_name("tcr-gold.json")
    path.rename(moved)
    with pytest.raises(BadInput, match=r"tcr-gold\.json is about tcr-gain and reasoner"):
        read_results(tmp_path)
    moved.write_text("{", encoding="utf-8")
    with pytest.raises(BadInput, match=r"tcr-gold\.json is no readable JSON"):
        read_results(tmp_path)
    with pytest.raises(BadInput, match="There is no folder of results"):
        read_results(tmp_path / "none")


def test_the_command_writes_the_page_and_refuses_a_missing_result(tmp_path: Path) -> None:
    results = tmp_path / "results"
    for result in read_results(DOCS / "results"):
        save_result(results, result)
    save_result(results, Result(**_without(model="mine")))
    page = tmp_path / "page.md"
    ran = CliRunner().invoke(app, ["reproduce", "findings", "--results", str(results), "--out", str(page)])
    assert ran.exit_code == 0, ran.output
    assert "| other models | verdict |" in page.read_text(encoding="utf-8")
    assert "mine: +0.050 (0.01 to 0.09; 40 problems; seeds 1, 2)" in page.read_text(encoding="utf-8")
    for path in results.glob("smollm2*/tcr-gain.json"):
        path.unlink()
    ran = CliRunner().invoke(app, ["reproduce", "findings", "--results", str(results), "--out", str(page)])
    assert ran.exit_code == 2
    assert "no result on SmolLM2 for tcr-gain" in " ".join(ran.output.split())


def test_a_command_writes_a_record_only_with_a_folder(tmp_path: Path) -> None:
    write_result(None, **MEASURED)
    write_result(tmp_path, **MEASURED)
    assert read_results(tmp_path) == [Result(**MEASURED)]


def test_a_diagnosis_gives_the_results_on_errors(tmp_path: Path) -> None:
    model, tokenizer = load_model("reasoner", device="cpu")
    config = DiagnoseConfig(
        model="reasoner", hops={"parity": (4, 14)}, n=8, seeds=(5,), instruments=("accuracy", "errors")
    )
    diagnosis = run_diagnosis(model, tokenizer, config, tmp_path / "study", progress=False)
    results = {r.finding: r for r in diagnosed_results(diagnosis, "chainwright diagnose -t parity --hops 4,14")}
    exact = [[t.is_exact for t in diagnosis.traces if t.problem and t.problem.hops == hops] for hops in (4, 14)]
    assert sum(map(bool, exact[0])) == 8, "the reasoner solves 4 hops"
    assert results["tcr-hops"].value == (sum(map(bool, exact[1])) <= 4)
    wrong = [(t, s) for t, s in zip(diagnosis.traces, diagnosis.scores or [], strict=True) if t.first_error is not None]
    assert len(wrong) >= 5, "the reasoner fails at 14 hops"
    kinds = Counter(t.first_error.error_type for t, _ in wrong if t.first_error is not None)
    assert results["tcr-recall"].value == kinds["name recall"] / len(wrong)
    kinds.pop("unparsed", None)
    assert results["tcr-key-types"].value == (max(kinds.values()) >= 0.3 * len(wrong))
    sure = [float(s.entropy[t.first_error_position]) > 0.3 for t, s in wrong if t.first_error_position is not None]
    assert results["tcr-entropy"].value == sum(sure) / len(sure) and results["tcr-entropy"].n == len(sure)
    assert all(r.seeds == (5,) and r.model == "reasoner" for r in results.values())


def test_a_command_is_recorded_without_places_on_this_machine() -> None:
    def recorded(*typed: str) -> str:
        ASKED.set(typed)
        return command_line()

    typed = ("diagnose", "-t", "all", "-o", "/tmp/x", "--results=docs", "--max-types", "0", "-q")
    assert recorded(*typed) == "chainwright diagnose -t all --max-types 0"
    typed = ("reproduce", "--set", "a b", "--results", "r", "--file", "/data/x.json")
    assert recorded(*typed) == "chainwright reproduce --set 'a b' --file x.json"
