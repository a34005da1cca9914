"""What a kind of study says of itself: its units, and how each is computed.

A unit is a pure function of (config, model, id, results of finished units). How units are run, kept and checked is the
engine's part (`engine`).
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
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
    """Raised by `Plan.compute`: there is nothing to compute for this unit, and why."""


class Results(Mapping[str, Path]):
    """Finished units in order: id -> the folder with its files, checked against its record.

    Attributes:
        skipped: Finished units for which nothing was computed, and why; they are not among the items.
    """

    def __init__(self, folder: Path, found: Mapping[str, records.Checked]):
        self._paths = {unit: folder / unit for unit, record in found.items() if record.skipped is None}
        self.skipped = {unit: record.skipped for unit, record in found.items() if record.skipped is not None}

    def __getitem__(self, unit: str) -> Path:
        return self._paths[unit]

    def __iter__(self) -> Iterator[str]:
        return iter(self._paths)

    def __len__(self) -> int:
        return len(self._paths)

    def are_finished(self, units: Sequence[str]) -> bool:
        """Say whether every one of these units is computed or skipped."""
        return all(unit in self._paths or unit in self.skipped for unit in units)


class Job(NamedTuple):
    """One unit to compute.

    Attributes:
        unit: Its id.
        out: An empty folder for its files; it must not put a `unit.json` there.
        done: Results of the units that are finished.
        tick: May be called with (how much of the unit is done, of how much), for the display.
    """

    unit: str
    out: Path
    done: Results
    tick: Tick


class Plan(ABC):
    """A kind of study: which units it has, and how each is computed.

    Attributes:
        kind: Name of the kind, in `study.json`.
        again: The command that goes on with a study, "{folder}" standing for its folder.
        config: Everything that the units depend on besides the model, as plain JSON values.
        source: What identifies the model (`provenance`); empty if there is none.
    """

    kind: str
    again: str
    config: Mapping[str, Any]
    source: Mapping[str, str] = {}

    @abstractmethod
    def units(self, done: Results) -> Sequence[str]:
        """Return the ids of all units known by now, in order, those named before first.

        An id such as "traces/parity-012" is the place of the unit's folder; no unit lies in another one. Must depend
        on the config and the results alone.
        """

    @abstractmethod
    def compute(self, job: Job) -> None:
        """Write the files of a unit into `job.out`, the same bytes each time.

        Raises:
            Skip: There is nothing to compute, and why.
        """

    def title(self, unit: str) -> str:
        """Return a unit's name for readers."""
        return unit

    @classmethod
    def findings(cls, study: Study) -> Sequence[Finding]:
        """Return what a finished study of this kind found, for its report; there is no model to ask."""
        return ()

    @classmethod
    def resumed(cls, known: Manifest, *, device: str | None = None, trust_remote_code: bool = False) -> Plan:
        """Return the plan of a study that was begun, from what its `study.json` says; this loads its model.

        Raises:
            BadInput: A study of this kind goes on by another command, or its model cannot be had.
        """
        raise BadInput(f"A study of kind {known.kind!r} does not go on from its folder alone, but by: {known.again}")


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
    """Is told how a run gets on; this one does not tell anybody."""

    def listed(self, n_done: int, n_units: int) -> None:
        """So many of the units known by now are finished."""

    def started(self, title: str) -> None:
        """A unit has been begun."""

    def ticked(self, done: int, total: int) -> None:
        """So much of it is done."""

    def finished(self, title: str, seconds: float, skipped: str | None, left: float | None) -> None:
        """It is finished, and the pending ones may take `left` seconds; None if nobody knows."""


def check_ids(units: Sequence[str]) -> None:
    """Refuse ids that are no places of their own: a mistake in a plan."""
    known = set(units)
    for unit in units:
        if not _UNIT.fullmatch(unit) or any(str(above) in known for above in Path(unit).parents):
            raise ValueError(f"A plan lists the unit {unit!r}; ids are like 'traces/a-1', and none lies in another.")
    if len(known) < len(units):
        raise ValueError("A plan lists a unit twice.")
