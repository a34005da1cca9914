"""The settings of TCR: what they refuse, and that what is saved of them stays as it was."""

from __future__ import annotations

import json
from typing import Any

import pytest

from chainwright._config import Config, settings_of
from chainwright._errors import BadInput
from chainwright.repair import Repair, bundled_repairs
from chainwright.repair.base import BUNDLED
from chainwright.repair.tcr.config import (
    CandidateConfig,
    ClassifierConfig,
    FitConfig,
    FitProblems,
    TCRConfig,
    TrainConfig,
)

ALL = (CandidateConfig, ClassifierConfig, FitConfig, FitProblems, TCRConfig, TrainConfig)


@pytest.mark.parametrize(
    ("config", "bad", "words"),
    [
        (CandidateConfig, {"max_heads": 0}, "max_heads must be a whole number from 1; got 0."),
        (CandidateConfig, {"n_lessons": True}, "n_lessons must be a whole number from 1; got True."),
        (CandidateConfig, {"right_share": 1.5}, "right_share must be a number from 0 to 1; got 1.5."),
        (CandidateConfig, {"cover": "all"}, "Unknown cover 'all'; known: samples, types."),
        (CandidateConfig, {"positions": "first"}, "Unknown positions 'first'; known: all, last."),
        (ClassifierConfig, {"rank": 0}, "rank must be a whole number from 1; got 0."),
        (ClassifierConfig, {"lr": 0.0}, "lr must be a number above 0; got 0.0."),
        (ClassifierConfig, {"lr": float("nan")}, "lr must be a number above 0; got nan."),
        (ClassifierConfig, {"dropout": 1.0}, "dropout must be a number from 0 and below 1; got 1.0."),
        (TrainConfig, {"n_epochs": 0}, "n_epochs must be a whole number from 1; got 0."),
        (TrainConfig, {"n_hidden": -1}, "n_hidden must be a whole number from 0; got -1."),
        (TrainConfig, {"held_out": 1.0}, "held_out must be a number from 0 and below 1; got 1.0."),
        (TCRConfig, {"n_votes": 0}, "n_votes must be a whole number from 1; got 0."),
        (TCRConfig, {"scale": float("inf")}, "scale must be a number; got inf."),
        (FitConfig, {"detector": "none"}, "Unknown detector 'none'; known: trained, lens, entropy."),
        (FitConfig, {"decision": "guess"}, "Unknown decision 'guess'; known: vote, verify."),
        (FitConfig, {"n_votes": 0}, "n_votes must be a whole number from 1, or none; got 0."),
        (FitConfig, {"tau": -0.1}, "tau must be a number from 0, or none; got -0.1."),
        (FitConfig, {"tune_share": 1.0}, "tune_share must be a number above 0 and below 1; got 1.0."),
        (FitConfig, {"slack": 1.0}, "slack must be a number from 0 and below 1; got 1.0."),
        (FitConfig, {"selector": ""}, "selector must be 'light', or a bundled name, a folder or a Hub id; got ''."),
        (FitConfig, {"n_vote": 3}, "Unknown setting 'n_vote'"),
        (FitProblems, {"n": 0}, "n must be a whole number from 1; got 0."),
    ],
)
def test_a_setting_out_of_range_is_refused_in_one_sentence(
    config: type[Config], bad: dict[str, Any], words: str
) -> None:
    with pytest.raises(BadInput) as refused:
        config(**bad)
    assert str(refused.value).startswith(words)


@pytest.mark.parametrize("config", ALL)
def test_every_setting_is_described_and_survives_its_record(config: type[Config]) -> None:
    assert all(setting.description.endswith((".", ").")) for setting in settings_of(config))
    assert config.from_record(json.loads(json.dumps(config().record()))) == config()


def test_a_part_of_the_settings_is_checked_too() -> None:
    assert FitConfig(candidates={"max_heads": 3}).candidates == CandidateConfig(max_heads=3)
    with pytest.raises(BadInput, match="max_heads must be a whole number from 1; got 0"):
        FitConfig().candidates.replace(max_heads=0)


@pytest.mark.parametrize("name", [name for name in bundled_repairs() if "tcr" in name])
def test_the_settings_of_bundled_repairs_are_saved_as_they_were(name: str) -> None:
    saved = json.loads((BUNDLED / name / "repair.json").read_text())["settings"]
    assert json.dumps(Repair.from_pretrained(name).settings()) == json.dumps(saved)
