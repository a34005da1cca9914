"""The study folder: killed at any moment and gone on with, it ends as if nothing had happened."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from chainwright import study, tasks
from chainwright._errors import BadInput
from chainwright.diagnose import HeadCheck
from chainwright.models.load import LoadedModel, load_model
from chainwright.study import DiagnoseConfig, Diagnosis, open_diagnosis, run_diagnosis, study_config
from families import tiny

CONFIG = DiagnoseConfig(
    model="reasoner", hops={"clf": (13, 2), "parity": (13, 14)}, n=6, n_contexts=2, min_errors=2, max_types=2
)


@pytest.fixture(scope="module")
def reasoner() -> LoadedModel:
    return load_model("reasoner")


def run(reasoner: LoadedModel, folder: Path, config: DiagnoseConfig = CONFIG, **options: object) -> Diagnosis:
    return run_diagnosis(*reasoner, config, folder, progress=False, **options)


@pytest.fixture(scope="module")
def whole(reasoner: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Diagnosis, list[str]]:
    """An undisturbed run: its folder, what it found, and what it said."""
    folder, said = tmp_path_factory.mktemp("study") / "whole", list[str]()
    return folder, run(reasoner, folder, say=said.append), said


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def same_bytes(got: Path, want: Path) -> None:
    ours, theirs = files(got), files(want)
    assert sorted(ours) == sorted(theirs)
    assert [name for name in ours if ours[name] != theirs[name]] == []


def copied(whole: tuple[Path, Diagnosis, list[str]], folder: Path) -> Path:
    return Path(shutil.copytree(whole[0], folder))


def change_state(folder: Path, **values: object) -> None:
    path = folder / "study.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | values), encoding="utf-8")


def test_a_run_leaves_the_files_that_are_named(whole: tuple[Path, Diagnosis, list[str]]) -> None:
    folder, found, said = whole
    names = files(folder)
    shards = [n for n in names if n.startswith("traces")]
    assert shards == [f"traces/{cell}.parquet" for cell in ("clf-002", "clf-013", "parity-013", "parity-014")]
    assert {"study.json", "scores.safetensors", "accuracy/result.json", "errors/result.json"} <= names.keys()
    assert len(found.traces) == len(found.scores) == len(found.token_strs) == 24
    assert found.roles, "the reasoner fails at 13 and 14 hops"
    for role in found.roles:
        assert f"roles/{role.task}-{role.error_type.replace(' ', '-')}/result.json" in names
    assert said[0] == "[1/4] Parity-NL, 13 hops: 6 problems", "tasks in their usual order"
    assert said[4] == "Scoring every token of every trace"
    assert len(said) == 5 + len(found.roles) and said[5].startswith("Heads at Parity-NL")
    for trace, strings in zip(found.traces, found.token_strs, strict=True):
        assert len(strings) == len(trace)
    assert found.token_strs[0][0] == "<bos>"


def test_a_finished_study_opens_as_it_was_found(
    reasoner: LoadedModel, whole: tuple[Path, Diagnosis, list[str]]
) -> None:
    folder, found, _ = whole
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
        assert torch.equal(ours.roles.corrected, theirs.roles.corrected)
        assert ours.roles.erroneous_processing == theirs.roles.erroneous_processing
    for ours, theirs in zip(again.scores, found.scores, strict=True):
        assert torch.equal(ours.logprob[1:], theirs.logprob[1:]) and torch.equal(ours.argmax, theirs.argmax)
        assert torch.equal(ours.entropy[1:], theirs.entropy[1:]) and bool(ours.entropy[0].isnan())


@pytest.mark.parametrize("at", [0, 1, 3, 4, 5, -1])
def test_ctrl_c_at_any_stage_and_going_on_gives_the_same_bytes(
    reasoner: LoadedModel, whole: tuple[Path, Diagnosis, list[str]], tmp_path: Path, at: int
) -> None:
    line = whole[2][at]

    def interrupted(said: str) -> None:
        if said == line:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(reasoner, tmp_path / "s", say=interrupted)
    with pytest.raises(BadInput, match=r"The study in .*s is not finished; run the same"):
        open_diagnosis(tmp_path / "s")
    said: list[str] = []
    found = run(reasoner, tmp_path / "s", say=said.append)
    at %= len(whole[2])
    assert said == whole[2][min(at, 4) : 5] + whole[2][max(at, 5) :], "what was saved is not done again"
    same_bytes(tmp_path / "s", whole[0])
    assert found.summary() == whole[1].summary()


@pytest.mark.parametrize("name", ["_save_scores", "first_errors", "_save_role", "finish", "write_traces"])
def test_an_error_at_any_write_and_going_on_gives_the_same_bytes(
    reasoner: LoadedModel,
    whole: tuple[Path, Diagnosis, list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    real: Callable[..., object] = getattr(study, name)

    def failing(*args: object, **kwargs: object) -> object:
        if name in ("_save_scores", "_save_role", "write_traces"):
            real(*args, **kwargs)
        raise RuntimeError("the power went")

    with monkeypatch.context() as patch:
        patch.setattr(study, name, failing)
        with pytest.raises(RuntimeError, match="the power went"):
            run(reasoner, tmp_path / "s")
    run(reasoner, tmp_path / "s")
    same_bytes(tmp_path / "s", whole[0])


def test_what_a_killed_run_left_is_cleared_away(
    reasoner: LoadedModel, whole: tuple[Path, Diagnosis, list[str]], tmp_path: Path
) -> None:
    folder = copied(whole, tmp_path / "s")
    change_state(folder, is_complete=False)
    (folder / "accuracy").rename(folder / ".accuracy.12-0123abcd.old")
    (folder / "traces" / ".clf-002.parquet.12-0123abcd.draft").write_text("half")
    (folder / "roles" / ".x.12-0123abcd.draft").mkdir()
    run(reasoner, folder)
    same_bytes(folder, whole[0])


def test_a_run_killed_before_its_first_file_can_be_begun_again(reasoner: LoadedModel, tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / ".study.json.12-0123abcd.draft").write_text("{")
    run(reasoner, tmp_path / "s", replace(CONFIG, hops={"clf": (2,)}, n=1))
    assert study_config(tmp_path / "s").n == 1


KILLED = """
import sys
from chainwright.models.load import load_model
from chainwright.study import DiagnoseConfig, run_diagnosis
config = DiagnoseConfig(
    model="reasoner", hops={"clf": (13, 2), "parity": (13, 14)}, n=6, n_contexts=2, min_errors=2, max_types=2
)
run_diagnosis(*load_model("reasoner"), config, sys.argv[1], progress=False, say=lambda line: print(line, flush=True))
"""


@pytest.mark.slow
@pytest.mark.parametrize("n_lines", [1, 2, 4, 5, 6])
def test_sigkill_and_going_on_gives_the_same_bytes(
    reasoner: LoadedModel, whole: tuple[Path, Diagnosis, list[str]], tmp_path: Path, n_lines: int
) -> None:
    command = [sys.executable, "-c", KILLED, str(tmp_path / "s")]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env)
    assert process.stdout is not None
    for _ in range(n_lines):
        assert process.stdout.readline()
    time.sleep(0.02 * n_lines)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    process.stdout.close()
    run(reasoner, tmp_path / "s")
    same_bytes(tmp_path / "s", whole[0])


def test_a_finished_study_is_replaced_only_if_asked(
    reasoner: LoadedModel, whole: tuple[Path, Diagnosis, list[str]], tmp_path: Path
) -> None:
    folder = copied(whole, tmp_path / "s")
    before = files(folder)
    with pytest.raises(BadInput, match=r"s already holds a finished study; pass --overwrite to replace it"):
        run(reasoner, folder)
    with pytest.raises(BadInput, match="already holds a finished study"):
        run(reasoner, folder, replace(CONFIG, n=3))
    assert files(folder) == before
    (folder / "notes.txt").write_text("mine")
    (folder / "traces-of-mine").mkdir()
    (folder / "report.html").write_text("old")
    run(reasoner, folder, replace(CONFIG, hops={"clf": [3]}, n=1), overwrite=True)
    after = files(folder)
    assert [n for n in after if n.startswith("traces/")] == ["traces/clf-003.parquet"]
    assert "report.html" not in after and not any(n.startswith("roles") for n in after)
    assert after["notes.txt"] == b"mine" and (folder / "traces-of-mine").is_dir()
    assert study_config(folder).n == 1


def test_a_replacement_that_is_interrupted_leaves_no_mixture(
    reasoner: LoadedModel, whole: tuple[Path, Diagnosis, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until the new config is written, what is left belongs to an unfinished study of the old config."""
    folder = copied(whole, tmp_path / "s")
    real, seen = shutil.rmtree, []

    def once(path: Path, **options: object) -> None:
        if seen:
            raise KeyboardInterrupt
        seen.append(path)
        real(path, **options)

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", once)
        with pytest.raises(KeyboardInterrupt):
            run(reasoner, folder, replace(CONFIG, n=3), overwrite=True)
    with pytest.raises(BadInput, match=r"holds an unfinished study with other settings \(n differ\)"):
        run(reasoner, folder, replace(CONFIG, n=3))
    run(reasoner, folder)
    same_bytes(folder, whole[0])


