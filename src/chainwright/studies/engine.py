"""A study: units of work in a folder, each computed once, even if runs are killed in between.

1. A plan lists units by id. It lists again when all of them are finished, so that later units may depend on the results
   of earlier ones; a study is finished when nothing new is listed.
2. A unit is a pure function of (config, model, id, results of finished units). It writes files into an empty folder,
   which takes its place in one step together with a record of their hashes (`records`).
3. There is no other state: a run after a kill lists the units again, checks the finished ones and computes the others.
   It ends with the same bytes as an undisturbed run.

Units of one listing can therefore be computed in any order and place: that is the work of an executor (`executors`),
which is one after the other in this process unless another is chosen, or of the processes of `workers`.
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

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from chainwright._errors import BadInput
from chainwright._files import clear_disk_errors, remove_leftovers
from chainwright.studies import crew, listing, manifest, records, timing
from chainwright.studies.crew import WorkerState
from chainwright.studies.executors.base import Executor
from chainwright.studies.executors.local import Local
from chainwright.studies.lock import Holder, holder, locked
from chainwright.studies.manifest import Manifest
from chainwright.studies.plan import Plan, Results, Watch, plan_of
from chainwright.studies.run import Run

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
        workers: The workers that compute it, as each last said; one that was killed is among them for a while.
        seconds_spent: Sum over the finished units.
        seconds_left: Estimate for the missing units among `units`; None if no unit is finished.
    """

    kind: str
    is_complete: bool
    units: list[UnitStatus]
    holder: Holder | None
    workers: list[WorkerState]
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
        new = manifest.of_plan(plan)
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
        found, damage = listing.checked(self.folder, known)
        listing.refuse(self.folder, known, damage)
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
        known = known.replace(again=known.command(self.folder))
        plan = plan_of(known.kind).resumed(known, device=device, trust_remote_code=trust_remote_code)
        return replace(self, plan=plan)

    def run(self, watch: Watch | None = None, *, recompute: bool = False, executor: Executor | None = None) -> Results:
        """Compute what is missing and return everything; a finished study is checked and returned.

        Args:
            watch: Receives the progress; by default nothing is shown.
            recompute: Compute damaged units again.
            executor: Where the units are computed; None computes one after the other in this process. With one that
                computes nothing (`folder`) the units are listed, and what is finished is returned.

        Raises:
            BadInput: Another process computes it, its settings were changed meanwhile, a finished unit is damaged and
                `recompute` is off, or the disk is full. Finished units stay.
        """
        if self.plan is None:
            raise BadInput(f"{self.folder} was opened for reading only; {self._advice(self.manifest)}.")
        with locked(self.folder):
            # Read again under the lock: between `make` and here another process may have replaced the study.
            known = self.manifest
            manifest.check_same(self.folder, known, manifest.of_plan(self.plan))
            remove_leftovers(self.folder)
            found, damage = listing.checked(self.folder, known)
            if recompute:
                for unit in damage:
                    manifest.remove_unit(self.folder, unit)
            else:
                listing.refuse(self.folder, known, damage)
            run = Run(self.folder, self.plan, known, found, watch or Watch(), executor or Local())
            return Results(self.folder, run.to_the_end())

    def status(self) -> Status:
        """Return the state of the study; takes no lock, so it works while another process computes."""
        known = self.manifest
        # Without the lock a unit may appear while it is looked at: it is then counted as missing, never as damaged,
        # since its folder takes its place in one step.
        found, damage = listing.checked(self.folder, known)
        took = timing.seconds_by_unit(self.folder)
        units = [_unit_status(unit, found, damage, took) for unit in known.units]
        pending = [status.unit for status in units if status.state in ("missing", "damaged")]
        finished = {unit: seconds for unit, seconds in took.items() if unit in found}
        left = timing.seconds_left(pending, finished) if pending else 0.0
        workers = crew.workers_of(self.folder)
        left = None if left is None else left / max(1, len(workers))
        now, spent = holder(self.folder), sum(finished.values())
        return Status(known.kind, known.is_complete, units, now, workers, spent, left)

    def _advice(self, known: Manifest) -> str:
        return f"resume it with: {known.command(self.folder)}"


def _unit_status(
    unit: str, found: Mapping[str, records.Checked], damage: Mapping[str, records.Damage], took: Mapping[str, float]
) -> UnitStatus:
    if unit in damage:
        return UnitStatus(unit, "damaged", str(damage[unit]))
    if unit not in found:
        return UnitStatus(unit, "missing")
    skipped = found[unit].skipped
    return UnitStatus(unit, "done" if skipped is None else "skipped", skipped or "", took.get(unit))
