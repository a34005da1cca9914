"""A diagnosis as a study: killed at any moment and resumed, it ends as if nothing had happened."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import study_nursery
from chainwright import tasks
from chainwright._errors import BadInput
from chainwright._version import __version__
from chainwright.diagnose import Alternatives, HeadCheck, HeadEvidence, RoleFinding
from chainwright.models.load import LoadedModel, load_model
from chainwright.studies import Job, Study, Watch
from chainwright.studies.diagnosis import run as study
from chainwright.studies.diagnosis import units
from chainwright.studies.diagnosis.parts import Cell
from chainwright.studies.diagnosis.plan import DiagnosisPlan
from chainwright.studies.diagnosis.run import DiagnoseConfig, Diagnosis, open_diagnosis, run_diagnosis, study_config
from families import tiny
from study_nursery import CONFIG
from study_plans import files

HEADS = ["heads/clf-operation-recall", "heads/parity-fewer-hops", "heads/parity-name-recall"]


@pytest.fixture(scope="module")
def reasoner() -> LoadedModel:
    return load_model("reasoner")


def run(reasoner: LoadedModel, folder: Path, config: DiagnoseConfig = CONFIG, **options: object) -> Diagnosis:
    return run_diagnosis(*reasoner, config, folder, progress=False, **options)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def whole(reasoner: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Diagnosis]:
    """An undisturbed run: its folder, and what it found."""
    folder = tmp_path_factory.mktemp("study") / "whole"
    return folder, run(reasoner, folder)


def copied(whole: tuple[Path, Diagnosis], folder: Path) -> Path:
    return Path(shutil.copytree(whole[0], folder))


def change_state(folder: Path, **values: object) -> None:
    path = folder / "study.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | values), encoding="utf-8")


def test_a_run_leaves_the_files_that_are_named(whole: tuple[Path, Diagnosis]) -> None:
    folder, found = whole
    cells = ["parity-013-0", "parity-014-0", "clf-002-0", "clf-013-0"]
    units = Study.open(folder).units
    assert units[:10] == [f"traces/{c}" for c in cells] + ["accuracy"] + [f"scores/{c}" for c in cells] + ["errors"]
    assert len(units) > 10 and all(unit.startswith(("heads/", "evidence/")) for unit in units[10:])
    assert len(found.traces) == len(found.scores) == len(found.token_strs) == 24
    assert found.roles, "the reasoner fails at 13 and 14 hops"
    names = files(folder)
    for role in found.roles:
        assert f"heads/{role.task}-{role.error_type.replace(' ', '-')}/result.json" in names
    for trace, strings in zip(found.traces, found.token_strs, strict=True):
        assert len(strings) == len(trace)
    assert found.token_strs[0][0] == "<bos>"
    (others,), evidence = found.of(Alternatives), found.of(HeadEvidence)
    assert list(found) == found.findings and len(found) == 3 + 2 * len(evidence)
    assert sorted(set(others.trace.tolist())) == list(range(24)), "cells are joined in their order"
    for i, (trace, at) in enumerate(zip(others.trace.tolist(), others.position.tolist(), strict=True)):
        assert int(others.top_ids[i, 0]) == int(found.scores[trace].argmax[at])
    assert [(e.task, e.error_type) for e in evidence] == [(r.task, r.error_type) for r in found.roles]
    known = Study.open(folder).manifest
    assert known.kind == "diagnosis" and known.config["seeds"] == [0] and known.model["model"] == "reasoner"
    assert len(known.model["fingerprint"]) == 16 and known.chainwright == __version__


def test_units_have_titles_for_readers(reasoner: LoadedModel, whole: tuple[Path, Diagnosis]) -> None:
    plan = DiagnosisPlan(*reasoner, CONFIG.replace(seeds=(0, 7)))
    titles = [plan.title(unit) for unit in ("traces/clf-013-7", "scores/clf-013-7", "accuracy", "errors", HEADS[0])]
    assert titles == [
        "CLF, 13 hops, seed 7: 6 problems",
        "Scoring every token: CLF, 13 hops",
        "Accuracy by task and hops",
        "First errors",
        "Heads at CLF, operation recall",
    ]
    assert DiagnosisPlan(*reasoner, CONFIG).title("traces/clf-013-0") == "CLF, 13 hops: 6 problems"


def test_a_finished_study_opens_as_it_was_found(whole: tuple[Path, Diagnosis]) -> None:
    folder, found = whole
    again = open_diagnosis(folder)
    assert again.traces == found.traces and again.token_strs == found.token_strs
    assert again.accuracy == found.accuracy and again.errors == found.errors
    assert again.summary() == found.summary() and again.skipped == found.skipped
    assert dict(again.provenance) == dict(found.provenance)
    assert again.config.record() == found.config.record() == study_config(folder).record()
    assert [(r.task, r.error_type, r.check) for r in again.roles] == [
        (r.task, r.error_type, r.check) for r in found.roles
    ]
    for ours, theirs in zip(again.roles, found.roles, strict=True):
        assert torch.equal(ours.corrected, theirs.corrected)
        assert ours.erroneous_processing == theirs.erroneous_processing


def test_what_is_in_memory_is_what_the_instruments_give(reasoner: LoadedModel, whole: tuple[Path, Diagnosis]) -> None:
    from chainwright import generate, score

    found = whole[1]
    problems = tasks.sample("clf", 13, 6, 0)
    expected = generate(*reasoner, problems, seed=Cell("clf", 13, 0).decode_seed, progress=False)
    assert found.traces[18:] == expected
    for trace, scores in zip(found.traces[::5], found.scores[::5], strict=True):
        alone = score(reasoner.model, trace)
        assert torch.equal(alone.argmax, scores.argmax) and bool(scores.entropy[0].isnan())
        assert torch.allclose(alone.logprob[1:], scores.logprob[1:], atol=1e-4)


class Stopping(Watch):
    """Interrupts a run when a number of units are finished."""

    def __init__(self, at: int) -> None:
        self.left = at

    def started(self, title: str) -> None:
        if self.left == 0:
            raise KeyboardInterrupt
        self.left -= 1


@pytest.mark.parametrize("at", [0, 3, 9, 11])
def test_ctrl_c_at_any_unit_and_going_on_gives_the_same_bytes(
    reasoner: LoadedModel, whole: tuple[Path, Diagnosis], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    plan = DiagnosisPlan(*reasoner, CONFIG)
    with pytest.raises(KeyboardInterrupt):
        Study.make(tmp_path / "s", plan).run(Stopping(at))
    with pytest.raises(BadInput, match=r"The study in .*s is not finished; resume it with: chainwright study run"):
        open_diagnosis(tmp_path / "s")
    computed: list[str] = []
    real = DiagnosisPlan.compute

    def noted(self: DiagnosisPlan, job: Job) -> None:
        computed.append(job.unit)
        real(self, job)

    monkeypatch.setattr(DiagnosisPlan, "compute", noted)
    found = run(reasoner, tmp_path / "s")
    assert computed == Study.open(whole[0]).units[at:], "what was saved is not done again"
    assert files(tmp_path / "s") == files(whole[0]) and found.summary() == whole[1].summary()


@pytest.fixture(scope="module")
def nursery() -> Iterator[subprocess.Popen[str]]:
    """A process with everything loaded, which forks a run for each folder that is named to it."""
    process = subprocess.Popen(
        [sys.executable, study_nursery.__file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=study_nursery.environment(),
    )
    assert process.stdin is not None and process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    yield process
    process.stdin.close()
    process.wait()
    process.stdout.close()


def born_and_killed(nursery: subprocess.Popen[str], folder: Path, seconds: float) -> bool:
    """Run a study for some time, then kill it with SIGKILL; say whether it was still running."""
    assert nursery.stdin is not None and nursery.stdout is not None
    nursery.stdin.write(f"{seconds} {folder}\n")
    nursery.stdin.flush()
    return nursery.stdout.readline() == "killed\n"


@pytest.mark.parametrize("n_kills", [5, pytest.param(50, marks=pytest.mark.slow)])
def test_sigkill_at_random_moments_and_going_on_gives_the_same_bytes(
    nursery: subprocess.Popen[str], tmp_path: Path, n_kills: int
) -> None:
    start = time.monotonic()
    assert not born_and_killed(nursery, tmp_path / "whole", 600)
    length = time.monotonic() - start
    expected, draw, killed = files(tmp_path / "whole"), random.Random(n_kills), 0
    for i in range(n_kills):
        folder = tmp_path / "s"
        killed += born_and_killed(nursery, folder, draw.uniform(0.02, 0.9) * length)
        if i % 2 or i == n_kills - 1:  # every other study is killed twice before it may finish
            assert not born_and_killed(nursery, folder, 600)
            assert files(folder) == expected
            log = [json.loads(line) for line in (folder / "study.log").read_bytes().splitlines()]
            units = [entry["unit"] for entry in log if entry["event"] == "unit"]
            assert len(units) <= len(set(units)) + 2, "a kill repeats at most the unit in flight"
            shutil.rmtree(folder)
    assert killed >= n_kills // 3, "most runs were killed before they ended"


def test_a_run_killed_before_its_first_file_can_be_begun_again(reasoner: LoadedModel, tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / ".study.json.12-0123abcd.draft").write_text("{")
    run(reasoner, tmp_path / "s", CONFIG.replace(hops={"clf": (2,)}, n=1))
    assert study_config(tmp_path / "s").n == 1
    assert not list((tmp_path / "s").glob(".study.json*"))


def test_other_settings_are_refused_with_both_values(
    reasoner: LoadedModel, whole: tuple[Path, Diagnosis], tmp_path: Path
) -> None:
    folder = copied(whole, tmp_path / "s")
    before = files(folder)
    other = CONFIG.replace(n=7, seeds=(1,), hops={"clf": (2,)}, temperature=0.5)
    says = (
        r"holds a study with other settings: hops\.clf is \[13, 2\] there, \[2\] was asked; hops\.parity is "
        r"\[13, 14\] there, not set was asked; n is 6 there, 7 was asked; seeds is \[0\] there, \[1\] was asked; "
        r"temperature is 0\.0 there, 0\.5 was asked\. Use the same settings"
    )
    with pytest.raises(BadInput, match=says):
        run(reasoner, folder, other)
    assert files(folder) == before
    run(reasoner, folder, CONFIG.replace(hops={"clf": [3]}, n=1), overwrite=True)
    assert [n for n in files(folder) if n.startswith("traces/")] == [
        f"traces/clf-003-0/{name}" for name in ("token_strs.json", "traces.parquet", "unit.json")
    ]
    assert not (folder / "heads").exists() and study_config(folder).n == 1


def test_another_model_is_recognised_by_its_fingerprint(
    reasoner: LoadedModel, whole: tuple[Path, Diagnosis], tmp_path: Path
) -> None:
    folder = copied(whole, tmp_path / "s")
    other = load_model("reasoner")
    with torch.no_grad():
        other.model.model.layers[2].mlp.up_proj.weight[100, 100] += 1e-3
    says = r'other settings: model\.fingerprint is "[0-9a-f]{16}" there, "[0-9a-f]{16}" was asked\. Use'
    with pytest.raises(BadInput, match=says):
        run(other, folder)


def first_schema(folder: Path) -> Path:
    """Make what the first version of studies left."""
    for name in ("traces/clf-002.parquet", "accuracy/result.json", "errors/result.json", "roles/clf-x/result.json",
                 "scores.safetensors", "token_strs.json", "report.html", "notes.txt"):  # fmt: skip
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("old")
    state = {"schema_version": 1, "is_complete": True, "config": {"model": "reasoner"}, "provenance": {}, "skipped": []}
    (folder / "study.json").write_text(json.dumps(state))
    return folder


def test_a_study_of_the_first_schema_is_refused_and_never_touched(reasoner: LoadedModel, tmp_path: Path) -> None:
    """Not even replaced: which of its files are the study's cannot be known."""
    folder = first_schema(tmp_path / "s")
    before = files(folder)
    calls = (
        lambda: run(reasoner, folder),
        lambda: run(reasoner, folder, overwrite=True),
        lambda: open_diagnosis(folder),
        lambda: study_config(folder),
    )
    for call in calls:
        with pytest.raises(
            BadInput,
            match=r"s has study schema version 1, this Chainwright reads 2; use the version that wrote it, or make "
            r"the study again in another folder\.$",
        ):
            call()
    assert files(folder) == before


