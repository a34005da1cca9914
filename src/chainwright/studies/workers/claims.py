"""One lock per unit in a folder that machines share: leases that need neither file locks nor clocks that agree.

    .workers/drafts/3f0c...                               where the owner of a claim computes
    .workers/claims/heads~parity-value.2/owner.json       whose claim it is, and how long it may be silent
    .workers/claims/heads~parity-value.2/ready-3f0c...    what it has computed, for an instant, or a barrier

1. To claim a unit, a worker makes a folder with `owner.json` in it, and renames it to the next number for that unit. A
   rename never replaces a folder with files in it, so one worker has each number. Every claim has a random token.
2. The owner shows that it is alive by a heartbeat (`crew`). Others compare what they read with what they read before:
   a claim has expired when its owner's heartbeat has not changed for the length of the lease, by the clock of the
   reader. Times of two machines are never compared.
3. To publish, the owner renames its draft to "ready" in its claim, and from there to the unit's place. Neither rename
   replaces anything.
4. Whoever finds a claim expired takes the next number, and then fences the earlier ones: it renames "ready" to "lost"
   or, where the owner has not come so far, puts a folder in its way. So the owner, if it only slept, fails at its next
   rename, whenever that is: a worker whose claim was taken publishes nothing. Both are renames of a name in one folder,
   which the file system decides one after the other, whatever a client of NFS has in its cache.
5. After each claim the owner looks whether the unit has appeared meanwhile, and then gives the claim back.

`study.json` is written under a claim of its own in the same way, except that its last rename replaces the old one.
"""

from __future__ import annotations

import errno
import json
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from chainwright._errors import BadInput
from chainwright._files import clear_disk_errors, put_once, seal
from chainwright.studies.crew import PLACE, beat_of

_CLAIMS, _DRAFTS = "claims", "drafts"
_READY, _LOST, _OWNER, _BARRIER = "ready-", "lost-", "owner.json", "barrier"
_GONE = (errno.ENOENT, errno.ESTALE)
_THERE = (errno.ENOTEMPTY, errno.EEXIST, errno.EISDIR, errno.ENOTDIR)


class LeaseLost(Exception):
    """Another worker has taken a claim over; nothing of what was computed under it appears."""


