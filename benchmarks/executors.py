"""One study in three ways: one process, two workers on its folder, and two Ray actors; the same bytes, and the times.

Every way runs one diagnosis of the bundled reasoner on one thread per process, in processes of its own. The time of a
way is from its first command to its last, so it includes starting Python, loading the model and starting Ray; the time
of the units alone is added up from the study's log, over all processes. Two processes on two busy cores get less than
two cores, so the speed of the machine is shown by the units: where they take longer in two processes, the cores were
shared with something else.
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-n", type=int, default=20, help="problems per task and hop count")
    parser.add_argument("--contexts", type=int, default=8, help="contexts per set when heads are located")
    parser.add_argument("--folder", type=Path, default=Path("runs/executors"))
    parser.add_argument("--ways", help="Ways, separated by commas (default: all).")
    options = parser.parse_args()
    shutil.rmtree(options.folder, ignore_errors=True)
    options.folder.mkdir(parents=True)
    file = options.folder / "study.toml"
    file.write_text(FILE.format(n=options.n, n_contexts=options.contexts))
    print(f"{'way':28}{'seconds':>9}{'x one process':>15}{'seconds of units':>18}  bytes")
    first: tuple[float, dict[str, bytes]] | None = None
    for way in options.ways.split(",") if options.ways else WAYS:
        folder, start = options.folder / way.replace(" ", "-"), time.perf_counter()
        WAYS[way](file, folder)
        seconds, files = time.perf_counter() - start, content(folder)
        first = first or (seconds, files)
        same = f"{len(files)} files, {'the same' if files == first[1] else 'NOT the same'}"
        print(f"{way:28}{seconds:9.1f}{first[0] / seconds:15.2f}{seconds_of_units(folder):18.1f}  {same}", flush=True)


if __name__ == "__main__":
    main()