def test_damaged_units_are_named_and_computed_again_if_asked(
    reasoner: LoadedModel, whole: tuple[Path, Diagnosis], tmp_path: Path
) -> None:
    folder = copied(whole, tmp_path / "s")
    before = files(folder)
    path = folder / "traces" / "clf-013-0" / "traces.parquet"
    path.write_bytes(path.read_bytes()[:-100])
    (folder / "scores" / "clf-002-0" / "scores.safetensors").unlink()
    says = (
        r"Unit traces/clf-013-0 of .*s is damaged: .*traces\.parquet was cut short: \d+ of \d+ bytes are there "
        r"\(and 1 more damaged units\); put the file back, or compute it again: chainwright study run .*s --recompute"
    )
    for call in (lambda: run(reasoner, folder), lambda: open_diagnosis(folder)):
        with pytest.raises(BadInput, match=says):
            call()
    run(reasoner, folder, recompute=True)
    assert files(folder) == before


def test_a_config_edited_into_nonsense_is_named(whole: tuple[Path, Diagnosis], tmp_path: Path) -> None:
    folder = copied(whole, tmp_path / "s")
    config = json.loads((folder / "study.json").read_text())["config"]
    cases = [
        ({"modle": "x"}, "Unknown setting 'modle'; known: model, .* Did you mean 'model'"),
        ({"n": "many"}, "n must be a whole number from 1; got 'many'"),
        ({"n": True}, "n must be a whole number from 1; got True"),
        ({"hops": [3]}, r"hops must be lists of whole numbers from 1, by task; got \[3\]"),
        ({"seeds": []}, "seeds must be a list of different whole numbers"),
        ({"temperature": "hot"}, r"temperature must be 0 \(greedy\) or a positive number; got 'hot'"),
        ({"instruments": ["heads"]}, "add 'errors' to the instruments"),
    ]
    for change, says in cases:
        change_state(folder, config=config | change)
        with pytest.raises(BadInput, match=rf"The config of the study in .*s is damaged: .*{says}"):
            study_config(folder)


