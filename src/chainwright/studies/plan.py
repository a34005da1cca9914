"""A plan defines a kind of study: which units it has, and how each is computed.

A unit is a pure function of (config, model, id, results of finished units). Running, storing and checking units is the
work of `engine`.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence, Sized
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from chainwright._errors import BadInput, unknown_name
from chainwright._registry import load, names
from chainwright.studies import records

if TYPE_CHECKING:
    from chainwright._finding import Finding
    from chainwright.studies.engine import Study
    from chainwright.studies.manifest import Manifest

Tick = Callable[[int, int], None]
_UNIT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)*")


class Skip(Exception):
    """Raised by `Plan.compute` with the reason why there is nothing to compute for this unit."""


class Results(Mapping[str, Path]):
    """Finished units in order: id -> the folder with its files, checked against its record.

    Attributes:
        skipped: Finished units for which nothing was computed, and why; they are not among the items.
    """

    def __init__(self, folder: Path, found: Mapping[str, records.Checked]):
        self._paths = {unit: folder / unit for unit, record in found.items() if record.skipped is None}
        self.skipped = {unit: record.skipped for unit, record in found.items() if record.skipped is not None}

    def __getitem__(self, unit: str) -> Path:
        if unit not in self._paths:
            raise KeyError(
                f"{unit} is not among these results; a unit that reads another of the same listing must name it in "
                "Plan.needs"
            )
        return self._paths[unit]

    def __contains__(self, unit: object) -> bool:
        return unit in self._paths

    def __iter__(self) -> Iterator[str]:
        return iter(self._paths)

    def __len__(self) -> int:
        return len(self._paths)

    def are_finished(self, units: Sequence[str]) -> bool:
        """Return whether each of these units is computed or skipped."""
        return all(unit in self._paths or unit in self.skipped for unit in units)


class Job(NamedTuple):
    """One unit to compute.

    Attributes:
        unit: Its id.
        out: An empty folder for its files; it must not put a `unit.json` there.
        done: Results of the units that were finished when this one was listed, and of those that it needs.
        tick: May be called with (amount done, total amount) to show progress within the unit.
    """

    unit: str
    out: Path
    done: Results
    tick: Tick

    def counter(self, total: int) -> Callable[[Sized], None]:
        """Return a function that shows progress by the number of items it is called with, batch by batch."""
        sizes: list[int] = []

        def add(batch: Sized) -> None:
            sizes.append(len(batch))
            self.tick(sum(sizes), total)

        return add


class Plan(ABC):
    """A kind of study: which units it has, and how each is computed.

    Attributes:
        kind: Name of the kind, as in `study.json`.
        again: Command that resumes a study, with "{folder}" for its folder.
        config: Everything that the units depend on besides the model, as plain JSON values.
        source: What identifies the model (`provenance`); empty if there is none.
    """

    kind: str
    again: str
    config: Mapping[str, Any]
    source: Mapping[str, str] = {}

    @abstractmethod
    def units(self, done: Results) -> Sequence[str]:
        """Return the ids of all units that can be listed so far, in order; those listed before come first.

        An id such as "traces/parity-012" is the path of the unit's folder; no unit lies inside another. The list must
        depend on the config and the results alone.
        """

    def needs(self, unit: str) -> Sequence[str]:
        """Return the units that a unit reads although they are listed together with it, and before it.

        Units are computed in any order, also at the same time; these are finished first. What was finished when a unit
        was listed need not be named.
        """
        return ()

    @abstractmethod
    def compute(self, job: Job) -> None:
        """Write the files of a unit into `job.out`, the same bytes each time.

        Raises:
            Skip: There is nothing to compute, and why.
        """

    def title(self, unit: str) -> str:
        """Return the name that is shown for a unit while it is computed."""
        return unit

    @classmethod
    def findings(cls, study: Study) -> Sequence[Finding]:
        """Return the findings of a finished study of this kind, from its folder alone."""
        return ()

    @classmethod
    def resumed(cls, known: Manifest, *, device: str | None = None, trust_remote_code: bool = False) -> Plan:
        """Return the plan of a study that was begun, made from its `study.json`; this loads its model.

        Raises:
            BadInput: A study of this kind is resumed by another command, or its model cannot be loaded.
        """
        raise BadInput(
            f"A study of kind {known.kind!r} cannot be resumed from its folder alone; resume it with: {known.again}"
        )


def plan_of(kind: str) -> type[Plan]:
    """Return the plan of a kind of study; only its module is imported.

    Raises:
        BadInput: No plan of that kind is registered.
    """
    if kind not in names("study"):
        raise unknown_name("study kind", kind, names("study"))
    plan: type[Plan] = load("study", kind)
    return plan


class Watch:
    """Progress callbacks of a run; this base class ignores them."""

    def listed(self, n_done: int, n_units: int) -> None:
        """Called at each listing with the number of finished units and of all units listed so far."""

    def started(self, title: str) -> None:
        """Called when a unit is begun."""

    def ticked(self, done: int, total: int) -> None:
        """Called while a unit is computed, with the amount done of its total."""

    def finished(self, title: str, seconds: float, skipped: str | None, left: float | None) -> None:
        """Called when a unit is finished.

        Args:
            title: Its title.
            seconds: How long it took.
            skipped: Why nothing was computed; None if it was.
            left: Estimated seconds for the pending units; None if unknown.
        """


def check_ids(units: Sequence[str]) -> None:
    """Refuse ids that are no paths, repeat one another or lie inside one another: a mistake in a plan."""
    known = set(units)
    for unit in units:
        if not _UNIT.fullmatch(unit) or any(str(above) in known for above in Path(unit).parents):
            raise ValueError(f"A plan lists the unit {unit!r}; ids are like 'traces/a-1', and none lies in another.")
    if len(known) < len(units):
        raise ValueError("A plan lists a unit twice.")
