"""The sections of the report in the order of the page: one file each, with its template and its script beside it."""

from __future__ import annotations

from chainwright.report.section import Builder
from chainwright.report.sections import (
    accuracy,
    back_attention,
    comparison,
    errors,
    flips,
    flow,
    found,
    heads,
    iteration,
    limits,
    steps,
    study,
    tables,
    traces,
)

SECTIONS: tuple[Builder, ...] = (
    found.section,
    study.section,
    accuracy.section,
    errors.section,
    heads.section,
    comparison.section,
    flips.section,
    iteration.section,
    flow.section,
    back_attention.section,
    steps.section,
    traces.section,
    tables.section,
    limits.section,
)
