"""The reproduction of iteration heads: its units, what it says, and its report, on trainings of a few steps."""

import html
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from chainwright import figures
from chainwright._errors import BadInput
from chainwright.cli import app
from chainwright.diagnose import Emergence
from chainwright.lab import IterationConfig
from chainwright.models.load import load_model
from chainwright.report.gather import gather
from chainwright.report.page import render
from chainwright.reproduce.findings import Result, read_results
from chainwright.reproduce.iteration_heads import study as iteration_heads
from chainwright.reproduce.iteration_heads.claims import claims, length_rows, markdown, run_rows, tables
from chainwright.reproduce.iteration_heads.records import records_of
from chainwright.reproduce.iteration_heads.study import (
    IterationHeads,
    IterationHeadsPlan,
    ReasonerProbe,
    probe_for,
    recipes,
)
from chainwright.studies import Results, Study

TINY = {"max_length": 3, "modulus": 3, "d_model": 8, "n_steps": 4, "measure_every": 2, "n_held_out": 4, "batch_size": 4}
RUNS = {
    "polynomial": {**TINY},
    "parity-after": {**TINY, "tasks": {"parity": 1.0}, "start_from": "train/polynomial"},
    "parity": {**TINY, "tasks": {"parity": 1.0}, "n_steps": 8},
    "copy": {**TINY, "tasks": {"copy": 1.0}, "n_steps": 8},
    "parity-without-chain": {**TINY, "tasks": {"parity": 1.0}, "chain_of_thought": False},
    "polynomial-rotary": {**TINY, "positions": "rotary"},
    "polynomial-layers-1": {**TINY, "n_layers": 1},
}
LOOK = ReasonerProbe(hops={"parity": 4}, n=3, n_shuffles=20, n_checked=1, n_controls=1)


