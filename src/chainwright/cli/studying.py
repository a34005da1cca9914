"""Commands on studies: run, status, show, diff."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from chainwright.cli._options import Device, Overwrite, Quiet, Recompute, RemoteCode
from chainwright.cli._shared import Lines, clear_errors, out, plain, print_accuracy, print_findings
from chainwright.cli.diagnosing import print_summary, run_study

if TYPE_CHECKING:
    from chainwright.studies import Results, Status
    from chainwright.studies.diagnosis.diff import CellDifference, StudyDifference

Folder = Annotated[Path, typer.Argument(help="The folder of a study.")]


@clear_errors
def run(
    what: Annotated[Path, typer.Argument(help="A study file (TOML), or the folder of a study to go on with.")],
    out_folder: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder of the study; left out: runs/ and the file's name.")
    ] = None,
    device: Device = None,
    trust_remote_code: RemoteCode = False,
    overwrite: Overwrite = False,
    recompute: Recompute = False,
    quiet: Quiet = False,
) -> None:
    """Run a study to its end: a new one, or one that was stopped."""
    from chainwright._errors import BadInput
    from chainwright.studies import Study
    from chainwright.studies.diagnosis import run as study
    from chainwright.studies.diagnosis.plan import KIND
    from chainwright.studies.diagnosis.toml import read_study_file

    if what.is_dir():
        if out_folder is not None:
            raise BadInput(f"{what} is the folder of a study, which goes on where it is; leave --out away.")
        if Study.open(what).manifest.kind != KIND:
            _run_other(what, device, trust_remote_code, overwrite=overwrite, recompute=recompute, quiet=quiet)
            return
        config, folder = study.study_config(what), what
    else:
        config, folder = read_study_file(what), out_folder or Path("runs") / what.stem
    run_study(config, folder, device, trust_remote_code, overwrite=overwrite, recompute=recompute, quiet=quiet)
    if study.has_report(config):
        print_summary(study.open_diagnosis(folder).summary(), folder / "report.html")
        out.print(f"More: chainwright study show {folder}", soft_wrap=True, highlight=False)
    else:
        _show(folder)


def _run_other(
    folder: Path, device: str | None, trust_remote_code: bool, *, overwrite: bool, recompute: bool, quiet: bool
) -> None:
    """Go on with a study that is no diagnosis, as its own file says it was begun."""
    from chainwright._errors import BadInput
    from chainwright.studies import Study

    if overwrite:
        raise BadInput(f"--overwrite makes a study anew, which the command does that made {folder}; leave it away.")
    study = Study.open(folder).with_plan(device=device, trust_remote_code=trust_remote_code)
    study.run(None if quiet else Lines(), recompute=recompute)
    print_findings(study)


@clear_errors
def status(folder: Folder) -> None:
    """Say what is done, what is missing, damaged or was skipped, how long it took, and who works on it."""
    from chainwright import Study

    study = Study.open(folder)
    known, found = study.manifest, study.status()
    state = "finished" if found.is_complete else "not finished"
    _say(f"{folder}: {found.kind}, {state}; made with Chainwright {known.chainwright}")
    if known.model:
        _say(f"Model: {known.model.get('model')}, fingerprint {known.model.get('fingerprint')}")
    counts = [f"{found.count(s)} {s}" for s in ("done", "skipped", "missing", "damaged") if found.count(s)]
    _say(f"Units: {', '.join(counts) or 'none listed yet'}{_may_grow(found)}")
    _say(f"Time: {_times(found)}")
    _say(f"At work: {found.holder or 'nobody'}")
    for unit in found.units:
        if unit.state != "done":
            _say(f"  {unit.state}: {unit.unit}{unit.note and f' ({unit.note})'}")
    if found.count("damaged") or not (found.is_complete or found.holder):
        recompute = " --recompute" if found.count("damaged") else ""
        _say(f"Go on with it: {known.again.replace('{folder}', str(folder))}{recompute}")


def _may_grow(found: Status) -> str:
    return "" if found.is_complete else " (later ones depend on what these find)"


def _times(found: Status) -> str:
    from chainwright.studies import timing

    spent = f"{timing.words(found.seconds_spent)} spent"
    if found.is_complete and not found.seconds_left:
        return spent
    left = "nobody knows how much is left" if found.seconds_left is None else None
    return f"{spent}, {left or f'about {timing.words(found.seconds_left or 0.0)} left for the units listed'}"


@clear_errors
def show(folder: Folder) -> None:
    """Show what a study found: a few lines, accuracy, findings, and its files."""
    _show(folder)


def _show(folder: Path) -> None:
    from chainwright import Study, _registry
    from chainwright.evaluation.accuracy import Accuracy
    from chainwright.report.study import summary_of
    from chainwright.studies.diagnosis.plan import KIND, config_of, has_report

    study = Study.open(folder)
    results, kind = study.results, study.manifest.kind
    if not study.is_complete:
        _say(f"{folder} is not finished; this is what it has so far.")
    elif has_report(config_of(study)) if kind == KIND else kind in _registry.names("study"):
        out.print()
        for line in summary_of(study):
            _say(line)
    if "accuracy" in results and study.manifest.kind == KIND:
        print_accuracy(Accuracy.load(results["accuracy"]))
    _print_findings(results)
    _print_files(folder, results)


def _print_findings(results: Results) -> None:
    from chainwright import Finding

    for unit, path in results.items():
        if (path / "result.json").is_file() and unit != "accuracy":
            _say(f"{unit}:")
            for line in Finding.load(path).summary().splitlines():
                _say(f"  {line}")
    for unit, reason in results.skipped.items():
        _say(f"{unit}: skipped: {reason}")


def _print_files(folder: Path, results: Results) -> None:
    table = Table("unit", "files", "KB", title=f"Files in {folder}")
    for unit, path in results.items():
        files = sorted(p for p in path.rglob("*") if p.is_file() and p.name != "unit.json")
        size = sum(p.stat().st_size for p in files) / 1000
        table.add_row(unit, ", ".join(str(p.relative_to(path)) for p in files), f"{size:,.0f}")
    report = folder / "report.html"
    if report.exists():
        table.add_row("", report.name, f"{report.stat().st_size / 1000:,.0f}")
    out.print(table)


@clear_errors
def diff(
    a: Annotated[Path, typer.Argument(help="The folder of a finished diagnosis.")],
    b: Annotated[Path, typer.Argument(help="The folder of another.")],
) -> None:
    """Compare two diagnoses: settings, accuracy with intervals, first errors, heads."""
    from chainwright.studies.diagnosis.diff import difference

    found = difference(a, b)
    _say(f"A: {a}\nB: {b}")
    for line in found.settings or ["The same settings and model."]:
        _say(line)
    for measure in ("answers", "chains"):
        _print_cells(found, measure)
    table = Table("task", "type", "A", "B", title="First errors, share of a task's errors")
    for row in found.errors:
        table.add_row(row.task, row.error_type, row.a, row.b)
    out.print(table)
    for line in found.heads:
        _say(line)


def _print_cells(found: StudyDifference, measure: str) -> None:
    table = Table("task", "hops", "A", "95%", "B", "95%", "B - A", "95%", title=f"Right {measure}")
    table.add_column("problems", no_wrap=True)
    for cell in found.cells:
        if cell.measure == measure:
            table.add_row(*_cells(cell))
    out.print(table)


def _cells(cell: CellDifference) -> list[str]:
    def share(value: float | None, low: float | None, high: float | None, sign: str = "") -> list[str]:
        if value is None or low is None or high is None:
            return ["", ""]
        return [f"{value:{sign}.2f}", f"{low:{sign}.2f} to {high:{sign}.2f}"]

    return [
        cell.task,
        str(cell.hops),
        *share(cell.a, cell.a_low, cell.a_high),
        *share(cell.b, cell.b_low, cell.b_high),
        *share(cell.difference, cell.low, cell.high, "+"),
        cell.problems,
    ]


def _say(line: str) -> None:
    out.print(plain(line), highlight=False, soft_wrap=True)
