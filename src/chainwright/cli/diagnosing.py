"""Commands that find out why chains break: diagnose, report, demo."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

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
    ReportFolder,
    Revision,
    Seed,
    TaskNames,
    Temperature,
)
from chainwright.cli._shared import clear_errors, load, out, plain

if TYPE_CHECKING:
    from chainwright.studies.diagnosis.run import DiagnoseConfig


@clear_errors
def diagnose(
    model: ModelName = "reasoner",
    task: TaskNames = "all",
    hops: HopCounts = None,
    n: NProblems = 40,
    out_folder: ReportFolder = Path("runs/diagnosis"),
    seed: Seed = 0,
    rendering: RenderingName = "auto",
    n_contexts: Annotated[int, typer.Option(help="Contexts of each kind that heads are located on.")] = 16,
    steps: Annotated[bool, typer.Option("--steps", help="Also make step maps of right and wrong traces.")] = False,
    n_maps: Annotated[int, typer.Option(help="With --steps: right and wrong traces, each, a task and hop count.")] = 8,
    plan: Annotated[bool, typer.Option("--plan", help="With --steps: say what the maps will take, and stop.")] = False,
    repair: RepairName = None,
    temperature: Temperature = 0.0,
    max_new_tokens: MaxNewTokens = None,
    batch_size: BatchSize = None,
    device: Device = None,
    dtype: Dtype = None,
    revision: Revision = None,
    trust_remote_code: RemoteCode = False,
    overwrite: Overwrite = False,
    recompute: Recompute = False,
    quiet: Quiet = False,
) -> None:
    """Find where a model's chains break, of which kind the errors are, and which heads push the wrong token."""
    from chainwright import prompts
    from chainwright._errors import BadInput
    from chainwright.studies.diagnosis import config as config_defaults
    from chainwright.studies.diagnosis import run as study
    from chainwright.tasks.cells import choose_cells

    if plan and not steps:
        raise BadInput("--plan estimates the step maps, which were not asked for; add --steps.")
    chosen = prompts.rendering_for(rendering, model)
    config = study.DiagnoseConfig(
        model=model,
        hops=choose_cells(task, hops, chosen),
        n=n,
        seeds=(seed,),
        rendering=chosen,
        n_contexts=n_contexts,
        instruments=(*config_defaults.USUAL, *(["steps"] if steps else [])),
        n_maps=n_maps,
        repair=repair,
        temperature=temperature,
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        dtype=dtype,
        revision=revision,
    )
    if plan:
        print_plan(config, device, trust_remote_code)
        return
    run_study(config, out_folder, device, trust_remote_code, overwrite=overwrite, recompute=recompute, quiet=quiet)
    print_summary(study.open_diagnosis(out_folder).summary(), out_folder / "report.html")


def print_plan(config: DiagnoseConfig, device: str | None, trust_remote_code: bool) -> None:
    """Print what the step maps will take; no weights are read and nothing is written."""
    from chainwright.models.load import empty_model, load_tokenizer
    from chainwright.studies.diagnosis.step_maps import plan_steps

    source: dict[str, Any] = {"revision": config.revision, "trust_remote_code": trust_remote_code}
    tokenizer = load_tokenizer(config.model, **source)
    found = plan_steps(empty_model(config.model, dtype=config.dtype, **source), tokenizer, config, device)
    out.print(f"Step maps, if the responses are as long as the gold chains: {found}", highlight=False, soft_wrap=True)


def run_study(
    config: DiagnoseConfig,
    folder: Path,
    device: str | None = None,
    trust_remote_code: bool = False,
    *,
    overwrite: bool = False,
    recompute: bool = False,
    quiet: bool = False,
) -> None:
    """Run a diagnosis to its end and write its report, if it has one and that is not there."""
    from chainwright._errors import BadInput
    from chainwright.report import write_report
    from chainwright.studies.diagnosis import run as study

    loaded = load(config.model, device, config.dtype, config.revision, trust_remote_code)
    study.run_study(
        loaded.model, loaded.tokenizer, config, folder, overwrite=overwrite, recompute=recompute, progress=not quiet
    )
    path = folder / "report.html"
    if path.exists() or not study.has_report(config):
        return
    try:
        write_report(study.open_diagnosis(folder), path)
    except BadInput as error:
        raise BadInput(
            f"The study is finished, but not its report. {error} `chainwright report {folder}` writes the report."
        ) from error


@clear_errors
def report(
    folder: Annotated[Path, typer.Argument(help="The folder of a finished study.")],
    out_file: Annotated[Path | None, typer.Option("--out", "-o", help="Left out: in the folder.")] = None,
) -> None:
    """Write the HTML report of a finished study again: a diagnosis or a reproduction."""
    from chainwright.report.study import summary_of, write_study_report
    from chainwright.studies import Study

    path = write_study_report(folder, out_file)
    print_summary(summary_of(Study.open(folder)), path)


@clear_errors
def demo(
    out_folder: ReportFolder = Path("runs/demo"),
    n: NProblems = 40,
    overwrite: Overwrite = False,
) -> None:
    """Diagnose the bundled reasoner on all seven tasks, decode again with its repair, and write the report."""
    from chainwright.studies.diagnosis import run as study
    from chainwright.tasks.cells import choose_cells

    config = study.DiagnoseConfig(model="reasoner", hops=choose_cells("all", None, "short"), n=n, repair="tcr-reasoner")
    run_study(config, out_folder, "cpu", overwrite=overwrite)
    print_summary(study.open_diagnosis(out_folder).summary(), out_folder / "report.html")


def print_summary(lines: Sequence[str], path: Path) -> None:
    """Print what a study found in a few lines, and where the report is."""
    out.print()
    for line in lines:
        out.print(plain(line), highlight=False, soft_wrap=True)
    out.print(f"\nReport: {path}", soft_wrap=True, highlight=False)
