"""The user's cache folder: what was fetched or converted once, and is used by every program of the user."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from chainwright._errors import BadInput
from chainwright._files import clear_disk_errors, read_json, write_json

_VARIABLE = "CHAINWRIGHT_CACHE"


def cache_folder() -> Path:
    """Return the folder of the cache: `$CHAINWRIGHT_CACHE`, else `chainwright` in the platform's folder for caches.

    The platform's folder is `$XDG_CACHE_HOME` (if absolute), on Windows `%LOCALAPPDATA%`, otherwise `~/.cache`. The
    folder need not exist.

    Raises:
        BadInput: `$CHAINWRIGHT_CACHE` names a file.
    """
    if chosen := os.environ.get(_VARIABLE):
        folder = Path(chosen).expanduser().absolute()
        if folder.exists() and not folder.is_dir():
            raise BadInput(f"{_VARIABLE} is {chosen}, which is a file; set it to a folder.")
        return folder
    platform = os.environ.get("LOCALAPPDATA" if os.name == "nt" else "XDG_CACHE_HOME", "")
    return (Path(platform) if Path(platform).is_absolute() else Path.home() / ".cache") / "chainwright"


def check_room(folder: Path, n_bytes: int, what: str) -> None:
    """Raise BadInput unless `n_bytes` more fit on the disk of a folder, which need not exist yet."""
    existing = next(place for place in (folder, *folder.parents) if place.exists())
    free = shutil.disk_usage(existing).free
    if free < n_bytes:
        raise BadInput(
            f"{what} needs {n_bytes / 1e9:.2f} GB in {folder}, where {free / 1e9:.2f} GB are free; make room there, or "
            f"set {_VARIABLE} to a folder with more."
        )


@contextmanager
def writing_cache(path: Path) -> Iterator[None]:
    """Turn a full disk or missing rights while writing `path` in the cache into one clear message.

    Raises:
        BadInput: With the system's reason and what to do.
    """
    try:
        with clear_disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield
    except BadInput as error:
        if not str(error).startswith("Cannot write"):
            raise
        raise BadInput(f"{error} {_VARIABLE} may name another folder for the cache.") from error


def sha256_of(path: Path) -> str:
    """Return a file's SHA-256 in hexadecimal digits.

    It is noted in the cache, if that can be written, with the file's size and time of change, and is computed again
    only when one of them differs.

    Raises:
        BadInput: The file cannot be read.
    """
    path = path.resolve()
    try:
        status = path.stat()
        now = {"path": str(path), "size": status.st_size, "changed": status.st_mtime_ns, "inode": status.st_ino}
        note = cache_folder() / "hashes" / f"{hashlib.sha256(str(path).encode()).hexdigest()[:16]}.json"
        known = _noted(note)
        if known is not None and {name: known.get(name) for name in now} == now:
            return str(known["sha256"])
        digest = digest_of(path)
    except OSError as error:
        raise BadInput(f"Cannot read {path}: {error.strerror or error}.") from error
    try:
        write_json(note, {**now, "sha256": digest})
    except BadInput:  # a cache that cannot be written costs time here, nothing else
        pass
    return digest


def digest_of(path: Path) -> str:
    """Return a file's SHA-256, read whole."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _noted(note: Path) -> dict[str, object] | None:
    try:
        known = read_json(note)
    except BadInput:
        return None
    return known if isinstance(known, dict) and isinstance(known.get("sha256"), str) else None