def test_other_settings_are_refused_by_name(
    reasoner: LoadedModel, whole: tuple[Path, Diagnosis, list[str]], tmp_path: Path
) -> None:
    folder = copied(whole, tmp_path / "s")
    change_state(folder, is_complete=False)
    before = files(folder)
    other = replace(CONFIG, n=7, seed=1, hops={"clf": (2,)}, temperature=0.5)
    with pytest.raises(BadInput, match=r"other settings \(hops, n, seed, temperature differ\); use the same settings"):
        run(reasoner, folder, other)
    source = json.loads(before["study.json"])["provenance"]
    change_state(folder, provenance=source | {"torch": "1.0", "model": "another"})
    with pytest.raises(BadInput, match=r"other settings \(model, torch differ\)"):
        run(reasoner, folder)
    change_state(folder, provenance=source)
    assert run(reasoner, folder).summary() == whole[1].summary()


@pytest.mark.parametrize("overwrite", [False, True])
def test_foreign_folders_are_refused_and_left_as_they_are(
    reasoner: LoadedModel, tmp_path: Path, overwrite: bool
) -> None:
    foreign = tmp_path / "mine"
    (foreign / "traces").mkdir(parents=True)
    (foreign / "traces" / "a.parquet").write_text("mine")
    (foreign / "report.html").write_text("mine")
    with pytest.raises(BadInput, match=r"mine exists and holds no study of Chainwright's; choose an empty or new"):
        run(reasoner, foreign, overwrite=overwrite)
    (foreign / "study.json").write_text('{"trials": 3}')
    with pytest.raises(BadInput, match=r"study\.json was not written by Chainwright"):
        run(reasoner, foreign, overwrite=overwrite)
    (foreign / "study.json").write_text("not json")
    with pytest.raises(BadInput, match=r"study\.json is no readable JSON"):
        run(reasoner, foreign, overwrite=overwrite)
    (foreign / "study.json").unlink()
    assert files(foreign) == {"report.html": b"mine", "traces/a.parquet": b"mine"}
    (tmp_path / "file").write_text("mine")
    with pytest.raises(BadInput, match=r"file is a file; choose a folder"):
        run(reasoner, tmp_path / "file", overwrite=overwrite)
    assert (tmp_path / "file").read_text() == "mine"


