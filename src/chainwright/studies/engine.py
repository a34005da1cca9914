"""A study: units of work in a folder, each computed once, even if runs are killed in between.

1. A plan lists units by id. It lists again when all of them are finished, so that later units may depend on the results
   of earlier ones; a study is finished when nothing new is listed.
2. A unit is a pure function of (config, model, id, results of finished units). It writes files into an empty folder,
   which takes its place in one step together with a record of their hashes (`records`).
3. There is no other state: a run after a kill lists the units again, checks the finished ones and computes the others.
   It ends with the same bytes as an undisturbed run.

Units of one listing could therefore be computed in any order and place; here they are computed one after the other.
Times are not part of the result and are kept in `study.log`.

    class Squares(Plan):
        kind, again, config = "squares", "python squares.py {folder}", {"up_to": 3}

        def units(self, done):
            single = [f"square/{n}" for n in range(self.config["up_to"])]
            return [*single, "sum"] if all(unit in done for unit in single) else single

        def compute(self, job):
            if job.unit == "sum":
                parts = [read_json(path / "value.json") for unit, path in job.done.items()]
                write_json(job.out / "value.json", sum(parts))
            else:
                write_json(job.out / "value.json", int(job.unit.rpartition("/")[2]) ** 2)

    study = Study.make("runs/squares", Squares())
    study.run()
    read_json(study.results["sum"] / "value.json")  # 5
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from chainwright._errors import BadInput
from chainwright._files import clear_disk_errors, remove_leftovers
from chainwright.studies import manifest, records, timing
from chainwright.studies.lock import Holder, holder, locked
from chainwright.studies.manifest import Manifest
from chainwright.studies.plan import Job, Plan, Results, Skip, Watch, check_ids, plan_of

if TYPE_CHECKING:
    from chainwright._finding import Finding


@dataclass(frozen=True)
class UnitStatus:
    """The state of a unit.

    Attributes:
        note: Why it was skipped, or what is wrong with it.
        seconds: How long it took, if the log says so.
    """

    unit: str
    state: Literal["done", "skipped", "missing", "damaged"]
    note: str = ""
    seconds: float | None = None


@dataclass(frozen=True)
class Status:
    """The state of a study.

    Attributes:
        units: The units listed so far; later ones may depend on their results.
        holder: The process that computes the study at this moment.
        seconds_spent: Sum over the finished units.
        seconds_left: Estimate for the missing units among `units`; None if no unit is finished.
    """

    kind: str
    is_complete: bool
    units: list[UnitStatus]
    holder: Holder | None
    seconds_spent: float
    seconds_left: float | None

    def count(self, state: str) -> int:
        """Return how many units are in a state."""
        return sum(unit.state == state for unit in self.units)


@dataclass(frozen=True)
class Study:
    """One investigation as a folder, which is made, resumed after a kill, and read.

    `Study.make(folder, plan).run()` computes; `Study.open(folder)` reads, also while another process computes.
    """

    folder: Path
    plan: Plan | None = field(default=None, repr=False)

    @classmethod
    def make(cls, folder: str | Path, plan: Plan, *, overwrite: bool = False) -> Study:
        """Return the study of a plan in a folder: a new one, or the one that was begun there.

        Args:
            folder: Its folder; a new one must be empty or not exist.
            plan: Its kind, config, model and units.
            overwrite: Replace a study with other settings, or a finished one.

        Raises:
            BadInput: The folder holds something else or, without `overwrite`, a study with other settings; another
                process computes it; or it cannot be written.
        """
        study = cls(Path(folder), plan)
        new = _manifest(plan)
        if manifest.check_place(study.folder) and not overwrite:
            manifest.check_same(study.folder, manifest.read(study.folder), new)
            return study
        with clear_disk_errors(study.folder):
            study.folder.mkdir(parents=True, exist_ok=True)
        # Only replacing takes the lock here; a study that is resumed is locked by `run`.
        with locked(study.folder):
            if (study.folder / manifest.STUDY).exists():
                manifest.clear(study.folder)
            (study.folder / timing.LOG).unlink(missing_ok=True)
            new.save(study.folder)
        return study

    @classmethod
    def open(cls, folder: str | Path) -> Study:
        """Return the study in a folder for reading; its results are checked when they are asked for.

        Raises:
            BadInput: There is none, it is of another schema, or its manifest is damaged.
        """
        manifest.read(Path(folder))
        return cls(Path(folder))

    @property
    def manifest(self) -> Manifest:
        """Read `study.json`, which another process may be changing."""
        return manifest.read(self.folder)

    @property
    def is_complete(self) -> bool:
        """Return whether every unit is finished."""
        return self.manifest.is_complete

    @property
    def units(self) -> list[str]:
        """Return the ids of all units listed so far, in order."""
        return list(self.manifest.units)

    @property
    def results(self) -> Results:
        """Return the finished units, every file checked against its record.

        Raises:
            BadInput: A file is missing, cut short or changed.
        """
        known = self.manifest
        found, damage = self._check(known)
        self._refuse(known, damage)
        return Results(self.folder, found)

    def findings(self) -> list[Finding]:
        """Return the findings of the study; neither model nor tokenizer is needed.

        Raises:
            BadInput: It is not finished, a file is damaged, or no plan has its kind.
        """
        known = self.manifest
        if not known.is_complete:
            raise BadInput(f"The study in {self.folder} is not finished; {self._advice(known)}")
        return list(plan_of(known.kind).findings(self))

    def with_plan(self, *, device: str | None = None, trust_remote_code: bool = False) -> Study:
        """Return the study with the plan that it was begun with, so that it can be run; this loads its model.

        Args:
            device: As for `load_model`.
            trust_remote_code: As for `load_model`.

        Raises:
            BadInput: The kind of study is unknown or is resumed by another command, or its model cannot be loaded.
        """
        known = self.manifest
        known = known.replace(again=self._again(known))
        plan = plan_of(known.kind).resumed(known, device=device, trust_remote_code=trust_remote_code)
        return replace(self, plan=plan)

    def run(self, watch: Watch | None = None, *, recompute: bool = False) -> Results:
        """Compute what is missing and return everything; a finished study is checked and returned.

        Args:
            watch: Receives the progress; by default nothing is shown.
            recompute: Compute damaged units again.

        Raises:
            BadInput: Another process computes it, its settings were changed meanwhile, a finished unit is damaged and
                `recompute` is off, or the disk is full. Finished units stay.
        """
        if self.plan is None:
            raise BadInput(f"{self.folder} was opened for reading only; {self._advice(self.manifest)}.")
        with locked(self.folder):
            # Read again under the lock: between `make` and here another process may have replaced the study.
            known = self.manifest
            manifest.check_same(self.folder, known, _manifest(self.plan))
            remove_leftovers(self.folder)
            found, damage = self._check(known)
            if recompute:
                for unit in damage:
                    manifest.remove_unit(self.folder, unit)
            else:
                self._refuse(known, damage)
            return Results(self.folder, _Run(self, self.plan, known, found, watch or Watch()).to_the_end())

    def status(self) -> Status:
        """Return the state of the study; takes no lock, so it works while another process computes."""
        known = self.manifest
        # Without the lock a unit may appear while it is looked at: it is then counted as missing, never as damaged,
        # since its folder takes its place in one step.
        found, damage = self._check(known)
        took = timing.seconds_by_unit(self.folder)
        units = [_unit_status(unit, found, damage, took) for unit in known.units]
        pending = [status.unit for status in units if status.state in ("missing", "damaged")]
        finished = {unit: seconds for unit, seconds in took.items() if unit in found}
        left = timing.seconds_left(pending, finished) if pending else 0.0
        return Status(known.kind, known.is_complete, units, holder(self.folder), sum(finished.values()), left)

    def _check(self, known: Manifest) -> tuple[dict[str, records.Checked], dict[str, records.Damage]]:
        """Return the sound units and what is wrong with the others; those not yet computed are in neither."""
        # The key ties each record to this config and model, so that a unit copied from another study is damage.
        key = records.study_key(known.kind, known.config, known.model)
        found: dict[str, records.Checked] = {}
        damage: dict[str, records.Damage] = {}
        for unit, expected in known.units.items():
            try:
                record = records.check(self.folder / unit, key, expected)
            except records.Damage as error:
                damage[unit] = error
            else:
                if record is not None:
                    found[unit] = record
        return found, damage

    def _refuse(self, known: Manifest, damage: Mapping[str, records.Damage]) -> None:
        if not damage:
            return
        unit, first = next(iter(damage.items()))
        others = f" (and {len(damage) - 1} more damaged units)" if len(damage) > 1 else ""
        raise BadInput(
            f"Unit {unit} of {self.folder} is damaged: {first}{others}; put the file back, or compute it again: "
            f"{self._again(known)} --recompute"
        )

    def _again(self, known: Manifest) -> str:
        return known.again.replace("{folder}", str(self.folder))

    def _advice(self, known: Manifest) -> str:
        return f"resume it with: {self._again(known)}"


def _manifest(plan: Plan) -> Manifest:
    from chainwright._version import __version__

    # Through JSON and back, so that tuples compare equal to the lists that were read from `study.json`.
    config, source = json.loads(json.dumps([plan.config, plan.source], allow_nan=False))
    return Manifest(
        kind=plan.kind,
        again=plan.again,
        config=config,
        model=source,
        chainwright=__version__,
        is_complete=False,
        units={},
    )


def _unit_status(
    unit: str, found: Mapping[str, records.Checked], damage: Mapping[str, records.Damage], took: Mapping[str, float]
) -> UnitStatus:
    if unit in damage:
        return UnitStatus(unit, "damaged", str(damage[unit]))
    if unit not in found:
        return UnitStatus(unit, "missing")
    skipped = found[unit].skipped
    return UnitStatus(unit, "done" if skipped is None else "skipped", skipped or "", took.get(unit))


@dataclass
class _Run:
    """One run of a study, under its lock."""

    study: Study
    plan: Plan
    known: Manifest
    found: dict[str, records.Checked]
    watch: Watch

    def to_the_end(self) -> dict[str, records.Checked]:
        """Compute stage after stage, and return the records of all units in order."""
        pending = self._list()
        # A finished study that is run again is only checked; not even its log changes.
        if pending or not self.known.is_complete:
            timing.note(self.study.folder, "start", pid=os.getpid(), host=socket.gethostname())
        while pending:
            for i, unit in enumerate(pending):
                self._compute(unit, pending[i + 1 :])
            # Only now may the plan list units that depend on these: a listing is a function of the config and of
            # finished results, so that after a kill the same units are listed in the same order.
            pending = self._list()
        self._finish()
        return {unit: self.found[unit] for unit in self.known.units}

    @property
    def _key(self) -> str:
        return records.study_key(self.known.kind, self.known.config, self.known.model)

    def _list(self) -> list[str]:
        """Ask the plan for units, enter the new ones into `study.json`, and return those not yet computed."""
        units = list(self.plan.units(Results(self.study.folder, self.found)))
        check_ids(units)
        for unit in units:
            # A unit is written into `study.json` before its folder appears, so a folder without an entry is not ours.
            if unit not in self.known.units and (self.study.folder / unit).exists():
                raise BadInput(
                    f"{self.study.folder / unit} is there, but {manifest.STUDY} does not name that unit; one of them "
                    "was changed by hand. Put it back, or make the study again in another folder."
                )
        # Units of later stages, of which an earlier run already knew, keep their entries and with them their hashes.
        later = [unit for unit in self.known.units if unit not in units]
        self._save(units={unit: self.known.units.get(unit) for unit in [*units, *later]})
        pending = [unit for unit in units if unit not in self.found]
        self.watch.listed(len(units) - len(pending), len(units))
        return pending

    def _save(self, **changes: Any) -> None:
        # Mappings compare equal in any order, but the order of the units is a part of the file.
        new = self.known.replace(**changes)
        if new != self.known or list(new.units) != list(self.known.units):
            new.save(self.study.folder)
        self.known = new

    def _compute(self, unit: str, later: Sequence[str]) -> None:
        place, title, start = self.study.folder / unit, self.plan.title(unit), time.monotonic()
        self.watch.started(title)
        try:
            with records.writing(place, self._key) as draft:
                self.plan.compute(Job(unit, draft, Results(self.study.folder, self.found), self.watch.ticked))
        except Skip as skip:
            records.write_skipped(place, self._key, str(skip))
        # Reading back what was just written finds a bad disk, and for a unit that is computed again it compares the
        # record with the hash that the finished study has pinned.
        try:
            record = records.check(place, self._key, self.known.units[unit])
        except records.Damage as error:
            raise BadInput(
                f"Unit {unit} of {self.study.folder} was computed again and came out differently ({error}); the "
                "device or a library must have changed. Make the study again in another folder."
            ) from error
        assert record is not None
        self.found[unit] = record
        seconds = time.monotonic() - start
        timing.note(self.study.folder, "unit", unit=unit, seconds=round(seconds, 3))
        left = timing.seconds_left(later, timing.seconds_by_unit(self.study.folder))
        self.watch.finished(title, seconds, record.skipped, left)

    def _finish(self) -> None:
        """Write down the hash of every record, so that a finished study pins all its bytes."""
        if strange := [unit for unit in self.known.units if unit not in self.found]:
            raise BadInput(
                f"{self.study.folder / manifest.STUDY} names the unit {strange[0]!r}, which such a study does not "
                "have; it was changed by hand. Put it back, or make the study again in another folder."
            )
        self._save(is_complete=True, units={unit: self.found[unit].sha256 for unit in self.known.units})
