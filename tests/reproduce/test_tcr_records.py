"""The records of a small study of TCR: each finding's value is what its traces and tables hold."""

import re
from pathlib import Path

import numpy as np
import pytest

from chainwright import load_model
from chainwright._files import read_json, write_json
from chainwright.reproduce.findings import Result
from chainwright.reproduce.tcr.config import ReproduceTCRConfig
from chainwright.reproduce.tcr.first_errors import first_error_rows
from chainwright.reproduce.tcr.records import _gain, _of_hops, _of_selector, records_of
from chainwright.reproduce.tcr.study import ReproduceTCR
from chainwright.studies import Study
from chainwright.traces import Trace, read_traces
from command_line import call
from outcomes import outcome, ten_problems


@pytest.mark.slow
def test_a_study_that_fits_yields_valid_records(tmp_path: Path) -> None:
    config = ReproduceTCRConfig(
        model="reasoner", hops={"clf": (12, 13), "objc": (10,)}, n=6, seeds=(1,), fit_hops={"clf": (13,)}, fit_n=30,
        ways=("none", "TCR", "TCR, entropy", "TCR, gold", "DoLa"), variants=("all",), n_contexts=4, n_lessons=8,
        positions="last",
    )  # fmt: skip
    study = Study.make(tmp_path / "study", ReproduceTCR(*load_model("reasoner", device="cpu"), config))
    study.run()
    found = {fields["finding"]: Result(**fields) for fields in records_of(study, "chainwright reproduce tcr")}
    wanted = {
        "tcr-hops", "tcr-key-types", "tcr-entropy", "tcr-disjoint", "tcr-writing-shared", "tcr-rectification",
        "tcr-cover", "tcr-hit", "tcr-gain", "tcr-gold", "tcr-gap", "tcr-dola", "tcr-other-tasks",
    }  # fmt: skip
    assert wanted <= set(found) and all(result.model == "reasoner" for result in found.values())

    def right(way: str, tasks: tuple[str, ...] = ("clf", "objc")) -> float:
        paths = [study.results[f"runs/{way}/{task}-1"] / "traces.parquet" for task in tasks]
        chains = [trace.first_error is None for path in paths for trace in read_traces(path)]
        return sum(chains) / len(chains)

    assert found["tcr-gold"].value == pytest.approx(right("TCR-gold") - right("none"))
    assert found["tcr-gap"].value == pytest.approx(right("TCR-gold") - right("TCR-entropy"))
    assert found["tcr-other-tasks"].value == pytest.approx(right("TCR", ("objc",)) - right("none", ("objc",)))
    rows = read_json(study.results["roles/clf"] / "rows.json")
    assert found["tcr-rectification"].n == sum(len(row["gains"]) for row in rows)
    assert found["tcr-gain"].n == 18 and found["tcr-other-tasks"].n == 6
    lines = "\n".join(str(table) for finding in study.findings() for table in getattr(finding, "tables", {}))
    assert "Key error types" in lines
    located = next(finding for finding in study.findings() if finding.title == "Located heads")
    assert all(re.fullmatch(r"\d of 4", row["some head fixes"]) for row in located.tables["Key error types"])


def test_falling_accuracy_is_counted_by_task() -> None:
    problems = ten_problems()  # six of three hops, four of four
    traces = [outcome(p, i < 6 or i == 6) for i, p in enumerate(problems)]
    (record,) = _of_hops(traces, [0])
    assert record["value"] == 1.0 and record["shown"] == "1 of 1 tasks"
    assert "clf 1.00 at 3 hops, 0.25 at 4" in record["note"]
    (record,) = _of_hops([outcome(p, i < 8) for i, p in enumerate(problems)], [0])
    assert record["value"] == 1.0, "half is half or more"
    (record,) = _of_hops([outcome(p, i < 9) for i, p in enumerate(problems)], [0])
    assert record["value"] == 0.0
    (record,) = _of_hops([outcome(p, False) for p in problems], [0])
    assert record["value"] == 0.0, "what is wrong at the fewest hops cannot fall"
    assert not list(_of_hops(traces[:6], [0])), "one hop count shows no fall"


