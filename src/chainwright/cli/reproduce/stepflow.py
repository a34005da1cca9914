"""The command `reproduce stepflow`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from chainwright._registry import register
from chainwright.cli import _parse
from chainwright.cli._command import ConfigOptions, Values
from chainwright.cli._options import (
    Adapter,
    Changes,
    Device,
    Dtype,
    HopCounts,
    ModelName,
    Overwrite,
    Quiet,
    Recompute,
    StudyFolder,
)
from chainwright.cli._results import ResultsFolder, command_line, write_result
from chainwright.cli._source import Source, load
from chainwright.cli._studies import print_findings, watch

PROBLEMS = ConfigOptions(
    "chainwright.reproduce.stepflow.config:ReproduceStepFlowConfig",
    "n",
    "seeds",
    "tune_n",
    flags={"n": "-n"},
    helps={
        "n": "Problems per task, hop count and seed.",
        "tune_n": "Problems per task and hop count to tune on.",
    },
)


@register("command", "reproduce.stepflow")
def stepflow(
    model: ModelName = "reasoner",
    task: Annotated[
        str | None,
        typer.Option("--task", "-t", help="A task, or several separated by commas (default: the model's usual ones)."),
    ] = None,
    hops: HopCounts = None,
    problems: Values = PROBLEMS,
    changes: Changes = None,
    out_folder: StudyFolder = Path("runs/reproduce-stepflow"),
    adapter: Adapter = None,
    device: Device = None,
    dtype: Dtype = None,
    overwrite: Overwrite = False,
    recompute: Recompute = False,
    results: ResultsFolder = None,
    quiet: Quiet = False,
) -> None:
    """Decode the same problems with StepFlow and with self-consistency, and compare what each gains."""
    from chainwright.prompts.rendering import rendering_for
    from chainwright.reproduce.stepflow.config import HOPS, ReproduceStepFlowConfig
    from chainwright.reproduce.stepflow.records import records_of
    from chainwright.reproduce.stepflow.study import ReproduceStepFlow
    from chainwright.studies import Study
    from chainwright.tasks.cells import fit_cells

    rendering = rendering_for("auto", model)
    usual = HOPS.get(model, HOPS["reasoner"])
    asked = ReproduceStepFlowConfig(
        model=model,
        hops=usual if task is None and hops is None else fit_cells(task or ",".join(usual), hops, rendering),
        control_layer=2 if model == "reasoner" else None,
        rendering=rendering,
        **problems,
    )
    config = _parse.changed(asked, changes or [])
    loaded = load(model, Source(adapter=adapter, device=device, dtype=dtype).record())
    study = Study.make(out_folder, ReproduceStepFlow(loaded.model, loaded.tokenizer, config), overwrite=overwrite)
    study.run(watch(quiet), recompute=recompute)
    print_findings(study)
    for fields in records_of(study, command_line()) if results is not None else []:
        write_result(results, **fields)
