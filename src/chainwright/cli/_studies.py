"""Running studies from the command line, and printing what they found."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chainwright.cli._command import Values
from chainwright.cli._shared import out, print_accuracy, print_table, say
from chainwright.cli._source import Source, load

if TYPE_CHECKING:
    from chainwright.studies import Results, Study, Watch
    from chainwright.studies.diagnosis.config import DiagnoseConfig
    from chainwright.studies.executors import Executor


def watch(quiet: bool) -> Watch | None:
    """Return what prints a line for each unit of a study, or None."""
    from chainwright.cli._lines import Lines

    return None if quiet else Lines()


def print_findings(study: Study) -> None:
    """Write tables and report of a finished study to its folder, print the tables, and say where both are."""
    from chainwright.report.study import TABLES, write_study_report, write_tables

    for line in write_tables(study):
        say(line)
    path = write_study_report(study.folder)
    say(f"Tables: {study.folder / TABLES}\nReport: {path}")


def is_left_to_workers(study: Study) -> bool:
    """Say how a study is computed that was only made, as `--executor folder` does; return whether it is one."""
    if study.is_complete:
        return False
    say(
        f"Made {study.folder} and listed its first {len(study.units)} units. Compute it with any number of processes, "
        f"on any machines that share the folder: chainwright study work {study.folder}"
    )
    return True


def run_diagnosis(
    config: DiagnoseConfig,
    folder: Path,
    spread: Values,
    *,
    overwrite: bool = False,
    recompute: bool = False,
    quiet: bool = False,
    executor: str = "local",
    workers: int | None = None,
) -> bool:
    """Run a diagnosis to its end; write its report if its instruments give one and it is not written yet.

    Args:
        config: The diagnosis.
        folder: Its folder.
        spread: The fields of `Source` that are no part of the config: where and how the model runs.
        overwrite: Replace another study.
        recompute: Compute damaged units again.
        quiet: Show no progress.
        executor: Where units are computed.
        workers: How many are computed at the same time.

    Returns:
        Whether it is finished; False where `executor` leaves it to workers.
    """
    from chainwright.studies.diagnosis import run as study

    chosen = executor_for(executor, workers, spread)
    source = Source(
        **spread,
        adapter=config.adapter,
        dtype=config.dtype,
        revision=config.revision,
    )
    loaded = load(config.model, source.record())
    options: dict[str, Any] = {"overwrite": overwrite, "recompute": recompute, "progress": not quiet}
    ran = study.run_study(loaded.model, loaded.tokenizer, config, folder, **options, executor=chosen)
    if is_left_to_workers(ran):
        return False
    write_diagnosis_report(config, folder)
    return True


def executor_for(name: str, workers: int | None, spread: Values) -> Executor:
    """Return the executor of a command.

    Args:
        name: Its name.
        workers: How many units are computed at the same time.
        spread: Fields of `Source`: where and how the model runs.

    Raises:
        BadInput: It does not exist, or the model is to be spread as well as the study.
    """
    from chainwright._errors import BadInput
    from chainwright.studies.executors import made

    if name != "local" and (used := [flag for flag in ("tp", "device_map") if spread.get(flag) is not None]):
        raise BadInput(
            f"--{used[0].replace('_', '-')} spreads the model of one process, and --executor {name} gives each worker "
            "a model of its own; pass one of them."
        )
    trusting = bool(spread.get("trust_remote_code", False))
    return made(name, workers=workers, device=spread.get("device"), trust_remote_code=trusting)


def write_diagnosis_report(config: DiagnoseConfig, folder: Path) -> None:
    """Write the report of a finished diagnosis if its instruments give one and it is not written yet."""
    from chainwright._errors import BadInput
    from chainwright.report import write_report
    from chainwright.studies.diagnosis import run as study

    path = folder / "report.html"
    if path.exists() or not study.has_report(config):
        return
    try:
        write_report(study.open_diagnosis(folder), path)
    except BadInput as error:
        raise BadInput(
            f"The study is finished, but not its report. {error} `chainwright report {folder}` writes the report."
        ) from error


def print_finished(study: Study) -> None:
    """Write the report of a finished study of any kind, print what it found, and say where its files are."""
    from chainwright.studies.diagnosis.plan import KIND, config_of, has_report

    kind = study.manifest.kind
    if kind == "traces":
        say(f"Every part is decoded; run the command that began them again, which writes the file of {study.folder}.")
        return
    if kind != KIND:
        print_findings(study)
        return
    config = config_of(study)
    write_diagnosis_report(config, study.folder)
    if has_report(config):
        print_diagnosis(study.folder)
        say(f"More: chainwright study show {study.folder}")
    else:
        print_study(study.folder)


def print_diagnosis(folder: Path) -> None:
    """Print what a finished diagnosis found in a few lines, and where its report is."""
    from chainwright.studies.diagnosis.run import open_diagnosis

    print_summary(open_diagnosis(folder).summary(), folder / "report.html")


def print_summary(lines: Sequence[str], path: Path) -> None:
    """Print what a study found in a few lines, and where its report is."""
    out.print()
    for line in lines:
        say(line)
    say(f"\nReport: {path}")


def print_study(folder: Path) -> None:
    """Print what a study found so far: its summary, accuracy, findings and files."""
    from chainwright import _registry
    from chainwright.evaluation.accuracy import Accuracy
    from chainwright.report.study import summary_of
    from chainwright.studies import Study
    from chainwright.studies.diagnosis.plan import KIND, config_of, has_report

    study = Study.open(folder)
    results, kind = study.results, study.manifest.kind
    if not study.is_complete:
        say(f"{folder} is not finished; these are its results so far.")
    elif has_report(config_of(study)) if kind == KIND else kind in _registry.names("study"):
        out.print()
        for line in summary_of(study):
            say(line)
    if "accuracy" in results and kind == KIND:
        print_accuracy(Accuracy.load(results["accuracy"]))
    _print_units(results)
    _print_files(folder, results)


def _print_units(results: Results) -> None:
    from chainwright._finding import Finding

    for unit, path in results.items():
        if (path / "result.json").is_file() and unit != "accuracy":
            say(f"{unit}:")
            for line in Finding.load(path).summary().splitlines():
                say(f"  {line}")
    for unit, reason in results.skipped.items():
        say(f"{unit}: skipped: {reason}")


def _print_files(folder: Path, results: Results) -> None:
    rows = []
    for unit, path in results.items():
        files = sorted(p for p in path.rglob("*") if p.is_file() and p.name != "unit.json")
        names = ", ".join(str(p.relative_to(path)) for p in files)
        rows.append({"unit": unit, "files": names, "KB": f"{sum(p.stat().st_size for p in files) / 1000:,.0f}"})
    report = folder / "report.html"
    if report.exists():
        rows.append({"unit": "", "files": report.name, "KB": f"{report.stat().st_size / 1000:,.0f}"})
    print_table(f"Files in {folder}", rows)
