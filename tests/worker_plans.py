"""A plan without a model for several workers, and a script that is one of them.

python worker_plans.py FOLDER LEASE
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from chainwright._errors import BadInput
from chainwright._files import read_json, write_json
from chainwright._registry import register
from chainwright.studies import Job, Plan, Results, Skip, manifest
from chainwright.studies.manifest import Manifest
from chainwright.studies.workers import work


@register("study", "cubes")
class Cubes(Plan):
    """Cubes, each half of which needs the other; a unit that is skipped; their sum in a later stage, written deep."""

    kind, again = "cubes", "chainwright study run {folder}"

    def __init__(self, up_to: int = 6, **source: str) -> None:
        self.config, self.source = {"up_to": up_to}, source or {"model": "none", "fingerprint": "0"}
        self.seconds = float(os.environ.get("CUBES_SECONDS", "0"))
        self.computed: list[str] = []

    @classmethod
    def resumed(cls, known: Manifest, *, device: str | None = None, trust_remote_code: bool = False) -> Cubes:
        changed = os.environ.get("CUBES_FINGERPRINT")
        return cls(known.config["up_to"], **({**known.model, "fingerprint": changed} if changed else known.model))

    def units(self, done: Results) -> list[str]:
        single = [f"{half}/{n}" for n in range(self.config["up_to"]) for half in ("square", "cube")]
        return [*single, "none", "sum"] if done.are_finished(single) else single

    def needs(self, unit: str) -> Sequence[str]:
        half, _, n = unit.partition("/")
        return [f"square/{n}"] if half == "cube" else []

    def compute(self, job: Job) -> None:
        self.computed.append(job.unit)
        half, _, n = job.unit.partition("/")
        time.sleep(self.seconds)
        if job.unit == "none":
            (job.out / "half").mkdir()
            (job.out / "half" / "part.json").write_text("part")
            raise Skip("there is none")
        if job.unit == "sum":
            parts = {unit: read_json(path / "value.json") for unit, path in job.done.items()}
            write_json(job.out / "deep" / "value.json", parts)  # with their order
            return
        value = int(n) ** 2 if half == "square" else int(n) * read_json(job.done[f"square/{n}"] / "value.json")
        write_json(job.out / "value.json", value)
        job.tick(1, 2)
        time.sleep(self.seconds)
        (job.out / "big.bin").write_bytes(b"0123456789" * 1000)

    def title(self, unit: str) -> str:
        return f"unit {unit}"


class Failing(Cubes):
    """A unit cannot be computed."""

    def compute(self, job: Job) -> None:
        if job.unit == "square/2":
            raise BadInput("there is no such thing")
        super().compute(job)


class OtherWeights(Cubes):
    """The actors load other weights than the driver."""

    @classmethod
    def resumed(cls, known: Manifest, *, device: str | None = None, trust_remote_code: bool = False) -> Cubes:
        return cls(known.config["up_to"], **{**known.model, "fingerprint": "1"})


class Unknown(Cubes):
    """Cannot be made from its folder."""

    @classmethod
    def resumed(cls, known: Manifest, *, device: str | None = None, trust_remote_code: bool = False) -> Cubes:
        raise BadInput(f"resume it with: {known.again}")


def files(folder: Path) -> dict[str, bytes]:
    """Return every file and every empty folder of a study with its content, but for the lock and the log."""
    found = {
        path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else b"folder"
        for path in sorted(folder.rglob("*"))
        if path.is_file() or not any(path.iterdir())
    }
    return {name: content for name, content in found.items() if name not in ("study.lock", "study.log")}


def main() -> None:
    """Be one worker: `FOLDER LEASE`."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background processes ignore it
    folder, lease = Path(sys.argv[1]), float(sys.argv[2])
    plan = Cubes.resumed(manifest.read(folder))
    print("ready", flush=True)
    print(*work(folder, plan, lease=lease), flush=True)


def nursery() -> None:
    """Fork a worker for each line `FOLDER LEASE` of the standard input, and print its process id."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for them
    for line in sys.stdin:
        folder, lease = line.split()
        child = os.fork()
        if child == 0:
            work(Path(folder), Cubes.resumed(manifest.read(Path(folder))), lease=float(lease))
            os._exit(0)
        print(child, flush=True)
