"""Instruments come from the registry: one of the running program measures in a study like those of the package."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from chainwright import BadInput, _registry
from chainwright._finding import Finding
from chainwright._tables import Tables
from chainwright.models.load import load_model
from chainwright.plugins import register
from chainwright.studies import Job, Results, Study
from chainwright.studies.diagnosis.plan import instruments_of
from chainwright.studies.diagnosis.run import DiagnoseConfig, open_diagnosis, run_diagnosis
from chainwright.studies.diagnosis.units import Bench, Heads, Instrument, have_traces, load_traces
from chainwright.tasks.clf import TASK as CLF


class Lengths(Instrument):
    """How many tokens the responses have."""

    name, groups, needs = "lengths", ("lengths",), ("accuracy",)

    def units(self, config: DiagnoseConfig, done: Results) -> list[str]:
        return ["lengths"] if have_traces(config, done) else []

    def compute(self, bench: Bench, job: Job) -> None:
        traces = load_traces(bench.config, job.done)
        rows = [{"tokens": len(trace.input_ids) - trace.response_start} for trace in traces]
        Tables(title="Lengths", tables={"lengths": rows}).save(job.out)

    def title(self, config: DiagnoseConfig, unit: str) -> str:
        return "Lengths of responses"

    def findings(self, config: DiagnoseConfig, done: Results) -> list[Finding]:
        return [Tables.load(done["lengths"])] if "lengths" in done else []


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_registry, "_live", dict(_registry._live))
    monkeypatch.setattr(_registry, "_owners", dict(_registry._owners))
    register("instrument", "lengths")(Lengths)


def _config(*instruments: str) -> DiagnoseConfig:
    return DiagnoseConfig(model="reasoner", hops={"clf": (2,)}, n=3, instruments=instruments)


def test_an_instrument_of_the_program_is_computed_saved_and_read_again(tmp_path: Path) -> None:
    model, tokenizer = load_model("reasoner")
    config = _config("accuracy", "errors", "lengths")
    made = run_diagnosis(model, tokenizer, config, tmp_path / "study", progress=False)
    assert Study.open(tmp_path / "study").units[-1] == "lengths"
    for diagnosis in (made, open_diagnosis(tmp_path / "study")):
        (lengths,) = [finding for finding in diagnosis.findings if isinstance(finding, Tables)]
        assert len(lengths.tables["lengths"]) == 3


def test_units_are_in_the_order_that_instruments_state() -> None:
    config = DiagnoseConfig(
        model="reasoner", hops={"clf": (2,)}, instruments=("lengths", "steps", "errors", "accuracy"), repair="x"
    )
    names = [instrument.name for instrument in instruments_of(config)]
    assert names == ["repair", "traces", "accuracy", "scores", "errors", "steps", "lengths", "repaired"]


def test_what_an_instrument_needs_must_be_measured_too() -> None:
    with pytest.raises(BadInput, match="The instrument 'lengths' needs 'accuracy'; add it"):
        instruments_of(_config("errors", "lengths"))


def test_two_instruments_do_not_write_the_same_units() -> None:
    register("instrument", "scores again")(type("Again", (Lengths,), {"name": "scores again", "groups": ("scores",)}))
    with pytest.raises(BadInput, match="The instruments 'scores' and 'scores again' both write units 'scores'"):
        instruments_of(_config("accuracy", "errors", "scores again"))


def test_only_instruments_can_be_asked_for() -> None:
    with pytest.raises(
        BadInput, match="Unknown instrument 'repaired'; known: accuracy, curves, errors, heads, lengths"
    ):
        _config("accuracy", "repaired")


def test_a_task_with_a_hyphen_has_a_title_at_its_heads() -> None:
    for name in ("stack", "stack-of-books"):
        register("task", name)(replace(CLF, name=name, title=name.title()))
    config = DiagnoseConfig(model="reasoner", hops={"stack": (2,), "stack-of-books": (2,)})
    title = Heads().title(config, "evidence/stack-of-books-depth-copy")
    assert title == "Evidence for heads at Stack-Of-Books, depth copy"
