"""Units on Ray: each actor makes the plan once, which loads the model, and computes one unit at a time.

1. The driver, which holds the study's lock, lists the units and gives each to a free actor, with the records of what
   it may read. The folder is shared: an actor reads those results there, and computes into a draft there.
2. Only the name of the draft and the seconds travel back. The driver gives the draft its place, so an actor that was
   cut off, or that outlives its driver, puts nothing into the study.
3. Ray starts an actor that died again, which loads the model again, and gives it the unit again, four times at most.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from chainwright._errors import BadInput
from chainwright._files import draft_of, put_in_place, remove_leftovers, seal
from chainwright._registry import register
from chainwright.studies import manifest, records
from chainwright.studies.executors.base import Computed, Executor, Stage, write_unit
from chainwright.studies.plan import Job, Plan, Results

_RETRIES = 3


@register("executor", "ray")
class OnRay(Executor):
    """Computes units in Ray actors: on this machine, or on the cluster that RAY_ADDRESS or `ray.init` names."""

    def __init__(
        self, *, workers: int | None = None, device: str | None = None, trust_remote_code: bool = False
    ) -> None:
        """Take the number of actors; None for two. Each reserves a CPU, and a GPU unless `device` says otherwise.

        Raises:
            BadInput: Ray is missing, or there is to be less than one actor.
        """
        super().__init__(workers=workers, device=device, trust_remote_code=trust_remote_code)
        try:
            import ray
        except ImportError as error:
            raise BadInput(
                "The executor 'ray' needs the library ray; install it with pip install \"chainwright[ray]\", or start "
                "processes of `chainwright study work FOLDER`, which need nothing else."
            ) from error
        self._ray: Any = ray
        self.n_workers = workers or 2
        self._actors: list[Any] = []
        self._folder: Path | None = None
        self._has_started = False

    def compute(self, stage: Stage) -> Iterator[Computed]:
        """Compute the units, each on the first actor that is free once what it needs is finished."""
        ray = self._ray
        free = self._start(stage)
        waiting: list[str] = list(stage.pending)
        running: dict[Any, tuple[Any, str]] = {}
        while waiting or running:
            ready = [unit for unit in waiting if stage.is_ready(unit)]
            if not ready and not running:
                raise ValueError(f"A plan lists the unit {waiting[0]!r}, which needs one that it does not list.")
            for unit in ready[: len(free)]:
                waiting.remove(unit)
                stage.watch.started(stage.plan.title(unit))
                actor = free.pop(0)
                running[actor.compute.remote(unit, stage.read_by(unit))] = (actor, unit)
            (first, *_), _ = ray.wait(list(running), num_returns=1)
            actor, unit = running.pop(first)
            draft, seconds, worker = self._get(first, f"unit {unit}")
            free.append(actor)
            yield self._placed(stage, unit, Path(draft), Computed(unit, seconds, worker))

    def _placed(self, stage: Stage, unit: str, draft: Path, computed: Computed) -> Computed:
        if not draft.is_dir():
            raise BadInput(
                f"The worker {computed.worker} has computed unit {unit}, but what it wrote is not in {stage.folder} "
                "here; put the study on a file system that all machines share."
            )
        put_in_place(draft, stage.folder / unit)
        return computed

    def _start(self, stage: Stage) -> list[Any]:
        """Return the actors; the first call starts them, and has each load the model and say whether it fits."""
        ray = self._ray
        if not self._actors:
            if not ray.is_initialized():
                self._connect()
            needed = {"num_cpus": 1, "num_gpus": 1 if self._takes_gpus() else 0}
            self._check_room(needed)
            kind = ray.remote(max_restarts=-1, max_task_retries=_RETRIES)(Worker).options(**needed)
            where = (os.getcwd(), str(stage.folder.resolve()), type(stage.plan), self.device, self.trust_remote_code)
            self._folder = stage.folder
            self._actors = [kind.remote(*where) for _ in range(self.n_workers)]
            loading = [actor.load.remote() for actor in self._actors]
            ray.wait(loading, num_returns=len(loading))  # ending an actor that is about to start would hold its CPU
            for reference in loading:
                self._get(reference, "its model")
        return list(self._actors)

    def _connect(self) -> None:
        address = os.environ.get("RAY_ADDRESS")
        options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
        if address is None:
            options |= {"num_cpus": max(self.n_workers, os.cpu_count() or 1), "include_dashboard": False}
        try:
            self._ray.init(address, **options)
        except ConnectionError as error:
            first = (str(error).splitlines() or ["no answer"])[0].rstrip(".")
            raise BadInput(
                f"There is no Ray cluster at RAY_ADDRESS={address}: {first}. Start one with `ray start --head`, or "
                "unset RAY_ADDRESS to use this machine."
            ) from error
        self._has_started = True

    def _takes_gpus(self) -> bool:
        if self.device is not None:
            return self.device.startswith("cuda")
        return bool(self._ray.cluster_resources().get("GPU"))

    def _check_room(self, needed: Mapping[str, int]) -> None:
        there = self._ray.cluster_resources()
        for name, each in (("CPU", needed["num_cpus"]), ("GPU", needed["num_gpus"])):
            if (room := int(there.get(name, 0))) < each * self.n_workers:
                raise BadInput(
                    f"The number of workers is {self.n_workers}, which needs as many {name}s, and Ray has {room}; ask "
                    "for fewer workers, or add machines to the cluster."
                )

    def _get(self, reference: Any, what: str) -> Any:
        errors = self._ray.exceptions
        try:
            return self._ray.get(reference)
        except errors.RayTaskError as error:
            if isinstance(error.cause, BadInput):
                raise error.cause from error
            raise
        except errors.RayActorError as error:
            raise BadInput(
                f"A worker on Ray died {_RETRIES + 1} times over {what}, perhaps for lack of memory; finished units "
                "stay: use fewer workers or a smaller --batch-size, and run the same command again."
            ) from error

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for actor in self._actors:
            self._ray.kill(actor)
        self._actors = []
        if self._folder is not None:
            remove_leftovers(self._folder)  # the drafts of actors that died
        if self._has_started:
            self._ray.shutdown()
            self._has_started = False


class Worker:
    """An actor: makes the plan of a study when it is first needed, and computes units into drafts."""

    def __init__(self, here: str, folder: str, kind: type[Plan], device: str | None, trust_remote_code: bool):
        """Only take note of what to load, so that a mistake reaches the driver as the answer to `load`."""
        if Path(here).is_dir():  # where the driver is, so that relative paths of models and problems lead to the same
            os.chdir(here)
        self.folder, self.kind, self.device, self.trust = Path(folder), kind, device, trust_remote_code
        self.name = f"{socket.gethostname()}-{os.getpid()}"
        self._plan: Plan | None = None
        self._key = ""

    def load(self) -> None:
        """Make the plan, which loads the model, unless that was done.

        Raises:
            BadInput: The folder is not there on this machine, the model cannot be loaded, or it is another one.
        """
        if self._plan is not None:
            return
        if not (self.folder / manifest.STUDY).is_file():
            raise BadInput(
                f"The worker {self.name} does not see {self.folder}; put the study on a file system that all machines "
                "share."
            )
        known = manifest.read(self.folder)
        asked = known.replace(again=known.command(self.folder))
        plan = self.kind.resumed(asked, device=self.device, trust_remote_code=self.trust)
        manifest.check_worker(self.folder, known, manifest.of_plan(plan), self.name)
        self._plan, self._key = plan, known.key

    def compute(self, unit: str, found: dict[str, records.Checked]) -> tuple[str, float, str]:
        """Compute a unit, and return its draft, the seconds it took and this worker's name."""
        self.load()
        assert self._plan is not None
        start = time.monotonic()
        draft = draft_of(self.folder / unit)
        done = Results(self.folder, found)
        write_unit(self._plan, Job(unit, draft, done, lambda done, total: None), self._key)
        seal(draft)
        return str(draft), time.monotonic() - start, self.name
