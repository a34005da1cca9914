"""What a worker does: it takes unit after unit of a study that others compute as well, until the study is finished.

1. It lists units as every run does. New ones are entered into `study.json` under a claim, after reading it again,
   before any of them is computed.
2. It claims the first unit that nobody holds, computes it, and publishes it (`claims`).
3. When nothing is left, one worker pins the hashes in `study.json`; the study is finished.

A worker that was stopped in between leaves a claim that expires; one that is interrupted gives it back at once.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from chainwright._errors import BadInput
from chainwright._files import clear_disk_errors
from chainwright.studies import crew, listing, manifest, records, timing
from chainwright.studies.crew import LEASE, Heart
from chainwright.studies.executors.base import read_by, write_unit
from chainwright.studies.listing import Found, Listing
from chainwright.studies.lock import holder
from chainwright.studies.manifest import STUDY, Manifest
from chainwright.studies.plan import Job, Plan, Results, Tick, Watch
from chainwright.studies.workers.claims import Claim, Claims, LeaseLost, check_file_system

_PAUSE = 2.0  # seconds between two looks at units that others hold


class Worked(NamedTuple):
    """What a worker has done.

    Attributes:
        n_units: Units that it computed.
        n_lost: Units that it computed but could not publish, because another worker had taken them over.
        has_finished: Whether it was this worker that finished the study.
    """

    n_units: int
    n_lost: int
    has_finished: bool


def work(folder: Path, plan: Plan, watch: Watch | None = None, *, lease: float = LEASE) -> Worked:
    """Compute units of a study together with other workers, until it is finished.

    Args:
        folder: The study's folder, which all workers share.
        plan: Its plan, as each worker makes it (`Study.with_plan`).
        watch: Receives the progress of this worker.
        lease: Seconds of silence after which others take its unit.

    Raises:
        BadInput: The plan is of another version or of other weights than the study, a process of `chainwright study
            run` computes it, its file system does not create exclusively, a unit is damaged or cannot be computed.
    """
    heart = Heart(folder, lease)
    known = manifest.read(folder)
    manifest.check_worker(folder, known, manifest.of_plan(plan), f"process {heart.state.pid} on {heart.state.host}")
    if known.is_complete:
        crew.clear(folder)
        return Worked(0, 0, False)
    _refuse_run(folder)
    check_file_system(folder)
    with heart:
        _refuse_run(folder)  # one that has begun meanwhile may not have seen this worker
        worked = _Worker(folder, plan, watch or Watch(), heart).to_the_end()
    crew.clear(folder)  # after the last heartbeat; of several workers the last one to leave finds it empty
    return worked


def _refuse_run(folder: Path) -> None:
    if (other := holder(folder)) is not None:
        raise BadInput(
            f"{folder} is being computed by {other}, which computes all of it; stop that one, and start workers only."
        )


class _Worker:
    def __init__(self, folder: Path, plan: Plan, watch: Watch, heart: Heart):
        self.folder, self.plan, self.watch, self.heart = folder, plan, watch, heart
        self.claims = Claims(folder, heart.worker, heart.lease)
        self.claims.open()
        self.found: Found = {}
        self.known = manifest.read(folder)
        self.n_units, self.n_lost, self.has_finished = 0, 0, False
        self._shown = (-1, -1)

    def to_the_end(self) -> Worked:
        """Compute what nobody else computes, until the study is finished."""
        self._note("start", pid=self.heart.state.pid, host=self.heart.state.host)
        while not self._read().is_complete:
            found = self._look()
            if listing.differ(found.known, self.known):
                self._write(lambda: self._look().known)
            elif not found.pending:
                self._finish()
            elif not self._compute_one(found):
                time.sleep(min(_PAUSE, self.heart.lease / 4))
        return Worked(self.n_units, self.n_lost, self.has_finished)

    def _read(self) -> Manifest:
        self.known = manifest.read(self.folder)
        return self.known

    def _look(self) -> Listing:
        """Check the units that have appeared since the last look, and list."""
        self._check()
        units, known, pending = listing.listed(self.folder, self.plan, self.known, self.found)
        shown = (len(units) - len(pending), len(units))
        if shown != self._shown:
            self.watch.listed(*shown)
            self._shown = shown
        return Listing(units, known, pending)

    def _check(self) -> None:
        new = self.known.replace(units={u: h for u, h in self.known.units.items() if u not in self.found})
        found, damage = listing.checked(self.folder, new)
        listing.refuse(self.folder, self.known, damage)
        self.found |= found

    def _write(self, new: Callable[[], Manifest]) -> Manifest | None:
        """Replace `study.json` by what `new` makes of it, unless another worker is about to do so.

        Returns:
            What was written; None if nothing was.
        """
        claim = self.claims.claim(STUDY)
        if claim is None:
            time.sleep(min(_PAUSE, self.heart.lease / 10))
            return None
        try:
            if self._read().is_complete or not listing.differ(written := new(), self.known):
                return None
            written.save(claim.draft)
            claim.replace(self.folder / STUDY)
        except LeaseLost:
            return None
        finally:
            self.claims.give_back(claim)
        return written

    def _finish(self) -> None:
        """Pin every hash, if after reading everything again there is nothing left to compute."""

        def finished() -> Manifest:
            found = self._look()
            if found.pending or listing.differ(found.known, self.known):
                return found.known
            return listing.finished(self.folder, self.known, self.found)

        written = self._write(finished)
        if written is not None and written.is_complete:
            self.has_finished = True
            for log in crew.logs_of(self.folder):
                timing.join(self.folder, log)

    def _compute_one(self, found: Listing) -> bool:
        """Compute the first pending unit that can be claimed; return whether there was one."""
        for unit in found.pending:
            if not all(need in self.found for need in self.plan.needs(unit)):
                continue
            claim = self.claims.claim(unit)
            if claim is None:
                continue
            try:
                # it may have appeared between the look and the claim
                if records.check(self.folder / unit, self.known.key) is None:
                    self._compute(unit, claim)
            finally:
                self.claims.give_back(claim)
                self.heart.show("", self.n_units)
            return True
        return False

    def _compute(self, unit: str, claim: Claim) -> None:
        title, start = self.plan.title(unit), time.monotonic()
        self.heart.show(unit, self.n_units)
        self.watch.started(title)
        done = Results(self.folder, read_by(self.plan, unit, self.known, self.found, self.found))
        try:
            with clear_disk_errors(self.folder / unit):
                write_unit(self.plan, Job(unit, claim.draft, done, self._tick(claim)), self.known.key)
                self._note("unit", unit=unit, seconds=round(time.monotonic() - start, 3), worker=self.heart.worker)
                claim.publish(self.folder / unit)
        except LeaseLost:
            self._lose(title, time.monotonic() - start)
            return
        except Exception as error:
            # without its draft a unit fails in many ways, none of which is a fault of the unit; the log says how
            if claim.is_held():
                raise
            self._note("lost", unit=unit, error=repr(error), worker=self.heart.worker)
            self._lose(title, time.monotonic() - start)
            return
        record = records.check(self.folder / unit, self.known.key)
        assert record is not None
        self.found[unit] = record
        self.n_units += 1
        self.watch.finished(title, time.monotonic() - start, record.skipped, self._seconds_left())

    def _note(self, event: str, **values: Any) -> None:
        # where others have finished the study, there is no place for this worker's log any more
        if self.heart.log.parent.exists():
            timing.note(self.folder, event, log=self.heart.log, **values)

    def _lose(self, title: str, seconds: float) -> None:
        self.n_lost += 1
        self.watch.finished(title, seconds, "another worker has taken this unit, so nothing was written", None)

    def _tick(self, claim: Claim) -> Tick:
        looked = time.monotonic()

        def tick(done: int, total: int) -> None:
            nonlocal looked
            if time.monotonic() - looked >= self.heart.lease / 4:
                looked = time.monotonic()
                if not claim.is_held():
                    raise LeaseLost(claim.name)
            self.watch.ticked(done, total)

        return tick

    def _seconds_left(self) -> float | None:
        pending = [unit for unit in self.known.units if unit not in self.found]
        rest = timing.seconds_left(pending, timing.seconds_by_unit(self.folder))
        return None if rest is None else rest / max(1, len(crew.workers_of(self.folder)))
