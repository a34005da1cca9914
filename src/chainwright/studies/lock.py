"""One process at a time works on a study; everybody may read it.

The lock is the operating system's (`flock`), so it ends with the process that holds it, however that ends. The file
`study.lock` says who took it last; that counts only while the lock is held.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from chainwright._errors import BadInput
from chainwright._files import clear_disk_errors

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

LOCK = "study.lock"
_TRIES, _PAUSE = 5, 0.05  # a reader that looks whether the lock is held has it for an instant


class Holder(NamedTuple):
    """Who works on a study: process id, machine, and since when (ISO 8601, local time)."""

    pid: int
    host: str
    since: str

    def __str__(self) -> str:
        """Return a phrase such as "process 12 on host, since 2026-01-01T10:00:00+00:00"."""
        return f"process {self.pid} on {self.host}, since {self.since}"


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a study's lock.

    Raises:
        BadInput: Another process holds it, the file cannot be written, or the system has no such locks.
    """
    if fcntl is None:
        raise BadInput("Studies need file locks (flock), which this system lacks; use Linux or macOS.")
    with clear_disk_errors(folder / LOCK):
        descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        if not _take(descriptor):
            raise BadInput(
                f"{folder} is being worked on by {_read(descriptor) or 'another process'}; wait until it is finished, "
                "or choose another folder."
            )
        with clear_disk_errors(folder / LOCK):
            _write(descriptor)
        yield
    finally:
        os.close(descriptor)


def holder(folder: Path) -> Holder | None:
    """Return who works on a study at this moment, None if nobody does. Needs no right to write."""
    try:
        descriptor = os.open(folder / LOCK, os.O_RDONLY)
    except OSError:
        return None
    try:
        if fcntl is None or _try(descriptor, fcntl.LOCK_SH):
            return None
        return _read(descriptor) or Holder(0, "an unknown machine", "an unknown time")
    finally:
        os.close(descriptor)


def _take(descriptor: int) -> bool:
    for _ in range(_TRIES):
        if _try(descriptor, fcntl.LOCK_EX):
            return True
        time.sleep(_PAUSE)
    return False


def _try(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _write(descriptor: int) -> None:
    now = datetime.now().astimezone().isoformat(timespec="seconds")
    text = json.dumps(Holder(os.getpid(), socket.gethostname(), now)._asdict()) + "\n"
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, text.encode(), 0)


def _read(descriptor: int) -> Holder | None:
    try:
        return Holder(**json.loads(os.pread(descriptor, 4096, 0)))
    except (ValueError, TypeError):  # taken, but not yet written
        return None
