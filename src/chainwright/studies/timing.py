"""When each unit was computed: `study.log`, one JSON object per line.

It is not part of a study's result: it differs from run to run and may be deleted.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from chainwright._files import clear_disk_errors
from chainwright.studies.crew import logs_of

LOG = "study.log"


def note(folder: Path, event: str, *, log: Path | None = None, **values: Any) -> None:
    """Add a line to the log, or to the log of one worker.

    Raises:
        BadInput: It cannot be written.
    """
    at = datetime.now().astimezone().isoformat(timespec="seconds")
    _add(log or folder / LOG, json.dumps({"event": event, "at": at, **values}, ensure_ascii=False).encode() + b"\n")


def _add(path: Path, lines: bytes) -> None:
    with clear_disk_errors(path), path.open("ab+") as log:
        if log.tell():
            log.seek(-1, 2)
        cut = b"\n" if log.read(1) not in (b"", b"\n") else b""  # a kill while the last line was written
        log.write(cut + lines)


def join(folder: Path, log: Path) -> None:
    """Add the log of a worker to the study's; one that is gone was added by another worker.

    Raises:
        BadInput: The study's log cannot be written.
    """
    with suppress(FileNotFoundError):
        _add(folder / LOG, log.read_bytes())
        log.unlink()


def seconds_by_unit(folder: Path) -> dict[str, float]:
    """Return how long each unit took when it was last computed, by whomever; unreadable lines are ignored."""
    lines: list[bytes] = []
    for path in (folder / LOG, *logs_of(folder)):
        with suppress(OSError):
            lines += path.read_bytes().splitlines()
    found: dict[str, float] = {}
    for line in lines:
        try:
            entry = json.loads(line)
            if entry["event"] == "unit":
                found[str(entry["unit"])] = float(entry["seconds"])
        except (ValueError, TypeError, KeyError):
            continue
    return found


def seconds_left(pending: Sequence[str], took: Mapping[str, float]) -> float | None:
    """Return how long the pending units may take: the mean of finished ones of their group, or else of all.

    Returns None if no unit is finished. The group of a unit is its id up to the last "/".
    """
    if not took:
        return None
    groups: dict[str, list[float]] = {}
    for unit, seconds in took.items():
        groups.setdefault(group_of(unit), []).append(seconds)
    mean = sum(took.values()) / len(took)
    means = {name: sum(values) / len(values) for name, values in groups.items()}
    return sum(means.get(group_of(unit), mean) for unit in pending)


def group_of(unit: str) -> str:
    """Return the part of an id that units of one group share: all up to the last "/"."""
    return unit.rpartition("/")[0] or unit


def words(seconds: float) -> str:
    """Return a duration as "45 s", "12 min" or "3 h 20 min"."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"