def test_configs_that_could_not_be_run_are_refused_at_once(tmp_path: Path, reasoner: LoadedModel) -> None:
    wrong = [
        ({"hops": {}}, "No hops were asked for"),
        ({"hops": {"clf": ()}}, "No hops were asked for"),
        ({"hops": {"clf": (0,)}}, "hops must be lists of whole numbers from 1"),
        ({"hops": {"clfs": (2,)}}, "Unknown task 'clfs'.*Did you mean 'clf'"),
        ({"n": 0}, "n must be a whole number from 1; got 0"),
        ({"n_contexts": 0}, "n_contexts must be a whole number from 1"),
        ({"min_errors": 0}, "min_errors must be a whole number from 1"),
        ({"seeds": (1, 1)}, "seeds must be a list of different"),
        ({"rendering": "long"}, "Unknown rendering 'long'; known: "),
        ({"instruments": ("acuracy",)}, "Unknown instrument 'acuracy'.*Did you mean 'accuracy'"),
    ]
    for change, says in wrong:
        with pytest.raises(BadInput, match=says):
            CONFIG.replace(**change)
    with pytest.raises(BadInput):
        run(reasoner, tmp_path / "s", CONFIG.replace(hops={"mdm": (99,)}))
    with pytest.raises(BadInput, match="needs the instruments accuracy and errors, but errors is missing"):
        run(reasoner, tmp_path / "s", CONFIG.replace(instruments=("accuracy",)))
    assert not (tmp_path / "s").exists(), "nothing is begun"


