"""What is planned for unless the user says otherwise: what the commands would ask of the model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from chainwright.diagnose.heads.role_sweep import LARGE
from chainwright.planning.devices import Device
from chainwright.planning.jobs import Asked
from chainwright.planning.shape import Shape
from chainwright.planning.workload import Workload, texts_of
from chainwright.prompts.rendering import rendering_for
from chainwright.repair.tcr.config import FitProblems
from chainwright.studies.diagnosis.config import DiagnoseConfig
from chainwright.studies.diagnosis.usual import SMALLER
from chainwright.tasks.cells import choose_cells, fit_cells


def usual_asked(
    shape: Shape,
    on: Device,
    *,
    task: str = "all",
    hops: str | None = None,
    n: int | None = None,
    answer: int | None = None,
    map_tokens: int,
) -> Asked:
    """Return what `diagnose`, `pivots` and `fit tcr` would ask of a model.

    Args:
        shape: The model; its name decides how problems are worded.
        on: The device; a processor is asked less of a large model.
        task: As for `choose_cells`.
        hops: As for `choose_cells`.
        n: Problems per task and hop count.
        answer: Tokens of an answer; None takes those of the gold chain.
        map_tokens: Tokens of a trace with a step map.

    Raises:
        BadInput: An unknown task, or hops that it cannot have.
    """
    rendering = rendering_for("auto", shape.name)
    cells = choose_cells(task, hops, rendering)
    smaller: Mapping[str, Any] = SMALLER if on.waits and shape.in_layers >= LARGE else {}
    sizes = {**smaller, **({} if n is None else {"n": n})}
    diagnosis = DiagnoseConfig(model=shape.name, hops=cells, rendering=rendering, **sizes)
    fit = FitProblems()
    work = Workload(
        texts_of(cells, diagnosis.n, rendering, answer),
        texts_of(fit_cells(fit.task, None, rendering), fit.n, rendering, answer),
    )
    return Asked(work, diagnosis, map_tokens)
