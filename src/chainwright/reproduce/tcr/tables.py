"""What a finished study of TCR found: the comparison with its costs, the flips, and tables."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from chainwright._files import read_json
from chainwright._finding import Finding
from chainwright._tables import Tables
from chainwright.evaluation.comparison import Comparison
from chainwright.evaluation.flips import Flips
from chainwright.figures.words import listed
from chainwright.reproduce.tcr.config import GOLD, NO_GOLD, ReproduceTCRConfig, runs_of
from chainwright.studies import Study, timing


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
    if config.rendering != "short":
        skipped = f"{listed([repr(way) for way in GOLD])}, and the ablations"
        found_all.append(Tables(title="Not run", tables={}, notes=[f"{skipped}: {NO_GOLD}"]))
    figures = done["repair"] / "figures.json"
    if figures.exists():
        rows = [{"measure": k, "value": v} for k, v in read_json(figures).items()]
        found_all.append(Tables(title="The fit", tables={"Tune problems": rows}))
    return found_all


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
