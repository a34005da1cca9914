"""`--tp N`: a command in several ranks prints and writes once what it does in one process, and ends as one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from chainwright.traces import read_traces
from command_line import call

_SECONDS = 300


def start(*args: object) -> subprocess.Popen[str]:
    """Start a command in a process of its own."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    env["CUDA_VISIBLE_DEVICES"] = ""
    return subprocess.Popen(
        [sys.executable, "-m", "chainwright", *map(str, args)],
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ranks_of(process: subprocess.Popen[str]) -> list[int]:
    """Return the ranks of a command, in their order, when all of them run."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    until = time.monotonic() + _SECONDS
    while len(found := children.read_text().split()) < 2:
        assert time.monotonic() < until and process.poll() is None, process.communicate()
        time.sleep(0.05)
    return [int(pid) for pid in found]


def assert_gone(pids: list[int]) -> None:
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]


def test_generate_writes_what_one_process_writes(tmp_path: Path) -> None:
    asked = ("generate", "-m", "reasoner", "-t", "clf", "--hops", 12, "-n", 3, "--samples", 2, "--temperature", 0.7)
    ranks = start(*asked, "--tp", 2, "--out", tmp_path / "two.parquet")
    said, errors = ranks.communicate(timeout=_SECONDS)
    assert ranks.returncode == 0, errors
    code, alone = call(*asked, "--out", tmp_path / "one.parquet", "--quiet")
    assert code == 0
    assert " ".join(said.replace("two.parquet", "one.parquet").split()) == alone.strip()
    two, one = (read_traces(tmp_path / f"{name}.parquet") for name in ("two", "one"))
    assert [(t.response, t.input_ids.tolist()) for t in two] == [(t.response, t.input_ids.tolist()) for t in one]
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["one.parquet", "two.parquet"]


def test_a_mistake_is_named_once() -> None:
    ranks = start("evaluate", "-m", "nosuch", "--tp", 2)
    said, errors = ranks.communicate(timeout=_SECONDS)
    assert (ranks.returncode, said) == (2, "")
    assert errors.count("Unknown model 'nosuch'") == 1


@pytest.mark.skipif(sys.platform != "linux", reason="finds the ranks under /proc")
def test_a_rank_that_is_killed_ends_all_of_them(tmp_path: Path) -> None:
    ranks = start("generate", "-m", "reasoner", "-t", "clf", "-n", 500, "--tp", 2, "--out", tmp_path / "t.parquet")
    pids = ranks_of(ranks)
    wait_for_parts(ranks, tmp_path)
    os.kill(pids[1], signal.SIGKILL)
    _, errors = ranks.communicate(timeout=_SECONDS)
    assert ranks.returncode == 1
    assert "Rank 1 was ended by SIGKILL, so all were ended. Finished work under --out is saved" in errors
    assert "Traceback" not in errors
    assert_gone(pids)


@pytest.mark.skipif(sys.platform != "linux", reason="finds the ranks under /proc")
def test_an_interruption_ends_all_ranks_and_the_run_is_resumed(tmp_path: Path) -> None:
    # three parts, so that two are left when the first has been written
    asked = ("generate", "-m", "reasoner", "-t", "clf", "--hops", 4, "-n", 150, "--batch-size", 16, "--tp", 2)
    ranks = start(*asked, "--out", tmp_path / "t.parquet")
    pids = ranks_of(ranks)
    wait_for_parts(ranks, tmp_path)
    ranks.send_signal(signal.SIGINT)
    _, errors = ranks.communicate(timeout=_SECONDS)
    assert ranks.returncode == 130, errors
    assert errors.count("Interrupted. Finished work under --out is saved") == 1
    assert_gone(pids)
    again = start(*asked, "--out", tmp_path / "t.parquet")
    _, errors = again.communicate(timeout=_SECONDS)
    assert again.returncode == 0, errors
    assert len(read_traces(tmp_path / "t.parquet")) == 150


def wait_for_parts(ranks: subprocess.Popen[str], folder: Path) -> None:
    """Wait until the command has loaded its model and begun to decode."""
    until = time.monotonic() + _SECONDS
    while not list(folder.glob("*.parts/*")):
        assert time.monotonic() < until and ranks.poll() is None, ranks.communicate()
        time.sleep(0.05)


@pytest.mark.slow
def test_a_diagnosis_by_ranks_finds_what_one_process_finds(tmp_path: Path) -> None:
    asked = ("diagnose", "-m", "reasoner", "-t", "clf", "--hops", "13,14", "-n", 12, "--n-contexts", 4, "--steps", "-q")
    ranks = start(*asked, "--tp", 2, "--out", tmp_path / "two")
    said, errors = ranks.communicate(timeout=_SECONDS)
    assert ranks.returncode == 0, errors
    code, alone = call(*asked, "--out", tmp_path / "one")
    assert code == 0
    assert " ".join(said.replace("two", "one").split()) == alone.strip().replace("two", "one")
    files = [sorted(str(p.relative_to(tmp_path / n)) for p in (tmp_path / n).rglob("*.json")) for n in ("one", "two")]
    assert files[0] == files[1]


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("generate", "--tp", 0), "--tp must be at least 1"),
        (("serve", "--tp", 2), "--tp is for generate, evaluate and diagnose"),
        (("diagnose", "--plan", "--tp", 2), "--plan times passes in one process on one device"),
        (("generate", "--device-map", "nowhere"), "nowhere"),
        (("generate", "--device-map", "auto", "--device", "cpu"), "both say where the model goes"),
    ],
)
def test_options_that_cannot_be_are_refused(args: tuple, says: str) -> None:
    code, said = call(*args)
    assert (code, says in said) == (2, True), said


def test_ranks_are_not_started_inside_of_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    code, said = call("generate", "--tp", 2)
    assert code == 2 and "start the command without torchrun" in said


def test_a_device_map_leaves_the_results_as_they_are() -> None:
    asked = ("generate", "-m", "reasoner", "-t", "clf", "--hops", 12, "-n", 1, "--quiet")
    assert call(*asked, "--device-map", "auto") == call(*asked)
