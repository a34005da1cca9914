"""Pivots as a part of a diagnosis."""

from pathlib import Path

import pytest

from chainwright._errors import BadInput
from chainwright.diagnose import Pivots
from chainwright.models.load import load_model
from chainwright.report.page import write_report
from chainwright.studies.diagnosis.plan import instruments_of
from chainwright.studies.diagnosis.run import DiagnoseConfig, open_diagnosis, run_diagnosis

CONFIG = DiagnoseConfig(
    model="reasoner", hops={"llc": (2, 3)}, n=4, temperature=2.5, instruments=("accuracy", "errors", "pivots")
)


def test_a_diagnosis_searches_its_wrong_responses_and_reports_them(tmp_path: Path) -> None:
    model, tokenizer = load_model("reasoner", device="cpu")
    config = CONFIG.replace(n_contexts=1)
    run_diagnosis(model, tokenizer, config, tmp_path / "study", progress=False)
    diagnosis = open_diagnosis(tmp_path / "study")
    (found,) = diagnosis.of(Pivots)
    wrong = [trace for trace in diagnosis.traces if trace.outcome == "wrong"]
    assert len(wrong) >= 2 and [found.ids_of(i) for i in range(2)] == [t.input_ids.tolist() for t in wrong[:2]]
    assert len(found) == 2 and found.config["sampling"]["temperature"] == 2.5
    page = write_report(diagnosis, tmp_path / "report.html").read_text()
    assert "What became of the responses" in page


def test_pivots_need_the_accuracy() -> None:
    with pytest.raises(BadInput, match="'pivots' needs 'accuracy'"):
        instruments_of(CONFIG.replace(instruments=("errors", "pivots")))


def test_a_diagnosis_without_wrong_responses_has_no_pivots(tmp_path: Path) -> None:
    config = CONFIG.replace(hops={"llc": (1,)}, n=2, temperature=0.0)
    run_diagnosis(*load_model("reasoner", device="cpu"), config, tmp_path / "study", progress=False)
    assert open_diagnosis(tmp_path / "study").of(Pivots) == []
