"""A plan without a model: squares in a first stage, then their sum, and a unit that is skipped."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from chainwright._files import read_json, write_json
from chainwright._registry import register
from chainwright.studies import Job, Plan, Results, Skip, Study


@register("study", "squares")
class Squares(Plan):
    kind, again = "squares", "python squares.py {folder}"

    def __init__(self, up_to: int = 3, seconds: float = 0.0, **more: object) -> None:
        self.config = {"up_to": up_to, **more}
        self.seconds = seconds
        self.computed: list[str] = []

    def units(self, done: Results) -> list[str]:
        single = [f"square/{n}" for n in range(self.config["up_to"])]
        return [*single, "sum", "none"] if done.are_finished(single) else single

    def compute(self, job: Job) -> None:
        self.computed.append(job.unit)
        time.sleep(self.seconds)
        if job.unit == "none":
            (job.out / "half.json").write_text("half")
            raise Skip("there is none")
        if job.unit == "sum":
            parts = [read_json(path / "value.json") for unit, path in job.done.items() if unit.startswith("square")]
            write_json(job.out / "deep" / "value.json", sum(parts))
            return
        write_json(job.out / "value.json", int(job.unit.rpartition("/")[2]) ** 2)
        job.tick(1, 1)
        time.sleep(self.seconds)
        (job.out / "big.bin").write_bytes(b"0123456789" * 1000)


def files(folder: Path) -> dict[str, bytes]:
    """Return every file of a study with its content, but for the lock and the log."""
    found = {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
    return {name: content for name, content in found.items() if name not in ("study.lock", "study.log")}


if __name__ == "__main__":
    print("ready", flush=True)
    sys.stdin.readline()
    Study.make(sys.argv[1], Squares(4, float(sys.argv[2]))).run()