def test_seeds_are_samples_of_their_own(reasoner: LoadedModel, tmp_path: Path) -> None:
    config = CONFIG.replace(hops={"clf": (13,)}, n=3, seeds=(0, 5), instruments=("accuracy",))
    made = study.run_study(*reasoner, config, tmp_path / "s", progress=False)
    assert made.units == ["traces/clf-013-0", "traces/clf-013-5", "accuracy"]
    traces = units.load_traces(config, made.results)
    assert [t.problem for t in traces] == tasks.sample("clf", 13, 3, 0) + tasks.sample("clf", 13, 3, 5)
    with pytest.raises(BadInput, match=r"The report of the study in .*s needs the instruments"):
        open_diagnosis(tmp_path / "s")


def test_cells_do_not_share_their_sampling_noise(reasoner: LoadedModel) -> None:
    """Rows of one index in two cells are decoded with noise of their own, and each cell's is the same each time."""
    cells = [Cell(*cell) for cell in (("clf", 13, 0), ("clf", 13, 1), ("clf", 12, 0), ("parity", 13, 0))]
    seeds = [cell.decode_seed for cell in cells]
    assert len(set(seeds)) == 4 and seeds == [cell.decode_seed for cell in cells]
    assert seeds[0] == 593328818


KEYS = ["Where: ", "Kind: ", "Uncertainty: ", "Heads: ", "Reach: "]


