"""What a finished study of TCR found: the comparison with its costs, the flips, and tables."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from chainwright._files import read_json
from chainwright._finding import Finding
from chainwright._tables import Tables
from chainwright.diagnose.heads.roles import RoleFinding
from chainwright.evaluation.comparison import Comparison
from chainwright.evaluation.flips import Flips
from chainwright.reproduce.tcr.config import NO_GOLD, ReproduceTCRConfig, role_units_of, runs_of
from chainwright.reproduce.tcr.role_figures import roles_in
from chainwright.studies import Study, timing

_AT_ERRORS = (
    "Tokens of the model's own responses up to their first errors; flags are those of the repair and of entropy."
)
_LOCATED = (
    "One head per type, of those that support the wrong token, is silenced. The right token's gain is that at errors "
    "it was not chosen on; the best heads are those on which right tokens depend, before and after a correction."
)


def tables_of(study: Study) -> list[Finding]:
    """Return what the units of a finished study hold, for its report."""
    config, done = ReproduceTCRConfig.from_record(study.manifest.config), study.results
    took = timing.seconds_by_unit(study.folder)
    found = Comparison.load(done["comparison"] / "comparison")
    costs = {way: costs_of(config, done, took, way) for way in config.all_ways()}
    title = f"Ways of decoding with {config.model}"
    found_all: list[Finding] = [replace(found, costs=costs, title=title)]
    if (done["comparison"] / "flips").exists():
        found_all.append(replace(Flips.load(done["comparison"] / "flips"), title=title))
    if "ablations" in done:
        tables = {f"Ablations: {k}": rows for k, rows in read_json(done["ablations"] / "rows.json").items() if rows}
        note = "Chains are counted by forced passes over the right chains of the same problems."
        found_all.append(Tables(title="Ablations", tables=tables, notes=[note]))
    if "errors" in done:
        tables = {f"First errors: {k}": rows for k, rows in read_json(done["errors"] / "rows.json").items() if rows}
        found_all.append(Tables(title="First errors", tables=tables, notes=[_AT_ERRORS]))
    if not config.is_gold_known:
        found_all.append(Tables(title="Not run", tables={}, notes=[f"The ablations: {NO_GOLD}"]))
    found_all += _of_fit(config, done)
    return found_all


def _of_fit(config: ReproduceTCRConfig, done: Mapping[str, Path]) -> list[Finding]:
    """Return what was measured while fitting, and what the paper says about located heads."""
    found_all: list[Finding] = []
    figures = done["repair"] / "figures.json"
    if figures.exists():
        rows = [{"measure": k, "value": v} for k, v in read_json(figures).items()]
        found_all.append(Tables(title="The fit", tables={"Tune problems": rows}))
    rows = [row for unit in role_units_of(config) for row in read_json(done[unit] / "rows.json")]
    roles = [_role_row(row, found) for row, found in zip(rows, roles_in(config, done), strict=True)]
    if roles:
        found_all.append(Tables(title="Located heads", tables={"Key error types": roles}, notes=[_LOCATED]))
    return found_all


def _role_row(row: Mapping[str, Any], found: RoleFinding) -> dict[str, Any]:
    gains = row["gains"]
    return {
        "task": row["task"],
        "type": row["type"],
        "correct-processing": _named(row["correct_processing"]),
        "erroneous-processing": _named(row["erroneous_processing"]),
        "both": row["n_both"],
        "basic": len(row["basic"]),
        "writing shared": f"{row['writing_shared']} of {row['n_writing']}",
        "head": "" if row["head"] is None else _named([row["head"]]),
        "gain of the right token": sum(gains) / len(gains) if gains else None,
        "held-out errors": len(gains),
        "some head fixes": _fixed_by_some(found),
        "corrected": f"{row.get('n_corrected', 0)} of {row.get('n_wrong', 0)}",
        "best heads that agree": row["relocated"],
        "entropy right": row.get("entropy_right"),
        "entropy corrected": row.get("entropy_corrected"),
        "entropy wrong": row.get("entropy_wrong"),
    }


def _fixed_by_some(found: RoleFinding) -> str | None:
    """Return at how many of the errors that located the heads some head of the model puts the right token first."""
    if found.first_erroneous is None or found.right_erroneous is None:
        return None
    is_right = found.first_erroneous == found.right_erroneous[:, None, None]
    return f"{int(is_right.flatten(1).any(1).sum())} of {len(is_right)}"


def _named(heads: list[list[int]]) -> str:
    return ", ".join(f"L{layer}H{head}" for layer, head in heads)


def counts_of(config: ReproduceTCRConfig, done: Mapping[str, Path], way: str) -> dict[str, int]:
    """Return what a way cost over all its runs."""
    total: dict[str, int] = {}
    for unit in runs_of(config, way):
        for name, value in read_json(done[unit] / "counts.json").items():
            total[name] = total.get(name, 0) + value
    return total


def costs_of(
    config: ReproduceTCRConfig, done: Mapping[str, Path], took: Mapping[str, float], way: str
) -> dict[str, Any]:
    """Return the share of flagged tokens of a way, and its seconds per answer by the study's log."""
    counts, ids = counts_of(config, done, way), runs_of(config, way)
    n = len(config.cells()) * len(config.seeds) * config.n
    return {
        "flagged": f"{counts['n_flagged'] / max(1, counts['n_tokens']):.2%}" if counts else None,
        "seconds": sum(took[i] for i in ids) / n if all(i in took for i in ids) else None,
    }
