"""One process at a time computes a study, or else any number of workers (`workers`); any number may read it.

The lock is the operating system's, on `study.lock` (`filelock`: Linux, macOS, Windows), so it ends with the process
that holds it, however that ends. `study.holder` names that process; it is removed with the lock, and after a kill it
means nothing, since the lock is free. It is a separate file because Windows does not let a locked one be read.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from filelock import FileLock, Timeout

from chainwright._errors import BadInput
from chainwright._files import clear_disk_errors
from chainwright.studies import crew

LOCK, HOLDER = "study.lock", "study.holder"
_PATIENCE, _PAUSE = 0.25, 0.05  # seconds; a reader that asks whether the lock is held has it for an instant


class Holder(NamedTuple):
    """The process that computes a study: its id, its machine, and since when (ISO 8601, local time)."""

    pid: int
    host: str
    since: str

    def __str__(self) -> str:
        """Return a phrase such as "process 12 on host, since 2026-01-01T10:00:00+00:00"."""
        return f"process {self.pid} on {self.host}, since {self.since}"


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a study's lock while the block runs; what workers that were killed have left is removed.

    Raises:
        BadInput: Another process holds it, workers compute the study, or the file cannot be written.
    """
    lock = FileLock(folder / LOCK)
    with clear_disk_errors(folder / LOCK):
        try:
            lock.acquire(timeout=_PATIENCE, poll_interval=_PAUSE)
        except Timeout as error:
            raise BadInput(
                f"{folder} is being computed by {_read(folder) or 'another process'}; wait until it is finished, or "
                "choose another folder."
            ) from error
    try:
        if alive := crew.living(folder):
            more = f" and {len(alive) - 1} more" if len(alive) > 1 else ""
            raise BadInput(
                f"{folder} is being computed by workers ({alive[0]}{more}); stop them, or add another with "
                f"`chainwright study work {folder}`."
            )
        crew.clear(folder)
        now = datetime.now().astimezone().isoformat(timespec="seconds")
        with clear_disk_errors(folder / HOLDER):
            (folder / HOLDER).write_text(json.dumps(Holder(os.getpid(), socket.gethostname(), now)._asdict()) + "\n")
        yield
    finally:
        with suppress(OSError):
            (folder / HOLDER).unlink()
        lock.release()


def holder(folder: Path) -> Holder | None:
    """Return which process computes a study at this moment; None if none does.

    A reader without the right to write cannot try the lock; it gets what `study.holder` says, which after a kill names
    a process that has ended.
    """
    if not (folder / LOCK).exists():
        return None
    try:
        with FileLock(folder / LOCK).acquire(timeout=_PATIENCE, poll_interval=_PAUSE):
            return None
    except Timeout:
        return _read(folder) or Holder(0, "an unknown machine", "an unknown time")
    except OSError:
        return _read(folder)


def _read(folder: Path) -> Holder | None:
    try:
        return Holder(**json.loads((folder / HOLDER).read_text()))
    except (OSError, ValueError, TypeError):  # locked, but not yet written
        return None
