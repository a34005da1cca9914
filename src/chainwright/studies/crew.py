"""Who works on a study: each worker has a file in `.workers`, which it writes again every few seconds.

The file says what the worker does, and counts its heartbeats. That it changes is the sign of life; what time it says is
shown to readers, and compared with nothing. A worker's log is a file of its own beside it, since lines that several
machines add to one file may be lost; at the end of the study they are added to `study.log`.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
import threading
import time
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

from chainwright._errors import BadInput
from chainwright._files import clear_disk_errors

PLACE = ".workers"
LEASE = 60.0
"""Seconds of silence after which the unit of a worker is given to another, unless the worker is started with others."""
_BEATS_PER_LEASE = 6


class WorkerState(NamedTuple):
    """What a worker says of itself.

    Attributes:
        worker: Its name, "<host>-<process id>-<random>".
        pid: Its process id.
        host: Its machine.
        since: When it began (ISO 8601, by its own clock).
        seen: When it last gave a sign of life, by its own clock.
        unit: The unit that it computes; empty while it waits.
        n_done: How many units it has finished.
        lease: Seconds of silence after which its unit is given to another.
        beat: Number of this sign of life.
    """

    worker: str
    pid: int
    host: str
    since: str
    seen: str
    unit: str
    n_done: int
    lease: float
    beat: int

    def __str__(self) -> str:
        """Return a phrase such as "process 12 on host, since 2026-01-01T10:00:00+00:00"."""
        return f"process {self.pid} on {self.host}, since {self.since}"


class Heart:
    """Writes this worker's file every few seconds, from a thread of its own; used in a `with` block."""

    def __init__(self, folder: Path, lease: float):
        """Take the study's folder and the seconds of silence after which others may take this worker's unit.

        Raises:
            BadInput: The lease is below a second.
        """
        if lease < 1:
            raise BadInput(f"A lease must be at least 1 second, and longer than the folder may hang; got {lease:g}.")
        host, pid = socket.gethostname(), os.getpid()
        self.worker = f"{host}-{pid}-{secrets.token_hex(4)}"
        self.folder, self.lease = folder, lease
        self.state = WorkerState(self.worker, pid, host, _now(), _now(), "", 0, lease, 0)
        self._stop, self._writing = threading.Event(), threading.Lock()
        self._thread = threading.Thread(target=self._beat_on, name="heartbeat", daemon=True)

    @property
    def path(self) -> Path:
        """Return this worker's file."""
        return _file(self.folder, self.worker)

    @property
    def log(self) -> Path:
        """Return this worker's log."""
        return self.path.with_suffix(".log")

    def __enter__(self) -> Self:
        with clear_disk_errors(self.path):
            self.path.parent.mkdir(exist_ok=True)
            self._write()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        with suppress(OSError):
            self.path.unlink()

    def show(self, unit: str, n_done: int) -> None:
        """Say which unit is computed now, and how many are finished."""
        self._write(unit=unit, n_done=n_done)

    def _beat_on(self) -> None:
        while not self._stop.wait(self.lease / _BEATS_PER_LEASE):
            self._write()

    def _write(self, **changes: Any) -> None:
        with self._writing:
            self.state = self.state._replace(seen=_now(), beat=self.state.beat + 1, **changes)
            # A beat that cannot be written is one that others do not see: they take the unit, and nothing is lost.
            with suppress(OSError):
                self.path.write_text(json.dumps(self.state._asdict()) + "\n")


def _now() -> str:
    return datetime.now().astimezone().isoformat(timespec="seconds")


def _file(folder: Path, worker: str) -> Path:
    return folder / PLACE / f"{worker}.json"


def beat_of(folder: Path, worker: str) -> bytes | None:
    """Return what a worker's file holds at this moment; None if there is none."""
    try:
        return _file(folder, worker).read_bytes()
    except OSError:
        return None


def workers_of(folder: Path) -> list[WorkerState]:
    """Return what each worker last said of itself; one that was killed is among them until its file is removed."""
    found = []
    for path in sorted((folder / PLACE).glob("*.json")):
        with suppress(OSError, ValueError, TypeError):
            found.append(WorkerState(**json.loads(path.read_text())))
    return found


def logs_of(folder: Path) -> list[Path]:
    """Return the logs of all workers that are not yet a part of the study's."""
    return sorted((folder / PLACE).glob("*.log"))


def living(folder: Path, pause: float = 0.1) -> list[WorkerState]:
    """Return the workers that give a sign of life within their lease; returns as soon as one does.

    Where no worker has left a file, no time passes.
    """
    before = {state.worker: state for state in workers_of(folder)}
    end = time.monotonic() + max((state.lease for state in before.values()), default=0.0)
    while before and time.monotonic() < end:
        time.sleep(pause)
        if alive := [state for state in workers_of(folder) if state != before.get(state.worker)]:
            return alive
    return []


def clear(folder: Path) -> None:
    """Remove what workers left behind."""
    shutil.rmtree(folder / PLACE, ignore_errors=True)
