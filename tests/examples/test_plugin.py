"""The example plugin works in commands, saved repairs, studies and reports; once it is gone, messages name it."""

from __future__ import annotations

import importlib
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from chainwright import BadInput, _registry, generate, load_model, plugins, score, tasks
from chainwright._files import read_json
from chainwright.repair import TCR, Repair
from chainwright.repair.tcr.selector import FixedSelector
from chainwright.studies.diagnosis.run import open_diagnosis
from chainwright.traces import read_traces
from command_line import call

PLUGIN = Path(__file__).parents[2] / "examples" / "plugin"
HEADS = [(1, 0), (1, 3), (2, 1), (2, 6)]


def _forget() -> None:
    """Let the registry look for plugins again, as a new process would."""
    _registry._places.cache_clear()
    for key, thing in list(_registry._live.items()):
        if getattr(thing, "__module__", "").startswith("chainwright_pile") or key == ("task", "pile"):
            del _registry._live[key]
    for name in [name for name in sys.modules if name.startswith("chainwright_pile")]:
        del sys.modules[name]


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The plugin as `pip install --editable` leaves it: its sources on the path, and its entry points."""
    known = tomllib.loads((PLUGIN / "pyproject.toml").read_text())["project"]
    info = tmp_path / "site" / "chainwright_pile-0.1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {known['name']}\nVersion: {known['version']}\n")
    points = known["entry-points"]["chainwright.plugins"]
    (info / "entry_points.txt").write_text(
        "\n".join(["[chainwright.plugins]", *(f"{name} = {place}" for name, place in points.items())])
    )
    monkeypatch.syspath_prepend(PLUGIN / "src")
    monkeypatch.syspath_prepend(tmp_path / "site")
    importlib.invalidate_caches()
    _forget()
    yield
    monkeypatch.undo()
    _forget()


def _committee(folder: Path) -> Path:
    detector = plugins.load("detector", "margin")(0.3)
    return Path(plugins.load("repair", "committee")(HEADS, detector).save_pretrained(folder))


@pytest.mark.usefixtures("installed")
def test_listing_imports_nothing_of_it() -> None:
    assert "pile" in plugins.names("task") and "pile" in tasks.known() and "pile" not in tasks.names()
    assert "margin" in plugins.names("detector") and "committee" in plugins.names("repair")
    assert not any(name.startswith("chainwright_pile") for name in sys.modules)
    assert _registry.source_of("task", "pile") == "chainwright-pile"


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("rendering", ["short", "natural"])
def test_its_task_writes_chains_that_are_read_back(rendering: tasks.Rendering) -> None:
    for problem in tasks.sample("pile", 6, 20, rendering=rendering):
        assert problem.check(problem.chain) and problem.first_error(problem.chain) is None
        assert tasks.from_record(problem.to_record()) == problem
    slot = next(s for s in problem.slots if s.error_type == "top")
    other = "glass" if slot.value != "glass" else "lamp"
    error = problem.first_error(problem.chain[: slot.start] + other + problem.chain[slot.end :])
    assert error is not None and error.error_type == "top"
    assert tasks.family("pile", "thing recall") == "recall" and tasks.usual_hops("pile", "short") == (2, 4, 6, 8)


@pytest.mark.usefixtures("installed")
def test_its_words_are_in_the_vocabulary_of_the_reasoner() -> None:
    assert set(tasks.vocabulary("pile")) - {"pile"} <= set(tasks.vocabulary())


@pytest.mark.usefixtures("installed")
def test_commands_know_the_task(tmp_path: Path) -> None:
    code, printed = call("tasks", "pile", "--hops", "4")
    assert code == 0 and "thing recall" in printed and "start" in printed
    code, printed = call("tasks")
    assert code == 0 and "Pile" in printed
    out = tmp_path / "pile.parquet"
    code, printed = call("generate", "-m", "reasoner", "-t", "pile", "--hops", "2", "-n", "3", "--out", out)
    assert code == 0, printed
    assert [trace.problem.task for trace in read_traces(out) if trace.problem] == ["pile"] * 3


@pytest.mark.usefixtures("installed")
def test_a_repair_with_its_detector_is_saved_and_decodes_again(tmp_path: Path) -> None:
    model, tokenizer = load_model("reasoner", device="cpu")
    problems = tasks.sample("clf", 13, 4, rendering="short")
    folder = _committee(tmp_path / "committee")
    record = read_json(folder / "repair.json")
    assert record["package"] == record["settings"]["detector"]["package"] == "chainwright-pile"
    repair = Repair.from_pretrained(folder)
    assert type(repair) is plugins.load("repair", "committee") and repair.detector.margin == 0.3
    traces = generate(model, tokenizer, problems, repair=repair, progress=False)
    assert repair.cost.n_flagged > 0
    scores = score(model, traces[0], repair=repair)
    response = traces[0].input_ids[traces[0].response_start :]
    assert torch.equal(scores.argmax[-len(response) :], response)

    tcr = TCR(HEADS, FixedSelector(len(HEADS), [0, 1, 2, 3]), plugins.load("detector", "margin")(0.1))
    again = TCR.from_pretrained(tcr.save_pretrained(tmp_path / "tcr"))
    assert again.detector == tcr.detector


def test_a_repair_whose_plugin_is_gone_says_what_to_install(
    installed: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = _committee(tmp_path / "committee")
    tcr = TCR(HEADS, FixedSelector(len(HEADS), [0, 1, 2, 3]), plugins.load("detector", "margin")(0.1))
    tcr.save_pretrained(tmp_path / "tcr")
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p not in (str(tmp_path / "site"), str(PLUGIN / "src"))])
    _forget()
    with pytest.raises(BadInput, match="needs the repair 'committee' of chainwright-pile, which is not registered"):
        Repair.from_pretrained(folder)
    with pytest.raises(BadInput, match="needs the detector 'margin' of chainwright-pile, which is not registered"):
        Repair.from_pretrained(tmp_path / "tcr")
    with pytest.raises(BadInput, match="Unknown task 'pile'"):
        tasks.sample("pile", 2, 1)


@pytest.mark.usefixtures("installed")
def test_all_three_work_in_a_study_and_in_its_report(tmp_path: Path) -> None:
    folder = _committee(tmp_path / "committee")
    options = ["--task", "pile", "--hops", "2,3", "-n", "4", "--repair", folder, "--out", tmp_path / "study"]
    code, printed = call("diagnose", "--model", "reasoner", *options)
    assert code == 0, printed
    diagnosis = open_diagnosis(tmp_path / "study")
    assert {row["task"] for row in diagnosis.accuracy.rows} == {"pile"}
    assert {row["task"] for row in diagnosis.errors.by_task} == {"pile"}
    page = (tmp_path / "study" / "report.html").read_text()
    assert "Pile" in page and "committee" in page


@pytest.mark.slow
def test_it_works_after_pip_install(tmp_path: Path) -> None:
    source = shutil.copytree(PLUGIN, tmp_path / "source")
    site = tmp_path / "site"
    pip = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-build-isolation", "--no-index", "--quiet"]
    subprocess.run([*pip, "--target", str(site), str(source)], check=True)
    paths = os.pathsep.join([str(site), *os.environ.get("PYTHONPATH", "").split(os.pathsep)])

    def run(*args: str) -> str:
        env = {**os.environ, "PYTHONPATH": paths, "COLUMNS": "200"}
        done = subprocess.run([sys.executable, *args], env=env, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    assert "thing recall" in run("-m", "chainwright", "tasks", "pile")
    run(str(source / "save_committee.py"), "committee")
    cell = ["--model", "reasoner", "--task", "pile", "--hops", "2", "-n", "3"]
    run("-m", "chainwright", "generate", *cell, "--out", "pile.parquet", "--repair", "committee")
    run("-m", "chainwright", "diagnose", *cell, "--repair", "committee", "--out", "study")
    assert "Pile" in (tmp_path / "study" / "report.html").read_text()


def test_the_page_on_extending_names_every_kind() -> None:
    page = (PLUGIN.parents[1] / "docs" / "extending.md").read_text()
    table = page.partition("| kind |")[2].partition("\n\n")[0]
    assert all(f"`{kind}`" in table for kind in plugins.KINDS)
    links = re.findall(r"\]\((?!https:)([^)#]+)(?:#[^)]*)?\)", page)
    assert links and all((PLUGIN.parents[1] / "docs" / link).exists() for link in links)
