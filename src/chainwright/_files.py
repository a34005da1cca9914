"""Writing so that a kill, a full disk or an error leaves either the old content or the new, never a part.

1. A file or a folder of files is written beside its place, under a hidden name that ends in ".draft".
2. It is brought to the disk, and only then takes its place in one step.
3. A folder that is replaced is put aside under a hidden name first, since no step replaces a whole folder;
   readers look there too (`current_folder`), so that a kill between both steps loses nothing.
4. The system's errors are raised as one clear sentence that names the file.

Only a kill leaves drafts behind; `remove_leftovers` clears them away.
"""

from __future__ import annotations

import errno
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from chainwright._errors import BadInput

_DRAFT, _OLD = ".draft", ".old"
_HIDDEN = re.compile(rf"\.(?P<name>.+)\.\d+-[0-9a-f]{{8}}({re.escape(_DRAFT)}|{re.escape(_OLD)})")
# Errors that a user can do something about: the path is wrong, or there is no room or no permission.
_FAULTS_OF_PLACE = {
    errno.EACCES,
    errno.EDQUOT,
    errno.EEXIST,
    errno.EFBIG,
    errno.EIO,
    errno.EISDIR,
    errno.ELOOP,
    errno.ENAMETOOLONG,
    errno.ENOENT,
    errno.ENOSPC,
    errno.ENOTDIR,
    errno.ENOTEMPTY,
    errno.EPERM,
    errno.EROFS,
}


@contextmanager
def clear_disk_errors(path: Path) -> Iterator[None]:
    """Turn a full disk, missing rights or an impossible place while writing `path` into one clear sentence.

    Raises:
        BadInput: With the system's reason and what to do.
    """
    try:
        yield
    except OSError as error:
        # PyArrow gives some of its own errors no number
        if error.errno is not None and error.errno not in _FAULTS_OF_PLACE:
            raise
        raise BadInput(_cannot_write(path, error.strerror or str(error))) from error
    except SafetensorError as error:
        found = re.search(r"I/O error: (.*?) \(os error \d+\)", str(error))
        if found is None:
            raise
        raise BadInput(_cannot_write(path, found[1])) from error


def _cannot_write(path: Path, reason: str) -> str:
    return (
        f"Cannot write {path}: {reason}; nothing was changed there. "
        "Check that its folder exists, may be written to and has free space, then write again."
    )


@contextmanager
def atomic_file(path: Path, *, make_parents: bool = True) -> Iterator[Path]:
    """Yield a draft path beside `path` that takes its place when the block ends without an error.

    Args:
        path: The file to write; one that is there is replaced.
        make_parents: Make the folders above it if they are missing.

    Raises:
        BadInput: It cannot be written.
    """
    with clear_disk_errors(path):
        if make_parents:
            path.parent.mkdir(parents=True, exist_ok=True)
        draft = _hidden(path)
        try:
            draft.touch(exist_ok=False)
            mode = draft.stat().st_mode
            yield draft
            _finish(draft, mode)
            os.replace(draft, path)
        finally:
            with suppress(OSError):  # it is gone already, or never was
                draft.unlink()
        _sync_folder(path.parent)


@contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """Yield a draft folder beside `folder` that takes its place when the block ends without an error.

    Raises:
        BadInput: It cannot be written.
    """
    with clear_disk_errors(folder):
        draft = draft_of(folder)
        try:
            yield draft
            seal(draft)
            put_in_place(draft, folder)
        finally:
            shutil.rmtree(draft, ignore_errors=True)


def draft_of(folder: Path) -> Path:
    """Return a new empty folder beside `folder`, under a hidden name, which `put_in_place` can give its name."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = _hidden(folder)
    draft.mkdir()
    return draft


def seal(draft: Path) -> None:
    """Give the files in a folder the rights that new files usually have, and bring all of it to the disk."""
    mode = draft.stat().st_mode & 0o666
    for path in sorted(draft.rglob("*"), reverse=True):  # what is in a folder before the folder
        if path.is_dir():
            _sync_folder(path)
        else:
            _finish(path, mode)
    _sync_folder(draft)


def put_in_place(draft: Path, folder: Path) -> None:
    """Give a sealed draft its place in one step; a folder that is there is replaced."""
    _swap(draft, folder)
    _sync_folder(folder.parent)


def put_once(draft: Path, folder: Path) -> None:
    """Give a sealed draft its place in one step, unless something is there: the file system decides who is first.

    Raises:
        FileNotFoundError: The draft is no longer there.
        FileExistsError: Something is in its place already.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.rename(draft, folder)  # a folder never takes the place of one with files in it
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise FileExistsError(error.errno, f"{folder} is there already") from error
        raise
    _sync_folder(folder.parent)


def _hidden(path: Path, ending: str = _DRAFT) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}{ending}")


def _swap(draft: Path, folder: Path) -> None:
    aside = _hidden(folder, _OLD)
    if folder.exists():
        os.replace(folder, aside)
    try:
        os.replace(draft, folder)
    except OSError:
        if aside.exists():
            os.replace(aside, folder)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def _finish(draft: Path, mode: int) -> None:
    """Give a file the rights that new files usually have (some writers do not) and bring it to the disk."""
    draft.chmod(mode)
    with draft.open("rb+") as written:
        os.fsync(written.fileno())


def _sync_folder(folder: Path) -> None:
    """Wait until a folder's list of files is on the disk, where the system can do that (some cannot)."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def remove_folder(folder: Path) -> None:
    """Remove a folder in one step, if it is there: it gets a draft's name, and then goes.

    Raises:
        BadInput: It cannot be removed.
    """
    with clear_disk_errors(folder):
        if folder.exists():
            draft = _hidden(folder)
            os.replace(folder, draft)
            shutil.rmtree(draft)


def is_draft(path: Path, name: str) -> bool:
    """Return whether `path` is what a killed run left while writing a file or folder of that name."""
    found = _HIDDEN.fullmatch(path.name)
    return found is not None and found["name"] == name and path.name.endswith(_DRAFT)


def current_folder(folder: Path) -> Path:
    """Return where the content of `folder` is: there, or put aside by a run killed while replacing it."""
    if folder.exists() or not folder.parent.is_dir():
        return folder
    aside = [path for path in folder.parent.iterdir() if _place_of(path) == folder]
    return max(aside, key=lambda path: path.stat().st_ctime, default=folder)


def _place_of(path: Path) -> Path | None:
    """Return where a folder that was put aside belongs; None for anything else."""
    found = _HIDDEN.fullmatch(path.name) if path.name.endswith(_OLD) else None
    return None if found is None else path.with_name(found["name"])


def remove_leftovers(folder: Path) -> None:
    """Remove what killed runs left under `folder`, and put back the folders that they had put aside."""
    hidden = [path for path in folder.rglob(".*") if _HIDDEN.fullmatch(path.name)]
    for place in {place for path in hidden if (place := _place_of(path)) is not None}:
        if (aside := current_folder(place)) != place:
            os.replace(aside, place)
    for path in hidden:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically.

    Raises:
        BadInput: It cannot be written.
    """
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    with atomic_file(path) as draft:
        draft.write_text(text + "\n", encoding="utf-8")


def slug(name: str) -> str:
    """Return a name as part of a path: small letters and digits, with hyphens between."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def read_json(path: Path) -> Any:
    """Return the content of a JSON file.

    Raises:
        BadInput: It does not exist, cannot be read, or is no JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise BadInput(f"There is no file {path}.") from error
    except OSError as error:
        raise BadInput(f"Cannot read {path}: {error.strerror or error}.") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise BadInput(f"{path} is no readable JSON: {error}.") from error
