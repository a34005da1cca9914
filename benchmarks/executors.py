"""One study in three ways: one process, two workers on its folder, and two Ray actors; the same bytes, and the times.

Every way runs one diagnosis of the bundled reasoner on one thread per process, in processes of its own. The time of a
way is from its first command to the end of its last, so it includes starting Python, loading the model and starting
Ray; the time of the units alone is added up from the study's log, over all processes. The ways take turns, and the
fastest run of each counts. Where the units take longer in two processes than in one, the two did not get a core each.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

FILE = """
model = "reasoner"
hops = {{ clf = [8, 10, 13], parity = [10, 12, 13], moas = [8, 12] }}
n = {n}
n_contexts = {n_contexts}
max_types = 2
"""


def chainwright(*arguments: str | Path) -> subprocess.Popen[bytes]:
    """Start a command on one thread, on the CPU."""
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "chainwright", *map(str, arguments), "--device", "cpu", "-q"]
    return subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL)


def done(*processes: subprocess.Popen[bytes]) -> None:
    if any([process.wait() for process in processes]):
        raise SystemExit("A command has failed; see above.")


def local(file: Path, folder: Path) -> None:
    done(chainwright("study", "run", file, "-o", folder))


def workers(file: Path, folder: Path) -> None:
    done(chainwright("study", "run", file, "-o", folder, "--executor", "folder"))
    done(*(chainwright("study", "work", folder) for _ in range(2)))


def on_ray(file: Path, folder: Path) -> None:
    done(chainwright("study", "run", file, "-o", folder, "--executor", "ray", "--workers", "2"))


WAYS: dict[str, Callable[[Path, Path], None]] = {
    "one process": local, "two workers on the folder": workers, "two Ray actors": on_ray,
}  # fmt: skip


def content(folder: Path) -> dict[str, bytes]:
    """Return every file of a study but its lock and its log."""
    paths = (path for path in sorted(folder.rglob("*")) if path.is_file())
    found = {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}
    return {name: text for name, text in found.items() if name not in ("study.lock", "study.log")}


def seconds_of_units(folder: Path) -> float:
    events = [json.loads(line) for line in (folder / "study.log").read_text().splitlines()]
    return sum(event["seconds"] for event in events if event["event"] == "unit")


class Timed(NamedTuple):
    seconds: float
    of_units: float
    files: dict[str, bytes]


def seconds_of(run: Timed) -> float:
    return run.seconds


def timed(way: str, file: Path, folder: Path) -> Timed:
    start = time.perf_counter()
    WAYS[way](file, folder)
    return Timed(time.perf_counter() - start, seconds_of_units(folder), content(folder))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-n", type=int, default=20, help="problems per task and hop count")
    parser.add_argument("--contexts", type=int, default=8, help="contexts per set when heads are located")
    parser.add_argument("--folder", type=Path, default=Path("runs/executors"))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--ways", help="Ways, separated by commas (default: all).")
    options = parser.parse_args()
    shutil.rmtree(options.folder, ignore_errors=True)
    options.folder.mkdir(parents=True)
    file = options.folder / "study.toml"
    file.write_text(FILE.format(n=options.n, n_contexts=options.contexts))
    ways = options.ways.split(",") if options.ways else list(WAYS)
    runs: dict[str, list[Timed]] = {way: [] for way in ways}
    for number in range(options.repeats):
        for way in ways:
            runs[way].append(timed(way, file, options.folder / f"{way.replace(' ', '-')}-{number}"))
    print(f"{'way':28}{'seconds':>9}{'x one process':>15}{'seconds of units':>18}  bytes")
    first = min(runs[ways[0]], key=seconds_of)
    for way in ways:
        best = min(runs[way], key=seconds_of)
        differing = sum(run.files != first.files for run in runs[way])
        same = f"{len(best.files)} files, the same" if not differing else f"NOT the same in {differing} runs"
        print(f"{way:28}{best.seconds:9.1f}{first.seconds / best.seconds:15.2f}{best.of_units:18.1f}  {same}")


if __name__ == "__main__":
    main()
