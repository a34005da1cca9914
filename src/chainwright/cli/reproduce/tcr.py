"""The command `reproduce tcr`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from chainwright._registry import register
from chainwright.cli._command import ConfigOptions, Values
from chainwright.cli._options import (
    HopCounts,
    ModelName,
    Overwrite,
    Quiet,
    Recompute,
    RenderingName,
    StudyFolder,
    TaskNames,
)
from chainwright.cli._shared import say
from chainwright.cli._source import SOURCE, load
from chainwright.cli._studies import print_findings, watch

_CONFIG = "chainwright.reproduce.tcr.config:ReproduceTCRConfig"
PROBLEMS = ConfigOptions(_CONFIG, "n", "seeds", flags={"n": "-n"})
FIT = ConfigOptions(_CONFIG, "fit_n", "decision")
DECODING = ConfigOptions(_CONFIG, "repair", "temperature", "max_new_tokens", "batch_size", flags={"repair": "--repair"})


@register("command", "reproduce.tcr")
def tcr(
    model: ModelName = "reasoner",
    task: TaskNames = "all",
    hops: HopCounts = None,
    problems: Values = PROBLEMS,
    ways: Annotated[
        str | None, typer.Option("--ways", help="Ways of decoding, separated by semicolons (default: all).")
    ] = None,
    also: Annotated[
        str | None, typer.Option("--also", help="Further TCR repairs to decode with, separated by commas.")
    ] = None,
    out_folder: StudyFolder = Path("runs/reproduce-tcr"),
    fit: Values = FIT,
    rendering: RenderingName = "auto",
    decoding: Values = DECODING,
    source: Values = SOURCE,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer ways of decoding, and one kind of knockout.")] = False,
    plan: Annotated[bool, typer.Option("--plan", help="Print the expected memory and hours, and run nothing.")] = False,
    overwrite: Overwrite = False,
    recompute: Recompute = False,
    quiet: Quiet = False,
) -> None:
    """Decode the same problems in every way of the TCR paper and compare what each gains."""
    from chainwright.prompts.rendering import rendering_for
    from chainwright.repair.tcr.config import FitProblems
    from chainwright.reproduce.tcr import config as settings
    from chainwright.reproduce.tcr.estimate import estimate
    from chainwright.reproduce.tcr.study import ReproduceTCR
    from chainwright.studies import Study
    from chainwright.tasks.cells import fit_cells

    chosen = rendering_for(rendering, model)
    variants = settings.VARIANTS[:1] if quick else settings.VARIANTS
    config = settings.ReproduceTCRConfig(
        model=model,
        hops=fit_cells(task, hops, chosen),
        ways=tuple(w.strip() for w in ways.split(";")) if ways else settings.ways_for(chosen, quick=quick),
        variants=variants if chosen == "short" else (),
        fit_hops=fit_cells(FitProblems().task, None, chosen),
        rendering=chosen,
        also=tuple(name.strip() for name in also.split(",")) if also else (),
        **problems,
        **fit,
        **decoding,
    )
    if plan:
        say(estimate(config, source["dtype"], source["revision"], source["trust_remote_code"]).summary())
        return
    loaded = load(model, source)
    study = Study.make(out_folder, ReproduceTCR(loaded.model, loaded.tokenizer, config), overwrite=overwrite)
    study.run(watch(quiet), recompute=recompute)
    print_findings(study)
