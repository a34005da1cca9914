"""One run of a study, under its lock: stage after stage is handed to an executor, and what comes back is checked."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chainwright._errors import BadInput
from chainwright.studies import listing, records, timing
from chainwright.studies.executors.base import Computed, Executor, Stage
from chainwright.studies.listing import Found
from chainwright.studies.manifest import Manifest
from chainwright.studies.plan import Plan, Watch


@dataclass
class Run:
    """One run of a study."""

    folder: Path
    plan: Plan
    known: Manifest
    found: Found
    watch: Watch
    executor: Executor

    def to_the_end(self) -> Found:
        """Compute stage after stage, and return the records of all units in order."""
        pending = self._list()
        # A finished study that is run again is only checked; not even its log changes.
        if pending or not self.known.is_complete:
            timing.note(self.folder, "start", pid=os.getpid(), host=socket.gethostname())
        if pending and not self.executor.computes:
            return listing.in_order(self.known, self.found)
        with self.executor:
            while pending:
                stage = Stage(self.folder, self.plan, self.known, pending, dict(self.found), {}, self.watch)
                self._take(stage, self.executor.compute(stage))
                # Only now may the plan list units that depend on these.
                pending = self._list()
        self._save(listing.finished(self.folder, self.known, self.found))
        return self._in_order()

    def _in_order(self) -> Found:
        return listing.in_order(self.known, self.found)

    def _list(self) -> list[str]:
        """Ask the plan for units, enter the new ones into `study.json`, and return those not yet computed."""
        units, known, pending = listing.listed(self.folder, self.plan, self.known, self.found)
        self._save(known)
        self.watch.listed(len(units) - len(pending), len(units))
        return pending

    def _save(self, new: Manifest) -> None:
        if listing.differ(new, self.known):
            new.save(self.folder)
        self.known = new

    def _take(self, stage: Stage, computed: Iterable[Computed]) -> None:
        """Check each unit of a stage as it comes, note it in the log and show it."""
        left = dict.fromkeys(stage.pending)
        for unit, seconds, worker in computed:
            del left[unit]
            record = self._read_back(unit)
            self.found[unit] = stage.computed[unit] = record
            by: dict[str, Any] = {"worker": worker} if worker else {}
            timing.note(self.folder, "unit", unit=unit, seconds=round(seconds, 3), **by)
            rest = timing.seconds_left(list(left), timing.seconds_by_unit(self.folder))
            rest = None if rest is None else rest / self.executor.n_workers
            self.watch.finished(self.plan.title(unit), seconds, record.skipped, rest)
        if left:
            raise RuntimeError(f"The executor did not compute the unit {next(iter(left))!r}.")

    def _read_back(self, unit: str) -> records.Checked:
        # Reading back what was just written finds a bad disk, and for a unit that is computed again it compares the
        # record with the hash that the finished study has pinned.
        try:
            record = records.check(self.folder / unit, self.known.key, self.known.units[unit])
        except records.Damage as error:
            raise BadInput(
                f"Unit {unit} of {self.folder} was computed again and came out differently ({error}); the device or a "
                "library must have changed. Make the study again in another folder."
            ) from error
        if record is None:
            raise RuntimeError(f"The executor did not put the unit {unit!r} in its place.")
        return record
