"""The usual executor: one unit after the other, in this process."""

from __future__ import annotations

import time
from collections.abc import Iterator

from chainwright._errors import BadInput
from chainwright._files import atomic_folder
from chainwright._registry import register
from chainwright.studies.executors.base import Computed, Executor, Stage, write_unit
from chainwright.studies.plan import Job, Results


@register("executor", "local")
class Local(Executor):
    """Computes one unit after the other in this process."""

    def __init__(
        self, *, workers: int | None = None, device: str | None = None, trust_remote_code: bool = False
    ) -> None:
        """Take no more than one worker.

        Raises:
            BadInput: More than one worker is asked for.
        """
        super().__init__(workers=workers, device=device, trust_remote_code=trust_remote_code)
        if workers is not None and workers > 1:
            raise BadInput(
                f"The executor 'local' computes one unit at a time, and {workers} workers were asked for; use "
                "--executor ray, or start so many processes of `chainwright study work FOLDER`."
            )

    def compute(self, stage: Stage) -> Iterator[Computed]:
        """Compute the units in their order."""
        for unit in stage.pending:
            if not stage.is_ready(unit):
                raise ValueError(f"A plan lists the unit {unit!r} before one that it needs.")
            done = Results(stage.folder, stage.read_by(unit))
            stage.watch.started(stage.plan.title(unit))
            start = time.monotonic()
            with atomic_folder(stage.folder / unit) as draft:
                write_unit(stage.plan, Job(unit, draft, done, stage.watch.ticked), stage.known.key)
            yield Computed(unit, time.monotonic() - start)
