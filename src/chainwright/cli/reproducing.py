"""Commands that reproduce the papers' experiments: reproduce tcr."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from chainwright.cli._options import (
    BatchSize,
    Device,
    Dtype,
    HopCounts,
    MaxNewTokens,
    ModelName,
    NProblems,
    Overwrite,
    Quiet,
    Recompute,
    RemoteCode,
    RenderingName,
    RepairName,
    Revision,
    StudyFolder,
    TaskNames,
    Temperature,
    TestSeeds,
)
from chainwright.cli._shared import Lines, clear_errors, load, out, print_findings


@clear_errors
def tcr(
    model: ModelName = "reasoner",
    repair: RepairName = None,
    task: TaskNames = "all",
    hops: HopCounts = None,
    n: NProblems = 8,
    seeds: TestSeeds = "11,12,13",
    ways: Annotated[str | None, typer.Option(help="Ways of decoding, with semicolons; left out: all.")] = None,
    also: Annotated[str | None, typer.Option(help="Further TCR repairs to decode with, with commas.")] = None,
    out_folder: StudyFolder = Path("runs/reproduce-tcr"),
    fit_n: Annotated[int, typer.Option(help="Problems a task and hop count to fit on, where no repair is given.")] = 80,
    decision: Annotated[
        str, typer.Option(help="How the repair that is fitted decides: 'verify', or 'vote' as in the paper.")
    ] = "verify",
    rendering: RenderingName = "auto",
    temperature: Temperature = 0.0,
    max_new_tokens: MaxNewTokens = None,
    batch_size: BatchSize = None,
    device: Device = None,
    dtype: Dtype = None,
    revision: Revision = None,
    trust_remote_code: RemoteCode = False,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer ways of decoding, one kind of knockout.")] = False,
    plan: Annotated[bool, typer.Option("--plan", help="Print expected memory and hours, and run nothing.")] = False,
    overwrite: Overwrite = False,
    recompute: Recompute = False,
    quiet: Quiet = False,
) -> None:
    """Decode the same problems in every way of the TCR paper, and print what each gains; goes on where it stopped."""
    from chainwright import prompts
    from chainwright.cli import _parse
    from chainwright.reproduce.tcr import config as tcr
    from chainwright.reproduce.tcr import estimate as _plan
    from chainwright.reproduce.tcr.study import ReproduceTCR
    from chainwright.studies import Study
    from chainwright.tasks.cells import fit_cells

    chosen = prompts.rendering_for(rendering, model)
    cells = fit_cells(task, hops, chosen)
    config = tcr.ReproduceTCRConfig(
        model=model,
        hops=cells,
        n=n,
        seeds=_parse.parse_seeds(seeds),
        ways=[w.strip() for w in ways.split(";")] if ways else tcr.ways_for(chosen, quick=quick),
        variants=(tcr.VARIANTS[:1] if quick else tcr.VARIANTS) if chosen == "short" else (),
        fit_hops=fit_cells("parity,mdm,llc,clf,moas", None, chosen),
        fit_n=fit_n,
        decision=decision,  # type: ignore[arg-type]
        rendering=chosen,
        repair=repair,
        also=[name.strip() for name in also.split(",")] if also else (),
        temperature=temperature,
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
    )
    if plan:
        out.print(
            _plan.estimate(config, dtype, revision, trust_remote_code).summary(),
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
        return
    loaded = load(model, device, dtype, revision, trust_remote_code)
    design = ReproduceTCR(loaded.model, loaded.tokenizer, config)
    study = Study.make(out_folder, design, overwrite=overwrite)
    study.run(None if quiet else Lines(), recompute=recompute)
    print_findings(study)
