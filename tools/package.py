"""Build the source archive and the wheel, and try the wheel as a stranger does; `make package` runs it.

1. The files that git knows are copied, so that nothing else of the checkout can get into what is built.
2. `python -m build` makes the source archive, and the wheel from it. Both are compared with git, file by file, and the
   wheel with the most bytes that it may have.
3. For each Python that is asked for, a new environment outside the checkout gets the wheel and what it depends on.
   There the commands of `SMOKE` run: version, models, a repaired answer, a diagnosis with its report.

    python tools/package.py [--out dist] [--no-smoke] [--python python3.12 ...] [--lowest]

It needs git, an index for pip, and the packages `build` and `packaging`, which the developer extra has.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import tomllib
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent
MOST_BYTES = 30_000_000
# of no use to who has the archive; everything else that git knows is in it
NOT_IN_ARCHIVE = {".gitignore"}
MADE = re.compile(r"(PKG-INFO|setup\.cfg|src/chainwright\.egg-info/.*)")
SMOKE = (
    ("--version",),
    ("models",),
    ("generate", "--task", "clf", "--hops", "4", "-n", "2", "--repair", "tcr-reasoner", "--out", "repaired.parquet"),
    ("diagnose", "--task", "parity", "--hops", "2,6", "-n", "4", "--repair", "tcr-reasoner", "--out", "study"),
)
WRITTEN = ("repaired.parquet", "study/report.html", "study/study.json")


class Fault(Exception):
    """What is built is not what it should be."""


def known_files() -> list[str]:
    """Return the files of the checkout that git knows, as they lie there now."""
    listed = subprocess.run(("git", "ls-files", "-z"), cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return sorted(name for name in listed.split("\0") if name and (ROOT / name).is_file())


def build(names: Iterable[str], work: Path, out: Path) -> tuple[Path, Path]:
    """Build from a copy of some files, and return the paths of the source archive and of the wheel."""
    copy = work / "checkout"
    for name in names:
        place = copy / name
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, place)
    made = work / "made"
    run((sys.executable, "-m", "build", "--outdir", str(made), str(copy)), is_quiet=True)
    out.mkdir(parents=True, exist_ok=True)
    archive, wheel = (Path(shutil.copy2(next(made.glob(kind)), out)) for kind in ("*.tar.gz", "*.whl"))
    return archive, wheel


def check_archive(archive: Path, names: Sequence[str]) -> None:
    """Raise Fault unless the source archive holds what git knows, and nothing else but what building writes."""
    with tarfile.open(archive) as opened:
        held = {member.name.partition("/")[2] for member in opened.getmembers() if member.isfile()}
    same(held - {name for name in held if MADE.fullmatch(name)}, set(names) - NOT_IN_ARCHIVE, archive.name)


def check_wheel(wheel: Path, names: Sequence[str]) -> None:
    """Raise Fault unless the wheel holds the package's files, unchanged, with the licences, and is small enough."""
    package = {name.removeprefix("src/"): ROOT / name for name in names if name.startswith("src/chainwright/")}
    with zipfile.ZipFile(wheel) as opened:
        held = opened.namelist()
        same({name for name in held if ".dist-info/" not in name}, set(package), wheel.name)
        for name, source in package.items():
            if opened.read(name) != source.read_bytes():
                raise Fault(f"{name} in {wheel.name} is not the file of the checkout.")
    for licence in ("LICENSE", "NOTICE"):
        if not any(name.endswith(f".dist-info/licenses/{licence}") for name in held):
            raise Fault(f"{wheel.name} has no {licence}; see license-files in pyproject.toml.")
    if (size := wheel.stat().st_size) > MOST_BYTES:
        raise Fault(f"{wheel.name} has {size / 1e6:.1f} MB; at most {MOST_BYTES / 1e6:.0f} MB are allowed.")


def same(held: set[str], wanted: set[str], where: str) -> None:
    """Raise Fault unless two sets of files are the same."""
    for said, names in (("lacks", wanted - held), ("has, unknown to git,", held - wanted)):
        if names:
            raise Fault(f"{where} {said} {len(names)} files: {', '.join(sorted(names)[:8])}")


def lowest() -> list[str]:
    """Return the oldest release that pyproject.toml allows, of every package that Chainwright needs."""
    needed = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]
    oldest = []
    for requirement in map(Requirement, needed):
        bounds = [bound.version for bound in requirement.specifier if bound.operator == ">="]
        oldest += [f"{requirement.name}=={bound}" for bound in bounds]
    return oldest


def smoke(wheel: Path, python: str, work: Path, pins: Path) -> None:
    """Install the wheel with one Python into an empty environment, and run the commands of `SMOKE` there."""
    home = work / "tried"
    run((python, "-m", "venv", str(home / "venv")))
    inside = home / "venv" / "bin"
    began = time.monotonic()
    run(
        (str(inside / "python"), "-m", "pip", "install", "--quiet", "--constraint", str(pins), str(wheel)),
        is_quiet=True,
    )
    print(f"installed in {time.monotonic() - began:.0f} s")
    run((str(inside / "python"), "-m", "pip", "check"), is_quiet=True)
    for command in SMOKE:
        print(f"$ chainwright {' '.join(command)}", flush=True)
        run((str(inside / "chainwright"), *command), folder=home, is_quiet=len(command) > 1 or command == ("models",))
    if missing := [name for name in WRITTEN if not (home / name).is_file()]:
        raise Fault(f"The smoke test wrote no {missing[0]}.")
    shutil.rmtree(home)


def run(command: Sequence[str], *, folder: Path | None = None, is_quiet: bool = False) -> None:
    """Run a command outside the checkout; its output is printed if it fails, or if it is asked for."""
    clean = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONHOME")}
    done = subprocess.run(
        command,
        cwd=folder or tempfile.gettempdir(),
        env=clean,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if done.returncode or not is_quiet:
        print(done.stdout.rstrip(), flush=True)
    if done.returncode:
        raise Fault(f"This ended with code {done.returncode}: {' '.join(command)}")


def main() -> int:
    """Build, check and try; return the exit code."""
    asked = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    asked.add_argument("--out", type=Path, default=ROOT / "dist", help="folder for archive and wheel (default: dist)")
    asked.add_argument("--python", action="append", help="a Python to try the wheel with (default: this one)")
    asked.add_argument("--no-smoke", action="store_true", help="only build and compare, install nothing")
    asked.add_argument("--lowest", action="store_true", help="with the oldest releases that pyproject.toml allows")
    options = asked.parse_args()
    with tempfile.TemporaryDirectory(prefix="chainwright-package-") as folder:
        work, names = Path(folder), known_files()
        pins = ROOT / "constraints.txt"
        if options.lowest:
            pins = work / "lowest.txt"
            pins.write_text("\n".join(lowest()) + "\n", encoding="utf-8")
        try:
            archive, wheel = build(names, work, options.out)
            check_archive(archive, names)
            check_wheel(wheel, names)
            for made in (archive, wheel):
                print(f"{made}: {made.stat().st_size / 1e6:.1f} MB")
            for python in [] if options.no_smoke else options.python or [sys.executable]:
                print(f"\nwith {python}", flush=True)
                smoke(wheel, python, work, pins)
        except Fault as fault:
            print(f"error: {fault}", file=sys.stderr)
            return 1
    print("the package is whole")
    return 0


if __name__ == "__main__":
    sys.exit(main())