def test_newer_schemas_are_refused(
    reasoner: LoadedModel, whole: tuple[Path, Diagnosis, list[str]], tmp_path: Path
) -> None:
    folder = copied(whole, tmp_path / "s")
    change_state(folder, schema_version=2)
    for call in (lambda: run(reasoner, folder), lambda: open_diagnosis(folder),
                 lambda: study_config(folder)):  # fmt: skip
        with pytest.raises(BadInput, match=r"s has study schema version 2, this Chainwright reads 1"):
            call()


def test_damaged_files_are_named(
    reasoner: LoadedModel, whole: tuple[Path, Diagnosis, list[str]], tmp_path: Path
) -> None:
    role = next(n for n in files(whole[0]) if n.startswith("roles") and n.endswith("/result.json"))
    cases = {
        "traces/clf-013.parquet": r"clf-013\.parquet is no complete Parquet file",
        "scores.safetensors": r"scores\.safetensors is missing or damaged",
        "accuracy/result.json": r"accuracy/result\.json is no readable JSON",
        "errors/tensors.safetensors": r"errors/tensors\.safetensors is missing or damaged",
        role: r"result\.json is no readable JSON",
    }
    for i, (name, says) in enumerate(cases.items()):
        folder = copied(whole, tmp_path / str(i))
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: len(content) // 2])
        with pytest.raises(BadInput, match=says):
            open_diagnosis(folder)
        (folder / name).unlink()
        with pytest.raises(BadInput, match=Path(name).name.replace(".", r"\.")):
            open_diagnosis(folder)
    folder = copied(whole, tmp_path / "resumed")
    change_state(folder, is_complete=False)
    (folder / "traces" / "clf-013.parquet").write_bytes(b"PAR1 half")
    with pytest.raises(BadInput, match=r"clf-013\.parquet is no complete Parquet file"):
        run(reasoner, folder)
    change_state(folder, config={"modle": "x"})
    with pytest.raises(BadInput, match=r"config of the study in .* is damaged"):
        study_config(folder)
    with pytest.raises(BadInput, match="none holds no study"):
        open_diagnosis(tmp_path / "none")


