"""The command `diagnose`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from chainwright._registry import register
from chainwright.cli._command import ConfigOptions, Values
from chainwright.cli._options import (
    Device,
    HopCounts,
    ModelName,
    Overwrite,
    Quiet,
    Recompute,
    RemoteCode,
    RenderingName,
    ReportFolder,
    Seed,
    TaskNames,
)
from chainwright.cli._shared import say
from chainwright.cli._studies import print_diagnosis, run_diagnosis

if TYPE_CHECKING:
    from chainwright.studies.diagnosis.config import DiagnoseConfig

_CONFIG = "chainwright.studies.diagnosis.config:DiagnoseConfig"
PROBLEMS = ConfigOptions(_CONFIG, "n", "n_contexts")
STEPS = ConfigOptions(_CONFIG, "n_maps")
DECODING = ConfigOptions(_CONFIG, "repair", "temperature", "max_new_tokens", "batch_size")
SOURCE = ConfigOptions(_CONFIG, "adapter", "dtype", "revision")


@register("command", "diagnose")
def diagnose(
    model: ModelName = "reasoner",
    task: TaskNames = "all",
    hops: HopCounts = None,
    problems: Values = PROBLEMS,
    out_folder: ReportFolder = Path("runs/diagnosis"),
    seed: Seed = 0,
    rendering: RenderingName = "auto",
    steps: Annotated[bool, typer.Option("--steps", help="Also make step maps of right and wrong traces.")] = False,
    maps: Values = STEPS,
    plan: Annotated[
        bool, typer.Option("--plan", help="With --steps: print what the step maps will take, and run nothing.")
    ] = False,
    decoding: Values = DECODING,
    source: Values = SOURCE,
    device: Device = None,
    trust_remote_code: RemoteCode = False,
    overwrite: Overwrite = False,
    recompute: Recompute = False,
    quiet: Quiet = False,
) -> None:
    """Find where a model's chains break, which kinds of errors they make, and which heads push the wrong token."""
    from chainwright._errors import BadInput
    from chainwright.prompts.rendering import rendering_for
    from chainwright.studies.diagnosis.config import USUAL, DiagnoseConfig
    from chainwright.tasks.cells import choose_cells

    if plan and not steps:
        raise BadInput("--plan estimates the step maps, which are not requested; add --steps.")
    chosen = rendering_for(rendering, model)
    config = DiagnoseConfig(
        model=model,
        hops=choose_cells(task, hops, chosen),
        seeds=(seed,),
        rendering=chosen,
        instruments=(*USUAL, *(["steps"] if steps else [])),
        **problems,
        **maps,
        **decoding,
        **source,
    )
    if plan:
        _print_plan(config, device, trust_remote_code)
        return
    run_diagnosis(config, out_folder, device, trust_remote_code, overwrite=overwrite, recompute=recompute, quiet=quiet)
    print_diagnosis(out_folder)


def _print_plan(config: DiagnoseConfig, device: str | None, trust_remote_code: bool) -> None:
    """Print what the step maps will take; no weights are read and nothing is written."""
    from chainwright.models.load import empty_model, load_tokenizer
    from chainwright.studies.diagnosis.step_maps import plan_steps

    source: dict[str, Any] = {"revision": config.revision, "trust_remote_code": trust_remote_code}
    tokenizer = load_tokenizer(config.model, adapter=config.adapter, **source)
    estimate = plan_steps(empty_model(config.model, dtype=config.dtype, **source), tokenizer, config, device)
    say(f"Step maps, if the responses are as long as the gold chains: {estimate}")
