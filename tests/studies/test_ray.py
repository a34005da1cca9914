"""Units on Ray: two actors, killed while they compute, end with the bytes of a local run."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from chainwright._errors import BadInput
from chainwright.models import load_model
from chainwright.studies import Study, Watch
from chainwright.studies.diagnosis import run_study
from chainwright.studies.executors import made
from chainwright.studies.executors.on_ray import Worker
from study_nursery import SMALL
from worker_plans import Cubes, Failing, OtherWeights, Unknown, files

ray: Any = pytest.importorskip("ray")
N = 4


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    """Ray on this machine, with room for two actors; it starts once, which takes seconds."""
    env = {"PYTHONPATH": os.pathsep.join(sys.path), "CUBES_SECONDS": "0.3", "OMP_NUM_THREADS": "1"}
    options = {"include_dashboard": False, "log_to_driver": False, "logging_level": "ERROR"}
    ray.init(num_cpus=2, num_gpus=0, runtime_env={"env_vars": env}, object_store_memory=2**27, **options)
    yield
    ray.shutdown()


def actors_of(folder: Path) -> list[int]:
    """Return the process ids of the actors that have computed units, the latest first."""
    lines = [json.loads(line) for line in (folder / "study.log").read_text().splitlines()]
    return [int(line["worker"].rpartition("-")[2]) for line in reversed(lines) if "worker" in line]


def test_two_actors_that_are_killed_end_with_the_same_bytes(tmp_path: Path) -> None:
    Study.make(tmp_path / "whole", Cubes(N)).run()
    killed: set[int] = set()

    class Kill(Watch):
        """Kills the actor that has just finished a unit, after it was given the next one."""

        def finished(self, title: str, seconds: float, skipped: str | None, left: float | None) -> None:
            pid = actors_of(tmp_path / "s")[0]
            if len(killed) < 2 and pid not in killed:
                killed.add(pid)
                threading.Timer(0.2, os.kill, (pid, signal.SIGKILL)).start()

    study = Study.make(tmp_path / "s", Cubes(N))
    study.run(Kill(), executor=made("ray", workers=2))
    assert files(tmp_path / "s") == files(tmp_path / "whole")
    assert len(killed) == 2 and len(set(actors_of(tmp_path / "s"))) > 2, "both were killed, and started again"


def test_an_interrupted_run_is_resumed_elsewhere(tmp_path: Path) -> None:
    class Stop(Watch):
        def finished(self, title: str, seconds: float, skipped: str | None, left: float | None) -> None:
            raise KeyboardInterrupt

    Study.make(tmp_path / "whole", Cubes(N)).run()
    study = Study.make(tmp_path / "s", Cubes(N))
    with pytest.raises(KeyboardInterrupt):
        study.run(Stop(), executor=made("ray", workers=2))
    assert study.status().count("done") == 1 and study.status().holder is None
    study.run()
    assert files(tmp_path / "s") == files(tmp_path / "whole")


def test_a_diagnosis_on_two_actors_is_that_of_one_process(tmp_path: Path) -> None:
    model, tokenizer = load_model(SMALL.model, device="cpu")
    run_study(model, tokenizer, SMALL, tmp_path / "whole", progress=False)
    executor = made("ray", workers=2, device="cpu")
    run_study(model, tokenizer, SMALL, tmp_path / "s", progress=False, executor=executor)
    assert files(tmp_path / "s") == files(tmp_path / "whole") and len(set(actors_of(tmp_path / "s"))) == 2


def test_a_mistake_on_an_actor_is_the_one_sentence_that_it_is_elsewhere_and_loses_nothing(tmp_path: Path) -> None:
    for i, (kind, says) in enumerate(
        {
            Failing: r"^there is no such thing$",
            OtherWeights: r'^The worker \(\S+\) does not fit .*: model\.fingerprint is "0" there and "1" here\.',
            Unknown: rf"^resume it with: chainwright study run .*{tmp_path.name}/2$",
        }.items()
    ):
        with pytest.raises(BadInput, match=says):
            Study.make(tmp_path / str(i), kind(N)).run(executor=made("ray", workers=1))
    assert Study.open(tmp_path / "0").status().count("done") > 0
    Study.make(tmp_path / "0", Cubes(N)).run()


def test_more_workers_than_the_cluster_has_room_for_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"is 3, which needs as many CPUs, and Ray has 2; ask for fewer workers, or"):
        Study.make(tmp_path / "s", Cubes(N)).run(executor=made("ray", workers=3))
    with pytest.raises(BadInput, match=r"is 1, which needs as many GPUs, and Ray has 0"):
        Study.make(tmp_path / "s", Cubes(N)).run(executor=made("ray", workers=1, device="cuda"))


def test_a_worker_that_does_not_see_the_folder_says_so(tmp_path: Path) -> None:
    worker = Worker(str(tmp_path), str(tmp_path / "s"), Cubes, None, False)
    with pytest.raises(BadInput, match=r"does not see .*s; put the study on a file system that all machines share"):
        worker.load()