def test_configs_that_could_not_be_run_are_refused_at_once(tmp_path: Path, reasoner: LoadedModel) -> None:
    wrong = [
        ({"hops": {}}, "No hops were asked for"),
        ({"hops": {"clf": ()}}, "No hops were asked for"),
        ({"hops": {"clfs": (2,)}}, "Unknown task 'clfs'.*Did you mean 'clf'"),
        ({"n": 0}, "n must be at least 1; got 0"),
        ({"n_contexts": 0}, "n_contexts must be at least 1"),
        ({"min_errors": 0}, "min_errors must be at least 1"),
    ]
    for change, says in wrong:
        with pytest.raises(BadInput, match=says):
            replace(CONFIG, **change)
    for change in ({"hops": {"clf": (0,)}}, {"rendering": "long"}, {"hops": {"mdm": (99,)}}):
        with pytest.raises(BadInput):
            run(reasoner, tmp_path / "s", replace(CONFIG, **change))
    assert not (tmp_path / "s").exists(), "nothing is begun"


KEYS = ["Where: ", "Kind: ", "Doubt: ", "Heads: ", "Reach: "]


def test_five_lines_without_errors_and_without_roles(reasoner: LoadedModel, tmp_path: Path) -> None:
    easy = run(reasoner, tmp_path / "easy", replace(CONFIG, hops={"clf": (2,), "parity": (2,)}, n=2))
    lines = easy.summary()
    assert [line[: len(key)] for line, key in zip(lines, KEYS, strict=True)] == KEYS
    assert "over 2 tasks whole chains are right in 100% of problems at the fewest hops asked (2)" in lines[0]
    assert "no trace has an error" in lines[1] and "no wrong token" in lines[2]
    assert "no key error type had enough" in lines[3] and "no head was checked" in lines[4]
    few = run(reasoner, tmp_path / "few", replace(CONFIG, hops={"parity": (14,)}, n=2, min_errors=50))
    assert few.roles == [] and "fewer than 50" in few.skipped[0]
    assert [line[: len(key)] for line, key in zip(few.summary(), KEYS, strict=True)] == KEYS
    assert open_diagnosis(tmp_path / "few").skipped == few.skipped
    none = run(reasoner, tmp_path / "none", replace(CONFIG, hops={"parity": (14,)}, n=2, max_types=0))
    assert none.roles == [] and none.skipped[0].endswith("more than 0 key types")


def test_five_lines_with_heads(whole: tuple[Path, Diagnosis, list[str]]) -> None:
    found = whole[1]
    assert [line[: len(key)] for line, key in zip(found.summary(), KEYS, strict=True)] == KEYS
    one = replace(found.roles[0], check=HeadCheck([2, 5], 0.75, 0.5, 4, 2))
    other = replace(found.roles[0], check=HeadCheck([0, 1], 0.0, 1.0, 12, 6))
    unchecked = replace(found.roles[0], check=None)
    lines = replace(found, roles=[other, one, unchecked]).summary()
    assert "silencing layer 2 head 5 alone puts the right token first in 75% of 4 failing contexts" in lines[3]
    assert "keeps it first in 50% of 2 right ones" in lines[3]
    assert "over the 2 error types searched, the best single head of each mends 19% of 16" in lines[4]
    assert "keeps 88% of the right ones" in lines[4]
    assert "too few contexts were left" in replace(found, roles=[unchecked]).summary()[3]


def test_kinds_without_a_key_type_are_said(whole: tuple[Path, Diagnosis, list[str]]) -> None:
    found = whole[1]
    rows = [row | {"is_key": False} for row in found.errors.by_task]
    lines = replace(found, errors=replace(found.errors, by_task=rows, entropy=[])).summary()
    assert lines[1].endswith("key types: none.") and lines[2].startswith("Doubt: no wrong token")


def test_a_model_that_writes_nonsense_is_diagnosed_too(reasoner: LoadedModel, tmp_path: Path) -> None:
    """Every response is unparsed: there is no key type and nothing to look for heads at."""
    model = tiny("llama", vocab_size=len(reasoner.tokenizer))
    config = DiagnoseConfig(model="tiny", hops={"clf": (2,)}, n=2, max_new_tokens=5)
    found = run_diagnosis(model, reasoner.tokenizer, config, tmp_path / "s", progress=False)
    assert found.errors.key_types == {} and found.roles == [] and len(found.summary()) == 5
    assert all(row["n_cut"] == 2 for row in found.accuracy.rows)


def test_cells_come_in_the_usual_order_without_doubles() -> None:
    config = replace(CONFIG, hops={"objc": [5, 3, 5], "parity": (2,)})
    assert config.cells() == [("parity", 2), ("objc", 3), ("objc", 5)]
    assert config.record()["hops"] == {"objc": [5, 3, 5], "parity": [2]}
    assert tasks.names().index("parity") == 0