class Claim(NamedTuple):
    """Something that this worker alone may write.

    Attributes:
        name: What is claimed: a unit's id, or "study.json".
        place: The claim's folder.
        token: Its token.
        draft: An empty folder to compute in.
    """

    name: str
    place: Path
    token: str
    draft: Path

    @property
    def _ready(self) -> Path:
        return self.place / f"{_READY}{self.token}"

    def is_held(self) -> bool:
        """Return whether nobody has taken it over."""
        owner = _owner(self.place)
        return owner is not None and owner.token == self.token and not _is_fenced(self.place)

    def publish(self, unit: Path) -> None:
        """Give the draft its place, unless the unit is there already.

        Raises:
            LeaseLost: The claim was taken over; nothing was written.
        """
        seal(self.draft)
        with self._lost_if_fenced():
            os.rename(self.draft, self._ready)
        with self._lost_if_fenced(), suppress(FileExistsError):  # published by an owner who was believed dead
            put_once(self._ready, unit)

    def replace(self, file: Path) -> None:
        """Put the draft's file of the same name in the place of a file.

        Raises:
            LeaseLost: The claim was taken over; nothing was written.
        """
        seal(self.draft)
        with self._lost_if_fenced():
            os.rename(self.draft / file.name, self._ready)
            os.replace(self._ready, file)

    @contextmanager
    def _lost_if_fenced(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno in (*_GONE, *_THERE):
                raise LeaseLost(self.name) from error
            raise


@dataclass
class Claims:
    """The claims on a study, as one worker sees and makes them.

    Attributes:
        folder: The study's folder.
        worker: The name of this worker.
        lease: Seconds that it may be silent before others take its units.
    """

    folder: Path
    worker: str
    lease: float
    _seen: dict[Path, tuple[bytes | None, float]] = field(default_factory=dict)

    def open(self) -> None:
        """Make the folders of claims and drafts."""
        for name in (_CLAIMS, _DRAFTS):
            with clear_disk_errors(self.folder / PLACE / name):
                (self.folder / PLACE / name).mkdir(parents=True, exist_ok=True)

    @property
    def _place(self) -> Path:
        return self.folder / PLACE / _CLAIMS

    def _draft(self, token: str) -> Path:
        return self.folder / PLACE / _DRAFTS / token

    def claim(self, name: str) -> Claim | None:
        """Return a claim; None if another worker holds one that has not expired, or was faster."""
        earlier = self._numbers(name)
        number = max(earlier, default=0)
        if number and not self._has_expired(self._numbered(name, number)):
            return None
        claim = self._take(name, number + 1)
        if claim is not None:
            for before in earlier:
                self._fence(self._numbered(name, before))
        return claim

    def give_back(self, claim: Claim) -> None:
        """Remove a claim, and what is left of its draft; one that was taken over is not touched.

        Claims before it stay, fenced, until the study is finished, so that their owners find the way barred.
        """
        if claim.is_held():
            gone = self._place / f".{claim.token}"
            with suppress(OSError):
                os.rename(claim.place, gone)
            shutil.rmtree(gone, ignore_errors=True)
        shutil.rmtree(claim.draft, ignore_errors=True)

    def _numbered(self, name: str, number: int) -> Path:
        return self._place / f"{name.replace('/', '~')}.{number}"

    def _numbers(self, name: str) -> list[int]:
        # listing opens the folder, which makes a client of NFS ask the server instead of its cache
        found = [entry.rpartition(".") for entry in _entries(self._place)]
        return [int(number) for what, _, number in found if what == name.replace("/", "~") and number.isdigit()]

    def _take(self, name: str, number: int) -> Claim | None:
        token = secrets.token_hex(8)
        own, place = self._place / f".{token}", self._numbered(name, number)
        claim = Claim(name, place, token, self._draft(token))
        with clear_disk_errors(place):
            try:
                own.mkdir()
                with (own / _OWNER).open("w") as file:
                    json.dump(_Owner(self.worker, self.lease, token)._asdict(), file)
                    file.flush()
                    os.fsync(file.fileno())
                claim.draft.mkdir()
                os.rename(own, place)
            except OSError as error:
                # a server whose answer was lost may have done what was asked
                owner = _owner(place)
                if owner is None or owner.token != token:
                    for path in (own, claim.draft):
                        shutil.rmtree(path, ignore_errors=True)
                    # another was faster, or the study was finished this very moment
                    if error.errno in _THERE or not self._place.exists():
                        return None
                    raise
        return claim

    def _has_expired(self, place: Path) -> bool:
        """Return whether a claim is nobody's: fenced, or its owner silent for its lease, by this machine's clock."""
        if not place.exists():  # it was given back this very moment
            return False
        if _is_fenced(place):
            return True
        owner, now = _owner(place), time.monotonic()
        # a claim that a crash of the server has emptied shows no sign of life either
        beat = None if owner is None else beat_of(self.folder, owner.worker)
        before = self._seen.get(place)
        if before is None or before[0] != beat:
            self._seen[place] = (beat, now)
            return False
        return now - before[1] >= (self.lease if owner is None else owner.lease)

    def _fence(self, place: Path) -> None:
        """Make sure that the owner of an earlier claim can no longer publish."""
        owner = _owner(place)
        if owner is None:
            return
        ready, barrier = place / f"{_READY}{owner.token}", self._place / f".{secrets.token_hex(8)}"
        while not (ready / _BARRIER).exists():  # a barrier is never moved, or its owner could slip through
            try:
                if ready.name in _entries(place):  # it is about to publish, ...
                    os.rename(ready, place / f"{_LOST}{secrets.token_hex(8)}")
                else:  # ... or has not come so far: then it will find something in its way
                    barrier.mkdir(exist_ok=True)
                    (barrier / _BARRIER).touch()
                    os.rename(barrier, ready)
                break
            except OSError as error:  # it has come further this very moment
                if error.errno not in (*_GONE, *_THERE):
                    raise
            if not place.exists():
                break
        shutil.rmtree(barrier, ignore_errors=True)
        shutil.rmtree(self._draft(owner.token), ignore_errors=True)


class _Owner(NamedTuple):
    worker: str
    lease: float
    token: str


def _owner(place: Path) -> _Owner | None:
    try:
        return _Owner(**json.loads((place / _OWNER).read_text()))
    except (OSError, ValueError, TypeError):
        return None


def _is_fenced(place: Path) -> bool:
    entries = _entries(place)
    is_barred = any((place / entry / _BARRIER).exists() for entry in entries if entry.startswith(_READY))
    return is_barred or any(entry.startswith(_LOST) for entry in entries)


def _entries(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except FileNotFoundError:
        return []


def check_file_system(folder: Path) -> None:
    """Raise BadInput unless the file system refuses to make a file, or to name a folder, that is there.

    Raises:
        BadInput: It does both again, so two workers could each believe that a unit is theirs.
    """
    place = folder / PLACE
    trial = place / f".{secrets.token_hex(8)}"
    with clear_disk_errors(trial):
        trial.mkdir(parents=True)
        try:
            if not (_refuses_file(trial / "file") and _refuses_folder(trial)):
                raise BadInput(
                    f"{folder} is on a file system that does not create files and folders exclusively, so two workers "
                    "could take the same unit; put the study on one that does (a local disk, NFS, Lustre, CephFS), or "
                    "compute it in one process with `chainwright study run`."
                )
        finally:
            shutil.rmtree(trial, ignore_errors=True)


def _refuses_file(path: Path) -> bool:
    path.open("xb").close()
    try:
        path.open("xb").close()
    except FileExistsError:
        return True
    return False


def _refuses_folder(trial: Path) -> bool:
    for name in ("a", "b"):
        (trial / name).mkdir()
        (trial / name / "file").touch()
    try:
        os.rename(trial / "a", trial / "b")
    except OSError:
        return (trial / "a" / "file").exists()
    return False
