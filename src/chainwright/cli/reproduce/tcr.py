"""The command `reproduce tcr`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from chainwright._registry import register
from chainwright.cli._asking import ASKING, asking_of
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
from chainwright.cli._results import ResultsFolder, command_line, write_result
from chainwright.cli._shared import say
from chainwright.cli._source import SOURCE, load
from chainwright.cli._studies import print_findings, watch

_CONFIG = "chainwright.reproduce.tcr.config:ReproduceTCRConfig"
PROBLEMS = ConfigOptions(_CONFIG, "n", "seeds", flags={"n": "-n"})
FIT = ConfigOptions(
    _CONFIG, "fit_n", "fit_seed", "decision", "detector", "positions", "n_contexts", "n_lessons",
    flags={"n_contexts": "--contexts", "n_lessons": "--lessons"},
)  # fmt: skip
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
        str | None,
        typer.Option(
            "--also",
            help="Further repairs to decode with, separated by commas: names, folders, 'stepflow', or 'A+B' for both.",
        ),
    ] = None,
    out_folder: StudyFolder = Path("runs/reproduce-tcr"),
    fit: Values = FIT,
    fit_hops: Annotated[
        str | None,
        typer.Option(
            "--fit-hops",
            help="Hop counts to fit on, as for --hops; 'parity=8;mdm=2' also names the tasks (default: those that each "
            "of five tasks states).",
        ),
    ] = None,
    rendering: RenderingName = "auto",
    asking: Values = ASKING,
    decoding: Values = DECODING,
    source: Values = SOURCE,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer ways of decoding, and one kind of knockout.")] = False,
    plan: Annotated[bool, typer.Option("--plan", help="Print the expected memory and hours, and run nothing.")] = False,
    overwrite: Overwrite = False,
    recompute: Recompute = False,
    results: ResultsFolder = None,
    quiet: Quiet = False,
) -> None:
    """Decode the same problems in every way of the TCR paper and compare what each gains."""
    from chainwright.prompts.asking import Asking
    from chainwright.prompts.rendering import rendering_for
    from chainwright.reproduce.tcr import config as settings
    from chainwright.reproduce.tcr.estimate import estimate
    from chainwright.reproduce.tcr.records import records_of
    from chainwright.reproduce.tcr.study import ReproduceTCR
    from chainwright.studies import Study
    from chainwright.tasks.cells import fit_cells

    chosen, how = rendering_for(rendering, model), asking_of(asking)
    variants = settings.VARIANTS[:1] if quick else settings.VARIANTS
    config = settings.ReproduceTCRConfig(
        model=model,
        hops=fit_cells(task, hops, chosen),
        ways=tuple(w.strip() for w in ways.split(";")) if ways else settings.QUICK if quick else settings.WAYS,
        variants=variants if chosen == "short" else (),
        fit_hops=fit_cells(_tasks_to_fit(fit_hops), fit_hops, chosen),
        rendering=chosen,
        also=tuple(name.strip() for name in also.split(",")) if also else (),
        asking=None if how == Asking() else how,
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
    if results is not None:
        for fields in records_of(study, command_line(leave_out=("--results", "--out", "-o"))):
            write_result(results, **fields)


def _tasks_to_fit(hops: str | None) -> str:
    """Return the tasks that hops such as "parity=8;mdm=2" name, or the usual ones, separated by commas."""
    from chainwright.repair.tcr.config import FitProblems

    if hops is None or "=" not in hops:
        return FitProblems().task
    return ",".join(part.partition("=")[0] for part in hops.split(";"))