def plan(runs: dict = RUNS) -> IterationHeadsPlan:
    return IterationHeadsPlan(runs, LOOK, load_model("reasoner", device="cpu"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("reproduce") / "study"
    Study.make(place, plan()).run()
    return place


def test_it_goes_on_and_is_read_from_its_folder_alone(folder: Path) -> None:
    study = Study.open(folder)
    resumed = IterationHeadsPlan.resumed(study.manifest)
    assert Study.make(folder, resumed).folder == folder, "the same study"
    kinds = [type(found).__name__ for found in study.findings()]
    assert kinds[: len(RUNS)] == ["Emergence"] * len(RUNS) and "IterationScores" in kinds


@pytest.fixture(scope="module")
def found(folder: Path) -> IterationHeads:
    return IterationHeads.of(Study.open(folder).results)


def test_every_training_and_task_is_a_unit_whose_bytes_are_the_same_again(folder: Path, tmp_path: Path) -> None:
    results = Study.open(folder).results
    assert list(results) == [*(f"train/{name}" for name in RUNS), "reasoner/parity"]
    some = {name: RUNS[name] for name in ("polynomial", "parity-after")}
    again = Study.make(tmp_path / "other", plan(some)).run()
    for unit in ("train/polynomial", "train/parity-after"):
        for name in ("model.safetensors", "emergence/tensors.safetensors", "emergence/result.json"):
            assert (again[unit] / name).read_bytes() == (results[unit] / name).read_bytes(), (unit, name)


def test_a_unit_names_no_folder_and_loads_as_a_model(folder: Path, found: IterationHeads) -> None:
    assert found.runs["parity-after"].config["start_from"] == "train/polynomial"
    for path in folder.glob("train/*/emergence/result.json"):
        assert str(folder) not in path.read_text()
    model, tokenizer = load_model(folder / "train" / "polynomial-rotary")
    assert model.config.model_type == "llama" and "polynomial" in tokenizer.get_vocab()


def test_a_training_goes_on_from_the_one_it_names(folder: Path, found: IterationHeads) -> None:
    source, moved = found.runs["polynomial"], found.runs["parity-after"]
    assert torch.allclose(moved.maps[0, 0, :, :, 0], source.maps[-1, 0, :, :, 0], atol=1e-5), "the first row is 1"
    model, _ = load_model(folder / "train" / "polynomial")
    started = IterationConfig(**RUNS["parity-after"] | {"start_from": str(folder / "train" / "polynomial")})
    from chainwright.lab.iteration import held_out_sets, measure

    assert torch.equal(measure(model, started, held_out_sets(started), 0, 0.0).maps, moved.maps[:1])


def test_claims_say_what_was_measured(found: IterationHeads) -> None:
    said = {claim.finding: claim for claim in claims(found)}
    assert {"polynomial, then parity", "no chain of thought", "copy and parity", "layers"} <= said.keys()
    exact = [float(found.runs[name].exact()[-1]) for name in ("parity-after", "parity")]
    assert said["polynomial, then parity"].ours.startswith(f"exact {exact[0]:.2f} against {exact[1]:.2f} at 8 steps")
    assert said["polynomial, then parity"].agrees == (exact[0] > exact[1])
    longest = [float(found.runs[name].accuracy[-1, 0, -1]) for name in ("parity", "parity-without-chain")]
    assert f"{longest[0]:.2f} with, {longest[1]:.2f} without" in said["no chain of thought"].ours
    assert said["reasoner, recall heads"].agrees is None and "parity L" in said["reasoner, recall heads"].ours


def clean(found: IterationHeads, exact: list[float], diagonal: list[float], end: list[float]) -> Emergence:
    """Return the polynomial training with other curves over three checkpoints."""
    run = found.runs["polynomial"]
    measures = torch.zeros_like(run.measures)
    measures[:, :, :, 0, 0, 0, 0] = torch.tensor(end)[:, None, None]
    measures[:, :, :, 1, 0, 1, 0] = torch.tensor(diagonal)[:, None, None]
    accuracy = torch.tensor(exact)[:, None, None].expand_as(run.accuracy)
    return replace(run, measures=measures, accuracy=accuracy, steps=torch.tensor([0, 200, 400]))


@pytest.mark.parametrize(("diagonal", "agrees"), [([0.1, 0.2, 0.9], True), ([0.1, 0.9, 0.9], False)])
def test_together_means_within_some_steps(found: IterationHeads, diagonal: list[float], agrees: bool) -> None:
    run = clean(found, [0.0, 0.1, 1.0], diagonal, [0.1, 0.6, 0.6])
    said = {claim.finding: claim for claim in claims(IterationHeads({"a": run}, {}, {}))}
    assert said["heads and accuracy"].agrees is agrees
    assert "in 1 of 1" in said["which head comes first"].ours
    assert said["accuracy without the clean circuit"].ours.startswith("0 of 1 trainings")


def test_accuracy_without_the_circuit_is_named(found: IterationHeads) -> None:
    run = clean(found, [0.0, 0.1, 0.95], [0.1, 0.2, 0.2], [0.1, 0.6, 0.6])
    said = {claim.finding: claim for claim in claims(IterationHeads({"odd": run}, {}, {}))}
    assert "1 of 1 trainings" in said["accuracy without the clean circuit"].ours
    assert "odd (exact 0.95, end-of-input 0.60, diagonal 0.20)" in said["accuracy without the clean circuit"].ours


def test_nothing_is_claimed_without_results() -> None:
    assert claims(IterationHeads({}, {}, {})) == [] and run_rows(IterationHeads({}, {}, {})) == []


def test_tables_have_a_row_a_training(found: IterationHeads) -> None:
    rows = run_rows(found)
    assert [row["training"] for row in rows] == list(RUNS)
    assert rows[4]["diagonal"] is None, "no chain, no circuit"
    lengths = length_rows(found)
    assert lengths[0]["3"] == round(float(found.runs["polynomial"].accuracy[-1, 0, -1]), 2)
    assert lengths[2]["1"] is None, "one bit has nothing held out"
    text = tables(found)
    for title in ("## Findings", "## Trainings", "## Exact by length"):
        assert title in text
    assert markdown([{"a": None, "b": True, "c": "x|y"}]) == "| a | b | c |\n| --- | --- | --- |\n|  | yes | x\\|y |"


def test_the_report_shows_every_figure(found: IterationHeads) -> None:
    overlaps = [one for by_link in found.overlaps.values() for one in by_link.values()]
    page = render(gather([*found.runs.values(), *found.scores.values(), *overlaps]))
    shown = re.findall(r'data-figure="([^"]+)"', page)
    assert shown == [
        "emergence", "circuit-maps", "transfer", "exact-by-length",
        "iteration-heads-recall", "iteration-heads-input", "iteration-heads-previous",
    ]  # fmt: skip
    assert "Parity-NL" in page and "of the 3 best heads by" in page
    assert 'id="iteration"' in render(gather(list(found.scores.values())))
    assert overlaps[0].summary() in html.unescape(render(gather(overlaps)))


def test_the_slider_shows_the_maps_of_one_checkpoint_at_a_time(found: IterationHeads) -> None:
    fig = found.runs["polynomial"].plot("maps")
    steps = fig.layout.sliders[0].steps
    assert [step.label for step in steps] == ["0", "2", "4"] and fig.layout.sliders[0].active == 2
    assert [trace.visible for trace in fig.data] == [False] * 4 + [True] * 2
    for c, step in enumerate(steps):
        shown = [i for i, on in enumerate(step.args[1]) if on]
        assert shown == [2 * c, 2 * c + 1]
        layer, head = found.runs["polynomial"].best_head("diagonal")
        want = found.runs["polynomial"].maps[c, 0, layer, head]
        assert torch.allclose(torch.tensor(fig.data[shown[1]].z), want, atol=6e-4)
    with pytest.raises(BadInput, match="trained without a chain of thought, so there is no circuit to draw"):
        found.runs["parity-without-chain"].plot("maps")
    with pytest.raises(BadInput, match="Unknown view 'map'"):
        found.runs["polynomial"].plot("map")


def test_curves_and_rankings_draw_what_they_are_given(found: IterationHeads) -> None:
    run = found.runs["polynomial"]
    fig = run.plot()
    drawn = {trace.name: list(trace.y) for trace in fig.data}
    assert drawn["diagonal head"] == run.curve("diagonal").tolist()
    assert drawn["exact sequences"] == run.exact().tolist()
    scores = found.scores["parity"]
    ranked = scores.ranked("recall")
    bars = figures.head_ranking([ranked]).data[0]
    assert list(bars.x) == sorted(bars.x, reverse=True) and len(bars.x) == 8
    assert bars.y[0] == "L{}H{}".format(*scores.ranking("recall")[0])
    assert len(scores.plot().data) == 2 * len(scores.links)


def test_profiles_are_recipes_that_can_be_trained() -> None:
    for profile in ("quick", "full"):
        runs = recipes(profile)
        made = {name: IterationConfig(**changes) for name, changes in runs.items()}
        order = list(runs)
        for name, config in made.items():
            if config.start_from:
                assert order.index(config.start_from.removeprefix("train/")) < order.index(name)
        assert {next(iter(config.tasks)) for config in made.values()} == {"copy", "parity", "polynomial"}
    assert sum(IterationConfig(**changes).n_steps for changes in recipes("quick").values()) < 20_000
    with pytest.raises(BadInput, match="Unknown profile 'fast'; known: quick, full, none"):
        recipes("fast")


def test_the_command_prints_tables_and_writes_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(iteration_heads, "_quick", lambda: {"polynomial": RUNS["polynomial"]})
    monkeypatch.setattr(iteration_heads, "probe_for", lambda model, adapter: LOOK)
    command = ["reproduce", "iteration-heads", "--out", str(tmp_path / "s"), "--results", str(tmp_path / "r")]
    done = CliRunner().invoke(app, command, env={"COLUMNS": "200"})
    assert done.exit_code == 0, done.output
    assert "Trainings" in done.output and (tmp_path / "s" / "report.html").exists()
    assert (tmp_path / "s" / "tables.md").read_text().startswith("## Findings")
    assert {r.finding for r in read_results(tmp_path / "r")} == {
        "iteration-heads",
        "iteration-causal",
        "iteration-cp-heads",
    }
    again = CliRunner().invoke(app, [*command, "--quiet"])
    assert again.exit_code == 0, "a finished study is shown again"
    wrong = CliRunner().invoke(app, ["reproduce", "iteration-heads", "--profile", "fast"])
    assert wrong.exit_code == 2 and "Unknown profile 'fast'" in wrong.output


def test_records_are_of_the_best_recall_heads(found: IterationHeads) -> None:
    scores = found.scores["parity"]
    records = {record["finding"]: record for record in records_of(found, "chainwright reproduce iteration-heads")}
    k, head = scores.link("recall"), scores.ranking("recall")[0]
    has_head = float(scores.score[k][head]) >= 0.3 and float(scores.p_value[k][head]) < 0.05
    assert records["iteration-heads"]["value"] == has_head
    best, control = (next(c for c, why in enumerate(scores.checked_for) if why == w) for w in ("recall", "control"))
    assert tuple(scores.checked[best]) == head
    lost = scores.accuracy_without[control, k] - scores.accuracy_without[best, k]
    assert records["iteration-causal"]["value"] == pytest.approx(float(lost), abs=1e-6)
    overlap = found.overlaps["parity"]["recall"]
    assert records["iteration-cp-heads"]["value"] == pytest.approx((len(overlap.shared) - overlap.expected) / overlap.n)
    for record in records.values():
        Result(**record)
    assert records_of(IterationHeads({}, {}, {}), "chainwright x") == []


def test_a_pretrained_model_is_probed_at_the_hops_of_its_adapter_and_a_small_one_as_the_reasoner(
    tmp_path: Path,
) -> None:
    assert probe_for("reasoner") == ReasonerProbe()
    recipe = {"base": "smollm2", "trainings": [{"settings": {"hops": {"parity": [1, 4]}}}]}
    (tmp_path / "recipe.json").write_text(json.dumps(recipe), encoding="utf-8")
    probe = probe_for("some/model", str(tmp_path))
    assert probe.rendering == "natural" and probe.effects == "last" and probe.adapter == str(tmp_path)
    assert probe.hops["parity"] == 4 and probe.hops["clf"] == 10 and len(probe.hops) == 7


def test_without_trainings_only_the_heads_are_looked_at() -> None:
    assert recipes("none") == {}
    assert plan({}).units(Results(Path(), {})) == ["reasoner/parity"]
    assert plan().title("reasoner/parity") == "heads of reasoner on Parity-NL"
