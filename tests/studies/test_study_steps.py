"""The instrument `steps`: which traces get maps, the comparison, the command, and the page."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from chainwright._errors import BadInput
from chainwright.cli import app
from chainwright.diagnose import StepGroups, StepSaliency, compare_steps, step_saliency
from chainwright.models.load import LoadedModel, load_model
from chainwright.report.gather import gather
from chainwright.report.page import render
from chainwright.report.sections.steps import map_data
from chainwright.studies import Study
from chainwright.studies.diagnosis.plan import DiagnosisPlan
from chainwright.studies.diagnosis.run import DiagnoseConfig, Diagnosis, open_diagnosis, run_diagnosis
from chainwright.studies.diagnosis.step_maps import choose_traces, plan_steps

CONFIG = DiagnoseConfig(
    model="reasoner", hops={"clf": (12, 13)}, n=8, n_maps=3, instruments=("accuracy", "errors", "steps")
)


@pytest.fixture(scope="module")
def reasoner() -> LoadedModel:
    return load_model("reasoner")


@pytest.fixture(scope="module")
def found(reasoner: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Diagnosis]:
    folder = tmp_path_factory.mktemp("steps") / "study"
    return folder, run_diagnosis(*reasoner, CONFIG, folder, progress=False)


def test_steps_are_no_part_of_the_usual_diagnosis() -> None:
    assert DiagnoseConfig(model="reasoner", hops={"clf": (2,)}).instruments == ("accuracy", "errors", "heads")


def test_maps_are_those_of_the_first_right_and_wrong_traces(
    found: tuple[Path, Diagnosis], reasoner: LoadedModel
) -> None:
    folder, diagnosis = found
    assert Study.open(folder).units[-3:] == ["steps/clf-012-0", "steps/clf-013-0", "step-groups"]
    maps = [one for one in diagnosis.findings if isinstance(one, StepSaliency)]
    cells = [diagnosis.traces[:8], diagnosis.traces[8:]]
    expected = [8 * c + i for c, cell in enumerate(cells) for i in choose_traces(cell, 3)]
    assert [one.config["trace"] for one in maps] == expected
    for cell in cells:
        wrong = [cell[i].first_error is not None for i in choose_traces(cell, 3)]
        assert wrong.count(True) <= 3 and wrong.count(False) <= 3
    traces = [diagnosis.traces[i] for i in expected]
    assert any(trace.first_error for trace in traces) and not all(trace.first_error for trace in traces)
    direct = step_saliency(reasoner.model, traces[-1])
    torch.testing.assert_close(maps[-1].map, direct.map)
    (groups,) = [one for one in diagnosis.findings if isinstance(one, StepGroups)]
    again = compare_steps(traces, maps)
    assert torch.equal(groups.right, again.right) and groups.rows == again.rows


def test_curves_have_the_means_inside_their_intervals(found: tuple[Path, Diagnosis]) -> None:
    (groups,) = [one for one in found[1].findings if isinstance(one, StepGroups)]
    rows = groups.curves()
    assert len(rows) == 3 * 2 * groups.right.shape[1]
    for row in rows:
        values = getattr(groups, row["side"])[
            :, row["layer"], ["lock_in", "reach", "on_question"].index(row["measure"])
        ]
        assert row["mean"] == pytest.approx(float(values.mean()), abs=1e-6) and row["n"] == len(values)
        assert row["low"] is None if len(values) < 2 else row["low"] <= row["mean"] <= row["high"]
    fig = groups.plot()
    assert len(fig.data) == 6 and fig.data[0].y[0] == pytest.approx(rows[0]["mean"])


def test_a_value_that_is_missing_is_left_out_of_the_curves(found: tuple[Path, Diagnosis]) -> None:
    (groups,) = [one for one in found[1].findings if isinstance(one, StepGroups)]
    right = groups.right.clone()
    right[:, 0] = float("nan")
    right[0, 1] = float("nan")
    rows = [row for row in replace(groups, right=right).curves() if row["side"] == "right"]
    assert {row["layer"] for row in rows} == set(range(1, right.shape[1]))
    assert {row["n"] for row in rows if row["layer"] == 1} == {len(right) - 1}


def test_a_map_is_drawn_for_every_layer_with_its_borders(found: tuple[Path, Diagnosis]) -> None:
    one = next(one for one in found[1].findings if isinstance(one, StepSaliency))
    fig = one.plot()
    assert len(fig.data) == len(one.map) == len(fig.layout.sliders[0].steps)
    assert [heat.visible for heat in fig.data] == [True] + [False] * (len(one.map) - 1)
    assert fig.data[1].z[0][1] is None, "causality hides what is above the diagonal"
    top = float(one.map.max())
    assert fig.data[1].z[3][1] == pytest.approx(max(0, 4 + float((one.map[1, 3, 1] / top).log10())), abs=0.01)
    borders = [i for i in range(1, len(one.segments)) if one.segments[i] != one.segments[i - 1]]
    assert sorted({shape.x1 + 0.5 for shape in fig.layout.shapes}) == borders


def test_the_page_holds_the_numbers_of_the_maps(found: tuple[Path, Diagnosis]) -> None:
    folder, diagnosis = found
    maps = [one for one in diagnosis.findings if isinstance(one, StepSaliency)]
    data = map_data(maps, gather(diagnosis))
    assert [one["trace"] for one in data] == [one.config["trace"] for one in maps]
    for one, shown in zip(maps, data, strict=True):
        tril = torch.tril_indices(len(one.steps), len(one.steps))
        true = (one.map[:, tril[0], tril[1]].double() / shown["top"]).clamp(min=1e-4)
        back = 10 ** (torch.tensor(shown["values"]).double() / 100 - 4)
        assert float((back / true).log10().abs().max()) <= 0.00501
        assert shown["layers"] == list(range(len(one.map))) and len(shown["texts"]) == len(one.steps)
    thin = map_data(maps, gather(diagnosis), max_bytes=len(maps) * 800)
    assert thin
    assert all(one["layers"][0] == 0 and len(one["layers"]) == len(one["values"]) < one["n_layers"] for one in thin)
    assert map_data(maps, gather(diagnosis), max_bytes=len(maps) * 10) == []
    page = render(gather(open_diagnosis(folder)))
    assert 'id="steps"' in page and "step-curves" in page and "matched on slot and position" in page
    assert 'id="steps"' in render(gather(maps[:2])), "maps without a diagnosis have a section too"


def test_no_pair_that_matches_is_said(reasoner: LoadedModel, tmp_path: Path) -> None:
    config = CONFIG.replace(hops={"clf": (2,)}, n=2)
    diagnosis = run_diagnosis(*reasoner, config, tmp_path / "s", progress=False)
    assert all(trace.first_error is None for trace in diagnosis.traces)
    assert not [one for one in diagnosis.findings if isinstance(one, StepGroups)]
    assert "No wrong trace has a right partner" in Study.open(tmp_path / "s").results.skipped["step-groups"]


def test_a_plan_is_of_as_many_traces_as_there_may_be(reasoner: LoadedModel) -> None:
    assert plan_steps(*reasoner, CONFIG).n_traces == 2 * 6
    assert plan_steps(*reasoner, CONFIG.replace(n=2)).n_traces == 2 * 2
    assert DiagnosisPlan(*reasoner, CONFIG).title("steps/clf-012-0") == "Step maps: CLF, 12 hops"


@pytest.mark.parametrize("wrong", [0, 1.5, "all"])
def test_a_number_of_maps_that_cannot_be_is_refused(wrong: object) -> None:
    with pytest.raises(BadInput, match="n_maps must be a whole number from 1; got"):
        CONFIG.replace(n_maps=wrong)  # type: ignore[arg-type]


def test_the_command_plans_and_stops_or_makes_maps(tmp_path: Path) -> None:
    asked = ["diagnose", "-t", "clf", "--hops", "3", "-n", "2", "-q", "-o", str(tmp_path / "d")]

    def call(*more: str) -> tuple[int, str]:
        result = CliRunner().invoke(app, [*asked, *more], env={"COLUMNS": "200"})
        return result.exit_code, re.sub(r"\s+", " ", result.output)

    code, printed = call("--plan")
    assert code == 0 and "to answer 2 problems" in printed and not (tmp_path / "d").exists()
    code, printed = call("--steps", "--plan")
    assert code == 0 and "2 traces of up to" in printed and "MiB" in printed and not (tmp_path / "d").exists()
    code, printed = call("--steps", "--n-maps", "1")
    assert code == 0, printed
    assert [path.name for path in (tmp_path / "d/steps/clf-003-0").iterdir() if path.is_dir()] == ["000000"]
    assert 'id="steps"' in (tmp_path / "d/report.html").read_text(encoding="utf-8")
