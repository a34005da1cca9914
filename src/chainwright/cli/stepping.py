"""Commands on steps: reproduce stepflow."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from chainwright.cli._options import (
    Device,
    Dtype,
    HopCounts,
    ModelName,
    Overwrite,
    Quiet,
    Recompute,
    StudyFolder,
    TestSeeds,
)
from chainwright.cli._shared import Lines, clear_errors, load, print_findings


@clear_errors
def stepflow(
    model: ModelName = "reasoner",
    task: Annotated[
        str | None, typer.Option("--task", "-t", help="A task, several with commas; left out: the model's usual ones.")
    ] = None,
    hops: HopCounts = None,
    n: Annotated[int, typer.Option("-n", help="Problems a task, hop count and seed.")] = 30,
    seeds: TestSeeds = "11,12,13",
    tune_n: Annotated[int, typer.Option(help="Problems a task and hop count to tune on.")] = 24,
    out_folder: StudyFolder = Path("runs/reproduce-stepflow"),
    device: Device = None,
    dtype: Dtype = None,
    overwrite: Overwrite = False,
    recompute: Recompute = False,
    quiet: Quiet = False,
) -> None:
    """Decode the same problems with StepFlow and with self-consistency; goes on where it stopped."""
    from chainwright import prompts
    from chainwright.cli import _parse
    from chainwright.reproduce.stepflow.config import HOPS, ReproduceStepFlowConfig
    from chainwright.reproduce.stepflow.study import ReproduceStepFlow
    from chainwright.studies import Study
    from chainwright.tasks.cells import fit_cells

    rendering = prompts.rendering_for("auto", model)
    usual = HOPS.get(model, HOPS["reasoner"])
    cells = usual if task is None and hops is None else fit_cells(task or ",".join(usual), hops, rendering)
    config = ReproduceStepFlowConfig(
        model=model,
        hops=cells,
        n=n,
        seeds=_parse.parse_seeds(seeds),
        tune_n=tune_n,
        control_layer=2 if model == "reasoner" else None,
        rendering=rendering,
    )
    loaded = load(model, device, dtype, None, False)
    plan = ReproduceStepFlow(loaded.model, loaded.tokenizer, config)
    study = Study.make(out_folder, plan, overwrite=overwrite)
    study.run(None if quiet else Lines(), recompute=recompute)
    print_findings(study)
