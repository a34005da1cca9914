"""`chainwright study work`: several processes on the folder of a diagnosis, killed, stopped in order, and refused."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from chainwright._errors import BadInput
from chainwright.studies import Study
from command_line import call
from worker_plans import files

FILE = """
model = "reasoner"
hops = { clf = [8, 13], parity = "13" }
n = 6
n_contexts = 2
min_errors = 2
max_types = 1
"""


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    (folder / "small.toml").write_text(FILE)
    code, printed = call("study", "run", folder / "small.toml", "-o", folder / "s", "-q")
    assert code == 0, printed
    return folder / "s"


@pytest.fixture
def made(tmp_path: Path) -> Path:
    (tmp_path / "small.toml").write_text(FILE)
    code, printed = call("study", "run", tmp_path / "small.toml", "-o", tmp_path / "s", "--executor", "folder")
    folder = tmp_path / "s"
    assert code == 0 and f"Made {folder} and listed its first 3 units. Compute it with" in printed
    assert printed.strip().endswith(f"chainwright study work {folder}")
    return folder


@pytest.fixture
def processes() -> Iterator[list[subprocess.Popen[str]]]:
    found: list[subprocess.Popen[str]] = []
    yield found
    for process in found:
        if process.poll() is None:
            process.kill()
        process.communicate()


def start(processes: list[subprocess.Popen[str]], folder: Path, lease: float = 2.0) -> subprocess.Popen[str]:
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    command = [
        sys.executable,
        "-m",
        "chainwright",
        "study",
        "work",
        str(folder),
        "--lease",
        str(lease),
        "--device",
        "cpu",
    ]
    pipe = subprocess.PIPE
    processes.append(subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=env))
    return processes[-1]


def working(folder: Path) -> list[int]:
    """Return the processes that compute a unit at this moment."""
    return [worker.pid for worker in Study.open(folder).status().workers if worker.unit]


def until_working(folder: Path, n: int) -> None:
    end = time.monotonic() + 120
    while len(working(folder)) < n:
        assert time.monotonic() < end, "no worker has begun"
        time.sleep(0.02)


def test_workers_one_of_which_is_killed_write_what_one_process_writes(
    whole: Path, made: Path, processes: list[subprocess.Popen[str]]
) -> None:
    first, second = start(processes, made), start(processes, made)
    until_working(made, 2)
    code, printed = call("study", "status", made)
    assert code == 0 and "Locked by: none Workers: 2" in printed and "Resume it" not in printed
    assert re.search(r"process \d+ on \S+, since \S+: computes \S+, \d units done, last sign of life at 20", printed)
    code, printed = call("study", "run", made)
    assert code == 2 and "is being computed by workers (process" in printed
    first.kill()
    third = start(processes, made)
    said = []
    for process in (second, third):
        printed, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
        said.append(printed)
    assert all(f"{made} is finished; this worker computed " in each for each in said)
    assert sum("Report: " in each for each in said) == 1, "who finishes the study writes its report"
    assert files(made) == files(whole)
    code, printed = call("study", "work", made)
    assert code == 0 and "is finished; `chainwright study show" in printed


def test_a_scheduler_that_ends_a_worker_gets_its_unit_back(
    whole: Path, made: Path, processes: list[subprocess.Popen[str]]
) -> None:
    process = start(processes, made, lease=1000)
    until_working(made, 1)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM and Study.open(made).status().workers == []
    code, printed = call("study", "work", made, "-q")
    assert code == 0 and "is finished; this worker computed" in printed
    assert files(made) == files(whole)


def test_other_weights_and_other_versions_are_refused(made: Path) -> None:
    path = made / "study.json"
    state = json.loads(path.read_text())
    path.write_text(json.dumps(state | {"model": state["model"] | {"fingerprint": "0123456789abcdef"}}))
    code, printed = call("study", "work", made)
    assert code == 2 and re.search(r'model\.fingerprint is "0123456789abcdef" there and "\w{16}" here\. Inst', printed)
    path.write_text(json.dumps(state | {"chainwright": "0.1.0"}))
    code, printed = call("study", "work", made)
    assert code == 2 and 'chainwright is "0.1.0" there and "0.2.0" here' in printed


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--lease", "0.2"], r"A lease must be at least 1 second, and longer than the folder may hang; got 0\.2\."),
        (["--device", "cudda"], r"Unknown device 'cudda'"),
    ],
)
def test_options_that_do_not_fit_are_one_sentence(made: Path, more: list[str], says: str) -> None:
    code, printed = call("study", "work", made, *more)
    assert code == 2 and re.search(says, printed)


def test_a_folder_without_a_study_is_one_sentence(tmp_path: Path) -> None:
    code, printed = call("study", "work", tmp_path)
    assert code == 2 and "holds no study (there is no study.json in it)" in printed


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--workers", "2"], "The executor 'local' computes one unit at a time, and 2 workers were asked for"),
        (
            ["--executor", "ray", "--device-map", "auto"],
            "--device-map spreads the model of one process, and --executor ray",
        ),
        (["--executor", "slurm"], "Unknown executor 'slurm'; known: folder, local, ray."),
        (["--executor", "folder", "--workers", "2"], "The executor 'folder' starts no workers, and 2 were asked for"),
    ],
)
def test_an_executor_that_does_not_fit_is_refused_before_anything_is_made(
    tmp_path: Path, more: list[str], says: str
) -> None:
    commands = [
        ["diagnose", "--task", "clf"],
        ["pivots", "--task", "clf"],
        ["study", "run", str(tmp_path / "small.toml")],
    ]
    for command in commands[:2] if "--device-map" in more else commands:
        (tmp_path / "small.toml").write_text(FILE)
        code, printed = call(*command, "-o", tmp_path / "s", *more)
        assert code == 2 and says in printed and not (tmp_path / "s").exists()


def test_a_study_of_tasks_resumes_with_its_plan(made: Path, whole: Path) -> None:
    study = Study.open(made).with_plan(device="cpu")
    study.run()
    assert Study.open(made).is_complete
    with pytest.raises(BadInput, match="was opened for reading only"):
        Study.open(made).run()
    assert {k: v for k, v in files(whole).items() if k != "report.html"} == files(made)
