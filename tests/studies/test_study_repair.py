"""A diagnosis with a repair: the same problems answered again, compared, and shown."""

from __future__ import annotations

from pathlib import Path

import pytest

from chainwright import Repair, generate, load_model, tasks
from chainwright._errors import BadInput
from chainwright.evaluation import Comparison
from chainwright.evaluation.flips import Flips
from chainwright.models.load import LoadedModel
from chainwright.report import write_report
from chainwright.studies import Study
from chainwright.studies.diagnosis.run import DiagnoseConfig, Diagnosis, open_diagnosis, run_diagnosis
from chainwright.traces import read_traces

CONFIG = DiagnoseConfig(
    model="reasoner", hops={"clf": (2, 13)}, n=4, seeds=(3,), instruments=("accuracy", "errors"), repair="tcr-reasoner"
)


@pytest.fixture(scope="module")
def reasoner() -> LoadedModel:
    return load_model("reasoner", device="cpu")


@pytest.fixture(scope="module")
def found(reasoner: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Diagnosis]:
    folder = tmp_path_factory.mktemp("study") / "repaired"
    return folder, run_diagnosis(*reasoner, CONFIG, folder, progress=False)


def test_the_problems_are_answered_again_with_the_repair(reasoner: LoadedModel, found: tuple[Path, Diagnosis]) -> None:
    folder, diagnosis = found
    assert Study.open(folder).units[0] == "repair", "a wrong name must not cost the traces"
    problems = tasks.sample("clf", 13, 4, 3)
    repair = Repair.from_pretrained("tcr-reasoner")
    by_hand = generate(*reasoner, problems, repair=repair, progress=False)
    kept = read_traces(folder / "repaired/clf-013-3/traces.parquet")
    assert [t.input_ids.tolist() for t in kept] == [t.input_ids.tolist() for t in by_hand]
    (compared,) = [f for f in diagnosis.findings if isinstance(f, Comparison)]
    assert compared.names == ["model alone", "tcr-reasoner"] and compared.overall("tcr-reasoner")["n"] == 8
    n_right = sum(t.first_error is None for t in by_hand) + 4  # two hops are always right
    assert compared.overall("tcr-reasoner")["exact"] == n_right / 8
    assert repair.cost.n_flagged > 0 and set(compared.costs["tcr-reasoner"]) == {"flagged", "extra tokens"}
    assert diagnosis.summary()[-1].startswith("Repair: with tcr-reasoner ")


def test_the_comparison_is_in_the_report_and_opens_again(found: tuple[Path, Diagnosis], tmp_path: Path) -> None:
    folder, diagnosis = found
    again = open_diagnosis(folder)
    assert again.summary() == diagnosis.summary()
    assert [type(f) for f in again.findings] == [type(f) for f in diagnosis.findings]
    assert any(isinstance(f, Flips) for f in again.findings)
    page = write_report(again, tmp_path / "report.html").read_text(encoding="utf-8")
    assert "reasoner with tcr-reasoner" in page and "answered again with tcr-reasoner" in page


def test_a_repair_that_does_not_exist_or_fit_is_refused_at_once(reasoner: LoadedModel, tmp_path: Path) -> None:
    for name, says in (("tcr-reasonr", "Unknown repair 'tcr-reasonr'"), ("back-world", "was made for world")):
        folder = tmp_path / name
        with pytest.raises(BadInput, match=says):
            run_diagnosis(*reasoner, CONFIG.replace(repair=name), folder, progress=False)
        assert not (folder / "traces").exists()
    with pytest.raises(BadInput, match="repair must be a name, a folder or a Hub id"):
        CONFIG.replace(repair=3)  # type: ignore[arg-type]
