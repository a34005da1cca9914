"""The report and the tables of a finished study of any kind, read from its folder alone."""

from __future__ import annotations

from pathlib import Path

from chainwright._files import atomic_file
from chainwright.report.gather import origin_of_study
from chainwright.report.lines import lines_of
from chainwright.report.page import write_report
from chainwright.studies import Study
from chainwright.studies.diagnosis.plan import KIND, diagnosis_of
from chainwright.studies.manifest import REPORT

TABLES = "tables.md"


def write_study_report(folder: str | Path, path: str | Path | None = None) -> Path:
    """Write the report of a finished study and return its path; neither model nor tokenizer is needed.

    Args:
        folder: The folder of the study.
        path: The file to write; None for `report.html` in the folder.

    Raises:
        BadInput: There is no study, it is unfinished or damaged, it has no findings, or the place cannot be written.
    """
    study = Study.open(folder)
    place = study.folder / REPORT if path is None else Path(path)
    if study.manifest.kind == KIND:
        return write_report(diagnosis_of(study), place)
    return write_report(study.findings(), place, study=origin_of_study(study.manifest))


def write_tables(study: Study) -> list[str]:
    """Write what a finished study measured as `tables.md` into its folder, and return the lines."""
    lines = list(lines_of(study.findings()))
    with atomic_file(study.folder / TABLES) as draft:
        draft.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return lines


def summary_of(study: Study) -> list[str]:
    """Return the results of a finished study in a few lines of words."""
    if study.manifest.kind == KIND:
        return diagnosis_of(study).summary()
    return [line for finding in study.findings() for line in finding.summary().splitlines()]
