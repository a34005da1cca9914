"""Commands that find out why chains break: diagnose, report, demo."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from chainwright.cli._shared import (
    BatchSize,
    Device,
    Dtype,
    HopCounts,
    MaxNewTokens,
    ModelName,
    NProblems,
    Overwrite,
    Quiet,
    RemoteCode,
    RenderingName,
    Revision,
    Seed,
    TaskNames,
    Temperature,
    clear_errors,
    err,
    load,
    out,
    plain,
)

if TYPE_CHECKING:
    from chainwright.models import LoadedModel
    from chainwright.study import DiagnoseConfig, Diagnosis


@clear_errors
def diagnose(
    model: ModelName = "reasoner",
    task: TaskNames = "all",
    hops: HopCounts = None,
    n: NProblems = 40,
    out_folder: Annotated[Path, typer.Option("--out", "-o", help="Folder for traces, findings and report.")] = Path(
        "runs/diagnosis"
    ),
    seed: Seed = 0,
    rendering: RenderingName = "auto",
    n_contexts: Annotated[int, typer.Option(help="Contexts of each kind that heads are located on.")] = 16,
    temperature: Temperature = 0.0,
    max_new_tokens: MaxNewTokens = None,
    batch_size: BatchSize = None,
    device: Device = None,
    dtype: Dtype = None,
    revision: Revision = None,
    trust_remote_code: RemoteCode = False,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Find where a model's chains break, of which kind the errors are, and which heads push the wrong token."""
    from chainwright import _choices, study

    chosen = _choices.rendering_for(rendering, model)
    config = study.DiagnoseConfig(
        model=model,
        hops=_choices.choose_cells(task, hops, chosen),
        n=n,
        seed=seed,
        rendering=chosen,
        n_contexts=n_contexts,
        temperature=temperature,
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
    )
    loaded = load(model, device, dtype, revision, trust_remote_code)
    _diagnose(loaded, config, out_folder, overwrite, quiet)


def _diagnose(loaded: LoadedModel, config: DiagnoseConfig, folder: Path, overwrite: bool, quiet: bool) -> None:
    from chainwright import study
    from chainwright.report import write_report

    found = study.run_diagnosis(
        loaded.model,
        loaded.tokenizer,
        config,
        folder,
        overwrite=overwrite,
        progress=not quiet,
        say=(lambda line: None) if quiet else (lambda line: err.print(line, markup=False, highlight=False)),
    )
    path = write_report(found, folder / "report.html")
    _print_summary(found, path)


@clear_errors
def report(
    folder: Annotated[Path, typer.Argument(help="The folder of a finished diagnosis.")],
    out_file: Annotated[Path | None, typer.Option("--out", "-o", help="Left out: in the folder.")] = None,
) -> None:
    """Write the HTML report of a finished diagnosis again."""
    from chainwright import study
    from chainwright.report import write_report

    found = study.open_diagnosis(folder)
    _print_summary(found, write_report(found, out_file or folder / "report.html"))


@clear_errors
def demo(
    out_folder: Annotated[Path, typer.Option("--out", "-o", help="Folder for traces, findings and report.")] = Path(
        "runs/demo"
    ),
    n: NProblems = 40,
    overwrite: Overwrite = False,
) -> None:
    """Diagnose the bundled reasoner on all seven tasks and write the report."""
    from chainwright import _choices, study

    config = study.DiagnoseConfig(model="reasoner", hops=_choices.REASONER_HOPS, n=n)
    _diagnose(load("reasoner", "cpu", None, None, False), config, out_folder, overwrite, quiet=False)


def _print_summary(found: Diagnosis, path: Path) -> None:
    out.print()
    for line in found.summary():
        out.print(plain(line), highlight=False, soft_wrap=True)
    out.print(f"\nReport: {path}", soft_wrap=True, highlight=False)
