"""What an executor is: it computes the units that a study has listed, in any order and place.

1. The engine lists units, and hands those not yet computed to the executor as a `Stage`.
2. The executor computes each with `write_unit` into a draft, gives it its place, and yields it as `Computed`.
3. The engine checks every file of it, notes it in the log, and lists again when the stage is done.

A unit is a pure function of the config, the model, its id and the results that were finished when it was listed, so
every executor ends with the same bytes. What each unit reads is fixed with the stage: of the other units of its stage
those alone that `Plan.needs` names.
"""

from __future__ import annotations

import shutil
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import ClassVar, NamedTuple, Self

from chainwright import _registry
from chainwright._errors import BadInput
from chainwright.studies import records
from chainwright.studies.listing import Found, in_order
from chainwright.studies.manifest import Manifest
from chainwright.studies.plan import Job, Plan, Skip, Watch


@dataclass(frozen=True)
class Stage:
    """Units to compute, and what it takes.

    Attributes:
        folder: The study's folder.
        plan: Its plan.
        known: What its `study.json` says.
        pending: The units to compute, in the order of the listing.
        found: Records of the finished units when these were listed.
        computed: Records of the units of this stage that are finished by now; the engine enters each that is yielded.
        watch: Receives the progress.
    """

    folder: Path
    plan: Plan
    known: Manifest
    pending: Sequence[str]
    found: Found
    computed: Found
    watch: Watch

    def is_ready(self, unit: str) -> bool:
        """Return whether everything that a unit needs is finished."""
        return all(need in self.found or need in self.computed for need in self.plan.needs(unit))

    def read_by(self, unit: str) -> Found:
        """Return the records of what a unit may read, in the order of the listing."""
        return read_by(self.plan, unit, self.known, self.found, self.computed)


def read_by(plan: Plan, unit: str, known: Manifest, found: Found, more: Found) -> Found:
    """Return the records of what a unit may read, in the order of the listing.

    Args:
        plan: The plan of its study.
        unit: Its id.
        known: What `study.json` says.
        found: The units that were finished when it was listed.
        more: Other finished units; those that it needs are read.
    """
    needed = {need: more[need] for need in plan.needs(unit) if need in more}
    return in_order(known, {**found, **needed})


class Computed(NamedTuple):
    """A unit whose folder is in its place.

    Attributes:
        unit: Its id.
        seconds: How long it took.
        worker: Which worker computed it; empty where there is only one.
    """

    unit: str
    seconds: float
    worker: str = ""


class Executor(ABC):
    """Computes the units of a study somewhere; used in a `with` block, which ends what it started.

    Attributes:
        computes: Whether it computes anything; one that does not leaves the study to others (`folder`).
        n_workers: How many units are computed at the same time.
    """

    computes: ClassVar[bool] = True
    n_workers: int = 1

    def __init__(
        self, *, workers: int | None = None, device: str | None = None, trust_remote_code: bool = False
    ) -> None:
        """Check what is asked for; nothing is started.

        Args:
            workers: How many units are computed at the same time; None for the executor's usual number.
            device: Where each worker puts the model, as for `load_model`.
            trust_remote_code: As for `load_model`.

        Raises:
            BadInput: The number of workers does not fit the executor.
        """
        if workers is not None and workers < 1:
            raise BadInput(f"The number of workers must be at least 1; got {workers}.")
        self.device, self.trust_remote_code = device, trust_remote_code

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return

    @abstractmethod
    def compute(self, stage: Stage) -> Iterator[Computed]:
        """Compute every pending unit of a stage, and yield each when its folder is in its place.

        Raises:
            BadInput: A unit cannot be computed, or a worker was lost too often. Finished units stay.
        """


def made(
    name: str, *, workers: int | None = None, device: str | None = None, trust_remote_code: bool = False
) -> Executor:
    """Return the executor of a name, such as "local" or "ray".

    Raises:
        BadInput: An unknown name, a number of workers that does not fit, or a library that is missing.
    """
    kind: type[Executor] = _registry.load("executor", name)
    return kind(workers=workers, device=device, trust_remote_code=trust_remote_code)


def write_unit(plan: Plan, job: Job, key: str) -> None:
    """Compute a unit into its draft `job.out`, and write its record; one that is skipped keeps no files.

    Args:
        plan: The plan of its study.
        job: The unit.
        key: `records.study_key` of the study.
    """
    try:
        plan.compute(job)
    except Skip as skip:
        for path in job.out.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()
        records.write_record(job.out, key, str(skip))
    else:
        records.write_record(job.out, key)
