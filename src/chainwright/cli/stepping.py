"""Commands on steps: reproduce stepflow."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from chainwright.cli._shared import (
    Device,
    Dtype,
    Lines,
    ModelName,
    Overwrite,
    Quiet,
    clear_errors,
    load,
    print_findings,
)


@clear_errors
def stepflow(
    model: ModelName = "reasoner",
    n: Annotated[int, typer.Option("-n", help="Problems a task and seed.")] = 15,
    out_folder: Annotated[Path, typer.Option("--out", "-o", help="Folder of the study.")] = Path(
        "runs/reproduce-stepflow"
    ),
    device: Device = None,
    dtype: Dtype = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Decode the same problems with StepFlow and with self-consistency; goes on where it stopped."""
    from chainwright import _choices
    from chainwright.reproduce.stepflow import ReproduceStepFlow, ReproduceStepFlowConfig
    from chainwright.studies import Study

    config = ReproduceStepFlowConfig(model, n=n, rendering=_choices.rendering_for("auto", model))
    loaded = load(model, device, dtype, None, False)
    plan = ReproduceStepFlow(loaded.model, loaded.tokenizer, config)
    study = Study.make(out_folder, plan, overwrite=overwrite)
    study.run(None if quiet else Lines())
    print_findings(study)