def test_five_lines_without_errors_and_without_roles(reasoner: LoadedModel, tmp_path: Path) -> None:
    easy = run(reasoner, tmp_path / "easy", CONFIG.replace(hops={"clf": (2,), "parity": (2,)}, n=2))
    lines = easy.summary()
    assert [line[: len(key)] for line, key in zip(lines, KEYS, strict=True)] == KEYS
    assert "over 2 tasks whole chains are right in 100% of problems (2 hops)" in lines[0]
    assert "no trace has an error" in lines[1] and "no entropies to compare" in lines[2]
    assert "no key error type had enough" in lines[3] and "no head was checked" in lines[4]
    few = run(reasoner, tmp_path / "few", CONFIG.replace(hops={"parity": (14,)}, n=2, min_errors=50))
    assert few.roles == [] and "fewer than 50" in few.skipped[0]
    assert [line[: len(key)] for line, key in zip(few.summary(), KEYS, strict=True)] == KEYS
    assert open_diagnosis(tmp_path / "few").skipped == few.skipped
    none = run(reasoner, tmp_path / "none", CONFIG.replace(hops={"parity": (14,)}, n=2, max_types=0))
    assert none.roles == [] and none.skipped[0].endswith("more than 0 key types")
    # nothing was looked for, so nothing is said about it
    assert [line[: len(key)] for line, key in zip(none.summary(), KEYS[:3], strict=True)] == KEYS[:3]


def test_a_frequent_type_with_too_few_contexts_leaves_its_place_to_the_next(
    reasoner: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    searched = units.erroneous_contexts

    def without_the_first(tokenizer: object, traces: object, task: str, kind: str, n: int) -> object:
        if kind == "fewer hops":
            raise BadInput("No trace has such an error.")
        return searched(tokenizer, traces, task, kind, n)  # type: ignore[arg-type]

    monkeypatch.setattr(units, "erroneous_contexts", without_the_first)
    found = run(reasoner, tmp_path / "s", CONFIG.replace(hops={"parity": CONFIG.hops["parity"]}, max_types=1))
    assert found.errors.key_types["parity"][:2] == ["fewer hops", "name recall"]
    assert [role.error_type for role in found.roles] == ["name recall"]
    assert "No trace has such an error." in found.skipped[0]


def with_roles(found: Diagnosis, *roles: RoleFinding) -> Diagnosis:
    return replace(found, findings=[found.accuracy, found.errors, *roles])


def test_five_lines_with_heads(whole: tuple[Path, Diagnosis, list[str]]) -> None:
    found = whole[1]
    assert [line[: len(key)] for line, key in zip(found.summary(), KEYS, strict=True)] == KEYS
    one = replace(found.roles[0], check=HeadCheck([2, 5], 0.75, 0.5, 4, 2))
    other = replace(found.roles[0], check=HeadCheck([0, 1], 0.0, 1.0, 12, 6))
    unchecked = replace(found.roles[0], check=None)
    lines = with_roles(found, other, one, unchecked).summary()
    assert "silencing layer 2 head 5 alone puts the right token first in 75% of 4 failing contexts" in lines[3]
    assert "keeps it first in 50% of 2 right ones" in lines[3]
    assert "over the 2 error types searched, the best single head of each fixes 19% of 16" in lines[4]
    assert "keeps 88% of the right ones" in lines[4]
    assert "too few contexts were left" in with_roles(found, unchecked).summary()[3]


def test_kinds_without_a_key_type_are_said(whole: tuple[Path, Diagnosis, list[str]]) -> None:
    found = whole[1]
    rows = [row | {"is_key": False} for row in found.errors.by_task]
    errors = replace(found.errors, by_task=rows, entropy=[])
    lines = replace(found, findings=[found.accuracy, errors]).summary()
    assert lines[1].endswith("key types: none.") and lines[2].startswith("Uncertainty: no entropies to compare")


def test_a_model_that_writes_nonsense_is_diagnosed_too(reasoner: LoadedModel, tmp_path: Path) -> None:
    """Every response is unparsed: there is no key type and nothing to look for heads at."""
    model = tiny("llama", vocab_size=len(reasoner.tokenizer))
    config = DiagnoseConfig(model="tiny", hops={"clf": (2,)}, n=2, max_new_tokens=5)
    found = run_diagnosis(model, reasoner.tokenizer, config, tmp_path / "s", progress=False)
    assert found.errors.key_types == {} and found.roles == [] and len(found.summary()) == 5
    assert all(row["n_cut"] == 2 for row in found.accuracy.rows)


def test_cells_come_in_the_usual_order_without_doubles() -> None:
    config = CONFIG.replace(hops={"objc": [5, 3, 5], "parity": (2,)})
    assert config.cells() == [("parity", 2), ("objc", 3), ("objc", 5)]
    assert config.record()["hops"] == {"objc": [5, 3, 5], "parity": [2]}
    assert tasks.names().index("parity") == 0
