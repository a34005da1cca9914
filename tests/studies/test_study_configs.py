from __future__ import annotations

from typing import Any

import pytest

from chainwright import tasks
from chainwright._config import settings_of
from chainwright._errors import BadInput
from chainwright.studies.config import CellsConfig, cells_of
from chainwright.studies.diagnosis.config import DiagnoseConfig
from chainwright.studies.generation import DecodeSettings


def test_cells_are_in_the_order_of_the_tasks_and_each_is_named_once() -> None:
    config = CellsConfig(model="m", hops={"clf": [9, 3, 9], "parity": (2,)})
    assert config.cells() == cells_of(config.hops) == [("parity", 2), ("clf", 3), ("clf", 9)]
    assert (config.n, config.seeds, config.rendering) == (40, (0,), "short")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"hops": {}}, "No hops were asked for; a study needs at least one hop count of one task."),
        ({"hops": {"clf": []}}, "No hops were asked for; a study needs at least one hop count of one task."),
        ({"hops": {"clf": [0]}}, "hops must be lists of whole numbers from 1, by task; got {'clf': [0]}."),
        ({"seeds": [1, 1]}, "seeds must be a list of different whole numbers; got [1, 1]."),
        ({"seeds": []}, "seeds must be a list of different whole numbers; got []."),
        ({"model": 1}, "model must be a name, a folder or a Hub id; got 1."),
    ],
)
def test_cells_that_could_not_be_run_are_refused(change: dict[str, Any], says: str) -> None:
    with pytest.raises(BadInput) as caught:
        CellsConfig(**{"model": "m", "hops": {"clf": (2,)}, **change})
    assert str(caught.value) == says


def test_an_unknown_task_is_refused_with_the_nearest() -> None:
    with pytest.raises(BadInput, match=r"^Unknown task 'clfs'; known: parity, .*Did you mean 'clf'\?$"):
        CellsConfig(model="m", hops={"clfs": (2,)})


def test_a_diagnosis_is_recorded_as_before_it_had_this_base() -> None:
    """Folders made by earlier versions are resumed: names and values in `study.json` are the same."""
    config = DiagnoseConfig(model="reasoner", hops={"parity": (13, 14), "clf": (2,)}, n=6, repair="tcr-reasoner")
    assert config.record() == {
        "model": "reasoner", "hops": {"parity": [13, 14], "clf": [2]}, "n": 6, "seeds": [0],
        "instruments": ["accuracy", "errors", "heads"], "rendering": "short", "n_contexts": 16, "min_errors": 5,
        "max_types": 2, "n_maps": 8, "repair": "tcr-reasoner", "temperature": 0.0, "max_new_tokens": None,
        "batch_size": None, "dtype": None, "revision": None,
    }  # fmt: skip
    assert DiagnoseConfig.from_record(config.record()) == config


@pytest.mark.parametrize("temperature", [-1, float("inf"), float("nan"), "hot", True])
def test_temperatures_are_zero_or_positive(temperature: object) -> None:
    with pytest.raises(BadInput, match=r"^temperature must be 0 \(greedy\) or a positive number(, or none)?; got "):
        DecodeSettings(temperature=temperature)  # type: ignore[arg-type]


@pytest.mark.parametrize("config", [DiagnoseConfig, DecodeSettings])
def test_every_setting_says_what_it_does(config: type[DiagnoseConfig] | type[DecodeSettings]) -> None:
    assert all(setting.description.endswith(".") for setting in settings_of(config))


def test_renderings_are_those_of_the_tasks() -> None:
    (rendering,) = [setting for setting in settings_of(DiagnoseConfig) if setting.name == "rendering"]
    assert rendering.annotation == tasks.Rendering