def test_hits_over_a_few_errors_are_no_result(tmp_path: Path) -> None:
    config = ReproduceTCRConfig(model="reasoner", hops={"clf": (3,), "objc": (3,)}, fit_hops={"clf": (3,)})
    rows = [
        {"task": "clf", "at": "errors", "n": 5, "Hit@1": 0.6, "random": 0.2},
        {"task": "objc", "at": "errors", "n": 4, "Hit@1": 1.0, "random": 0.5},
        {"task": "clf", "at": "doubtful tokens", "n": 90, "Hit@1": 0.9, "random": 0.9},
        {"task": "all", "at": "errors", "n": 9, "Hit@1": 0.8, "random": 0.3},
    ]
    write_json(tmp_path / "rows.json", {"selector": rows})
    fitted, other = _of_selector(config, {"errors": tmp_path, "repair": tmp_path / "repair"})
    assert (fitted["value"], fitted["n"]) == (0.6, 5) and fitted["shown"] == "0.60 (random head: 0.20)"
    assert other["outcome"] == "cannot be tested here" and "Only 4 first errors" in other["reason"]
    Result(model="reasoner", command="chainwright reproduce tcr", **other)


def test_gains_are_paired() -> None:
    record = _gain(np.array([1.0, 1, 0, 1]), np.array([0.0, 1, 0, 1]))
    assert record["value"] == 0.25 and record["shown"] == "+0.250 (0.500 to 0.750)"
    assert record["low"] <= 0.25 <= record["high"] and record["n"] == 4


def test_fit_hops_name_the_tasks(tmp_path: Path) -> None:
    asked = ("reproduce", "tcr", "--plan", "--task", "clf", "--hops", "3", "-n", "2", "-o", tmp_path / "x")
    code, printed = call(*asked, "--fit-hops", "clf=3,4;sums=2")
    assert code == 2 and "Unknown task 'sums'" in printed
    code, printed = call(*asked, "--fit-hops", "clf=3,4", "--shots", "0", "--rendering", "natural")
    assert code == 0, printed


def test_the_parts_at_first_errors_by_hand() -> None:
    from chainwright.models.anatomy import anatomy
    from chainwright.repair import TCR, EntropyDetector
    from chainwright.repair.tcr.config import FitConfig
    from chainwright.repair.tcr.fit import look
    from chainwright.repair.tcr.selector import FixedSelector
    from chainwright.repair.tcr.training_data import lessons_of

    model, tokenizer = load_model("reasoner", device="cpu")
    traces: list[Trace] = [outcome(p, True) for p in ten_problems()[:3]]
    repair = TCR([(0, 0), (1, 1)], FixedSelector(2, [1, 0]), EntropyDetector(0.3), end_ids=[tokenizer.eos_token_id])
    config = FitConfig(doubt_above=0.0)
    found = look(anatomy(model), lessons_of(tokenizer, traces), repair.heads, config, lambda done, total: None)
    wrong = found.doubtful[:4]
    is_right = found.is_right.clone()
    is_right[wrong] = False  # as if the model erred there
    votes = found.votes.clone()
    votes[:4, 1] = found.right_ids[:4]
    votes[:2, 0] = -1
    changed = found.replace(is_right=is_right, votes=votes)
    tables = first_error_rows(changed, repair, 0.3)
    by_name = {row["decision"]: row for row in tables["decisions"]}
    assert by_name["selector, 1 vote"]["errors fixed"] == 1.0 and by_name["selector, 1 vote"]["errors"] == 4
    assert by_name["any head, chosen by the answer"]["errors fixed"] == 1.0
    kept = (changed.votes[4:, 1] == changed.right_ids[4:]).float().mean()
    assert by_name["selector, 1 vote"]["doubtful right tokens kept"] == pytest.approx(float(kept))
    assert tables["flags"][0]["flags"] == "entropy above 0.3" and 0 <= tables["flags"][0]["recall"] <= 1
