"""Several processes on one folder: killed, stopped and refused, they end with the bytes of one that was left alone."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from chainwright._errors import BadInput
from chainwright.studies import Study, Watch
from chainwright.studies.crew import Heart
from chainwright.studies.executors import made
from chainwright.studies.lock import locked
from chainwright.studies.workers import work
from worker_plans import Cubes, files

N = 6
Process = subprocess.Popen[str]


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    Study.make(tmp_path / "whole", Cubes(N)).run()
    return tmp_path / "whole"


@pytest.fixture
def started() -> Iterator[list[Process]]:
    """Every process that a test starts; those that are still there are ended with it."""
    found: list[Process] = []
    yield found
    for process in found:
        if process.poll() is None:
            process.send_signal(signal.SIGCONT)
            process.kill()
        process.communicate()


def start(started: list[Process], folder: Path, seconds: float, lease: float = 1.0, **environment: str) -> Process:
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "CUBES_SECONDS": str(seconds), **environment}
    command = [sys.executable, "-c", "import worker_plans; worker_plans.main()", str(folder), str(lease)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)
    started.append(process)
    return process


class Nursery:
    """Starts workers quickly, by forking a process that has imported everything."""

    def __init__(self, started: list[Process], seconds: float):
        env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "CUBES_SECONDS": str(seconds)}
        command = [sys.executable, "-c", "import worker_plans; worker_plans.nursery()"]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, env=env)
        started.append(self.process)

    def start(self, folder: Path, lease: float = 1.0) -> int:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(f"{folder} {lease}\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def is_alive(self, worker: int) -> bool:
        try:
            os.kill(worker, 0)
        except ProcessLookupError:
            return False
        return True

    def close(self) -> None:
        errors = self.process.communicate(timeout=120)[1]
        assert errors == "", errors


def ended(process: Process) -> str:
    printed, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    return printed.splitlines()[-1]


def until(ready: object, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not ready():  # type: ignore[operator]
        assert time.monotonic() < end, "nothing has happened"
        time.sleep(0.02)


def made_only(folder: Path, n: int = N) -> Study:
    study = Study.make(folder, Cubes(n))
    study.run(executor=made("folder"))
    return study


def killed_at_random(nursery: Nursery, folder: Path, n_kills: int, draw: random.Random, n_workers: int = 4) -> int:
    """Keep so many workers at a study until it is finished, killing one of them now and then; return the kills."""
    workers = [nursery.start(folder) for _ in range(n_workers)]
    n = 0
    while not Study.open(folder).is_complete:
        time.sleep(draw.random() * 0.5)
        i = draw.randrange(n_workers)
        if n < n_kills and nursery.is_alive(workers[i]):
            os.kill(workers[i], signal.SIGKILL)
            n += 1
        if not nursery.is_alive(workers[i]):
            workers[i] = nursery.start(folder)
    until(lambda: not any(map(nursery.is_alive, workers)))
    return n


def test_four_workers_that_are_killed_and_restarted_end_with_the_same_bytes(
    whole: Path, tmp_path: Path, started: list[Process]
) -> None:
    made_only(tmp_path / "s")
    nursery = Nursery(started, 0.2)
    n = killed_at_random(nursery, tmp_path / "s", 6, random.Random(0))
    nursery.close()
    assert files(tmp_path / "s") == files(whole) and n >= 3


@pytest.mark.slow
def test_two_hundred_kills_end_with_the_same_bytes(tmp_path: Path, started: list[Process]) -> None:
    draw, n = random.Random(1), 0
    nursery = Nursery(started, 0.1)
    Study.make(tmp_path / "whole", Cubes(24)).run()
    while n < 200:
        made_only(tmp_path / "s", 24)
        n += killed_at_random(nursery, tmp_path / "s", min(60, 200 - n), draw)
        assert files(tmp_path / "s") == files(tmp_path / "whole")
        shutil.rmtree(tmp_path / "s")
    nursery.close()


def test_one_worker_after_the_other_computes_everything_once(whole: Path, tmp_path: Path) -> None:
    made_only(tmp_path / "s")
    plan = Cubes(N)
    seen: list[tuple[str, str | None]] = []

    class Seen(Watch):
        def finished(self, title: str, seconds: float, skipped: str | None, left: float | None) -> None:
            seen.append((title, skipped))

    worked = work(tmp_path / "s", plan, Seen())
    assert worked == (2 * N + 2, 0, True) and sorted(plan.computed) == sorted(Study.open(whole).units)
    assert seen[-2:] == [("unit none", "there is none"), ("unit sum", None)]
    assert files(tmp_path / "s") == files(whole)
    from chainwright.studies import timing

    assert timing.seconds_by_unit(tmp_path / "s").keys() == set(plan.computed), "its log is a part of the study's"
    assert work(tmp_path / "s", Cubes(N)) == (0, 0, False), "nothing is left to do"
    assert files(tmp_path / "s") == files(whole)


def test_a_unit_begun_by_run_is_gone_on_with_and_the_other_way_round(whole: Path, tmp_path: Path) -> None:
    class Stop(Watch):
        def finished(self, title: str, seconds: float, skipped: str | None, left: float | None) -> None:
            raise KeyboardInterrupt

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            Study.make(tmp_path / "s", Cubes(N)).run(Stop())
        with pytest.raises(KeyboardInterrupt):
            work(tmp_path / "s", Cubes(N), Stop())
    assert Study.open(tmp_path / "s").status().count("done") == 4
    Study.make(tmp_path / "s", Cubes(N)).run()
    assert files(tmp_path / "s") == files(whole)


def test_a_worker_that_slept_longer_than_its_lease_writes_nothing(
    whole: Path, tmp_path: Path, started: list[Process]
) -> None:
    made_only(tmp_path / "s")
    slow = start(started, tmp_path / "s", 1.0)
    until(lambda: any(w.unit for w in Study.open(tmp_path / "s").status().workers))
    slow.send_signal(signal.SIGSTOP)
    (state,) = Study.open(tmp_path / "s").status().workers
    assert not (tmp_path / "s" / state.unit).exists()
    fast = start(started, tmp_path / "s", 0.0)
    until(lambda: (tmp_path / "s" / state.unit / "unit.json").exists())
    assert ended(fast).split() == [str(2 * N + 2), "0", "True"]
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "s").rglob("*")}
    slow.send_signal(signal.SIGCONT)
    assert ended(slow).split() == ["0", "1", "False"], "its unit was computed in vain"
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "s").rglob("*")} == before
    assert files(tmp_path / "s") == files(whole)


def test_an_interrupted_worker_gives_its_unit_back_at_once(tmp_path: Path, started: list[Process]) -> None:
    made_only(tmp_path / "s")
    process = start(started, tmp_path / "s", 2.0, lease=1000.0)
    until(lambda: any(w.unit for w in Study.open(tmp_path / "s").status().workers))
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert Study.open(tmp_path / "s").status().workers == []
    assert list((tmp_path / "s" / ".workers" / "claims").iterdir()) == []
    assert work(tmp_path / "s", Cubes(N)).has_finished, "without waiting for a lease of 1000 seconds"


def test_the_status_shows_every_worker(tmp_path: Path, started: list[Process]) -> None:
    study = made_only(tmp_path / "s")
    processes = [start(started, tmp_path / "s", 1.0) for _ in range(2)]
    until(lambda: len([w for w in study.status().workers if w.unit]) == 2)
    workers = study.status().workers
    assert {w.pid for w in workers} == {p.pid for p in processes} and len({w.unit for w in workers}) == 2
    assert all(w.unit in study.units for w in workers)


def test_run_and_workers_refuse_each_other(tmp_path: Path) -> None:
    study = made_only(tmp_path / "s")
    with locked(tmp_path / "s"), pytest.raises(BadInput, match=r"is being computed by process \d+ on .*, which comp"):
        work(tmp_path / "s", Cubes(N))
    with Heart(tmp_path / "s", 1.0):
        says = rf"s is being computed by workers \(process {os.getpid()} on .*\); stop them, or add another with"
        with pytest.raises(BadInput, match=says):
            study.run()
        with pytest.raises(BadInput, match=says):
            Study.make(tmp_path / "s", Cubes(2), overwrite=True)
    study.run()
    assert not (tmp_path / "s" / ".workers").exists()


def test_a_worker_of_another_version_or_with_other_weights_is_refused(tmp_path: Path) -> None:
    made_only(tmp_path / "s")
    before = files(tmp_path / "s")
    says = (
        r"The worker \(process \d+ on \S+\) does not fit the study in .*s: "
        r'model\.fingerprint is "0" there and "1" here\. Install the versions and use the weights that the study was'
    )
    with pytest.raises(BadInput, match=says):
        work(tmp_path / "s", Cubes(N, model="none", fingerprint="1"))
    state = json.loads((tmp_path / "s" / "study.json").read_text())
    (tmp_path / "s" / "study.json").write_text(json.dumps(state | {"chainwright": "0.1.9"}))
    with pytest.raises(BadInput, match=r'chainwright is "0\.1\.9" there and "0\.2\.0" here'):
        work(tmp_path / "s", Cubes(N))
    (tmp_path / "s" / "study.json").write_bytes(before["study.json"])
    assert files(tmp_path / "s") == before


def test_a_folder_without_exclusive_creation_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made_only(tmp_path / "s")
    real = Path.open

    def not_exclusive(path: Path, mode: str = "r", *more: object, **options: object) -> object:
        return real(path, mode.replace("x", "w"), *more, **options)  # type: ignore[call-overload]

    monkeypatch.setattr(Path, "open", not_exclusive)
    with pytest.raises(BadInput, match="on a file system that does not create files and folders exclusively"):
        work(tmp_path / "s", Cubes(N))


def test_a_unit_that_fails_ends_the_worker_and_is_given_back(tmp_path: Path) -> None:
    class Broken(Cubes):
        def compute(self, job: object) -> None:
            raise BadInput("there is no such thing")

    made_only(tmp_path / "s")
    with pytest.raises(BadInput, match="there is no such thing"):
        work(tmp_path / "s", Broken(N))
    assert Study.open(tmp_path / "s").status().workers == [] and work(tmp_path / "s", Cubes(N)).has_finished


def test_a_damaged_unit_stops_a_worker(tmp_path: Path, whole: Path) -> None:
    state = json.loads((whole / "study.json").read_text())
    (whole / "study.json").write_text(json.dumps(state | {"is_complete": False}))
    (whole / "square" / "1" / "value.json").write_text("7")
    with pytest.raises(BadInput, match=r"Unit square/1 of .*whole is damaged: .*chainwright study run .*--recompute"):
        work(whole, Cubes(N))


def test_the_executor_folder_computes_nothing(tmp_path: Path) -> None:
    study = made_only(tmp_path / "s")
    assert len(study.units) == 2 * N and study.status().count("missing") == 2 * N and not study.is_complete


@pytest.mark.parametrize(
    ("name", "workers", "says"),
    [
        ("local", 2, r"'local' computes one unit at a time, and 2 workers were asked for; use --executor ray"),
        ("folder", 2, r"'folder' starts no workers, and 2 were asked for; drop --workers, and start `chainw"),
        ("local", 0, r"The number of workers must be at least 1; got 0\."),
        ("rya", None, r"Unknown executor 'rya'; known: folder, local, ray\. Did you mean 'ray'\?"),
    ],
)  # fmt: skip
def test_workers_that_an_executor_cannot_have_are_refused(name: str, workers: int | None, says: str) -> None:
    with pytest.raises(BadInput, match=says):
        made(name, workers=workers)


def test_a_unit_may_read_of_its_stage_what_it_needs_alone(tmp_path: Path) -> None:
    class Careless(Cubes):
        def needs(self, unit: str) -> tuple[str, ...]:
            return ()

    with pytest.raises(KeyError, match=r"square/0 is not among these results; .* must name it in Plan\.needs"):
        Study.make(tmp_path / "s", Careless(N)).run()


def test_a_need_that_is_listed_later_is_a_mistake_of_the_plan(tmp_path: Path) -> None:
    class Backwards(Cubes):
        def needs(self, unit: str) -> tuple[str, ...]:
            return ("sum",)

    with pytest.raises(ValueError, match="A plan lists the unit 'square/0' before one that it needs"):
        Study.make(tmp_path / "s", Backwards(N)).run()
