"""A finished unit: a folder with its files and a record of them, which is checked whenever it is read.

The record, `unit.json`, names each file with its size and SHA-256, the study that the unit belongs to, and why it was
skipped, if it was. The folder appears in one step, so that a unit is either finished or not begun.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from chainwright._config import Config
from chainwright._errors import BadInput
from chainwright._files import atomic_folder, read_json, write_json

RECORD = "unit.json"


class FileEntry(Config):
    """Size in bytes and SHA-256 of one file of a unit."""

    size: int
    sha256: str


class Record(Config):
    """What `unit.json` says.

    Attributes:
        study: `study_key` of the study that the unit belongs to.
        skipped: Why nothing was computed; None if it was.
        files: The unit's files by their path within its folder.
    """

    study: str
    skipped: str | None
    files: Mapping[str, FileEntry]


class Checked(NamedTuple):
    """A unit whose files are as they were written.

    Attributes:
        skipped: Why nothing was computed; None if it was.
        sha256: Of `unit.json` itself.
    """

    skipped: str | None
    sha256: str


class Damage(BadInput):
    """A finished unit is not as it was written; the message is a clause that names the file."""


def study_key(kind: str, config: Mapping[str, Any], source: Mapping[str, str]) -> str:
    """Return 16 hexadecimal digits for what the units of a study depend on."""
    text = json.dumps([kind, config, source], sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@contextmanager
def writing(folder: Path, key: str) -> Iterator[Path]:
    """Yield an empty draft that becomes a finished unit's folder when the block ends without an error."""
    with atomic_folder(folder) as draft:
        yield draft
        write_record(draft, key)


def write_skipped(folder: Path, key: str, reason: str) -> None:
    """Write the folder of a unit that was not computed, and why."""
    with atomic_folder(folder) as draft:
        write_record(draft, key, reason)


def write_record(folder: Path, key: str, skipped: str | None = None) -> None:
    """Write `unit.json` for the files that are in a folder."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / RECORD)
    files = {
        path.relative_to(folder).as_posix(): FileEntry(size=path.stat().st_size, sha256=sha256_of(path))
        for path in paths
    }
    write_json(folder / RECORD, Record(study=key, skipped=skipped, files=files).record())


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file as hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(2**20):
            digest.update(part)
    return digest.hexdigest()


def check(folder: Path, key: str, expected: str | None = None) -> Checked | None:
    """Return a unit's record after comparing every file with it; None if the unit is not there.

    Args:
        folder: The unit's folder.
        key: `study_key` of the study that it must belong to.
        expected: SHA-256 that its record must have, where the study is finished.

    Raises:
        Damage: A file is missing, cut short or changed, or the record is.
    """
    if not folder.exists() and expected is None:
        return None
    if not (folder / RECORD).is_file():
        raise Damage(f"{folder / RECORD} is missing")
    record = _read(folder / RECORD)
    if record.study != key:
        raise Damage(f"{folder} was made with another config or model than study.json names")
    for name, entry in record.files.items():
        _check_file(folder / name, entry.size, entry.sha256)
    sha256 = sha256_of(folder / RECORD)
    if expected not in (None, sha256):
        raise Damage(f"{folder / RECORD} was changed after the study was finished")
    return Checked(record.skipped, sha256)


def _check_file(path: Path, size: int, sha256: str) -> None:
    if not path.is_file():
        raise Damage(f"{path} is missing")
    got = path.stat().st_size
    if got < size:
        raise Damage(f"{path} was cut short: {got} of {size} bytes are there")
    try:
        if got != size or sha256_of(path) != sha256:
            raise Damage(f"{path} was changed after it was written")
    except OSError as error:
        raise Damage(f"{path} cannot be read: {error.strerror or error}") from error


def _read(path: Path) -> Record:
    try:
        found = read_json(path)
    except BadInput as error:
        raise Damage(str(error).rstrip(".")) from error
    try:
        return Record.from_record(found)
    except BadInput as error:
        raise Damage(f"{path} was edited or damaged: {str(error).rstrip('.')}") from error
