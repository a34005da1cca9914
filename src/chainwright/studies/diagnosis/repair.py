"""A repair within a diagnosis: the same problems answered again with it, and what that gains.

repair                         the repair itself, so that a resumed study uses the repair that it began with
repaired/<part>                the traces of a part with it, which tokens it flagged, and what it counted
comparison                     `Comparison` and `Flips` of the answers without and with it
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from chainwright._files import read_json, write_json
from chainwright._finding import Finding
from chainwright.evaluation.comparison import Comparison, compare
from chainwright.evaluation.flips import Flips, flips
from chainwright.repair.base import Repair
from chainwright.repair.tcr.flag_log import logged_flags
from chainwright.studies.diagnosis.base import Bench, Instrument
from chainwright.studies.diagnosis.config import DiagnoseConfig
from chainwright.studies.diagnosis.parts import Part, load_traces, part_of, parts
from chainwright.studies.diagnosis.units import decode_part, have_traces
from chainwright.studies.plan import Job, Results
from chainwright.traces import read_traces, write_traces

ALONE = "model alone"
REPAIR, COMPARISON = "repair", "comparison"


class KeptRepair(Instrument):
    """Keeps the repair in the study; comes before anything else, so that a wrong name costs nothing."""

    name, groups, order = "repair", (REPAIR,), 0

    def is_asked(self, config: DiagnoseConfig) -> bool:
        """Return whether the config names a repair."""
        return config.repair is not None

    def units(self, config: DiagnoseConfig, done: Results) -> list[str]:
        """Return its one unit, which needs no other."""
        return [REPAIR]

    def compute(self, bench: Bench, job: Job) -> None:
        """Save the repair, after checking that it fits the model."""
        assert bench.config.repair is not None
        repair = Repair.from_pretrained(bench.config.repair)
        repair.check_model(bench.model)
        repair.save_pretrained(job.out / "repair")

    def title(self, config: DiagnoseConfig, unit: str) -> str:
        """Return a title with the repair's name."""
        return f"Reading the repair {_name(config)}"


class Repaired(Instrument):
    """Answers every problem again with the repair, and compares."""

    name, groups, order = "repaired", ("repaired", COMPARISON), 90

    def is_asked(self, config: DiagnoseConfig) -> bool:
        """Return whether the config names a repair."""
        return config.repair is not None

    def units(self, config: DiagnoseConfig, done: Results) -> list[str]:
        """Return one unit of traces per cell and, once they are finished, the comparison."""
        if not (done.are_finished([REPAIR]) and have_traces(config, done)):
            return []
        repaired = _units(config, done)
        return [*repaired, COMPARISON] if done.are_finished(repaired) else repaired

    def compute(self, bench: Bench, job: Job) -> None:
        """Decode a cell with the repair, or compare all answers without and with it."""
        if job.unit == COMPARISON:
            _compare(bench, job)
        else:
            _decode(bench, job, part_of(bench.config, job.unit))

    def title(self, config: DiagnoseConfig, unit: str) -> str:
        """Return a title with the cell and the repair's name."""
        if unit == COMPARISON:
            return f"What {_name(config)} gains"
        return f"{part_of(config, unit).title} with {_name(config)}"

    def findings(self, config: DiagnoseConfig, done: Results) -> list[Finding]:
        """Return the comparison with the repair's cost, and the chains that changed."""
        if COMPARISON not in done:
            return []
        title = f"{config.model} with {_name(config)}"
        comparison = Comparison.load(done[COMPARISON] / "comparison")
        return [
            replace(comparison, costs={_name(config): _costs(config, done)}, title=title),
            replace(Flips.load(done[COMPARISON] / "flips"), title=title),
        ]


def _decode(bench: Bench, job: Job, part: Part) -> None:
    repair = Repair.from_pretrained(job.done[REPAIR] / "repair")
    with logged_flags(repair) as flag_log:
        traces = decode_part(bench, part, job, repair)
    write_traces(job.out / "traces.parquet", traces)
    if flag_log is not None:
        write_json(job.out / "flagged.json", flag_log.tokens(traces))
    # seconds differ from run to run, and a study does not
    write_json(job.out / "counts.json", {k: v for k, v in asdict(repair.cost).items() if isinstance(v, int)})


def _compare(bench: Bench, job: Job) -> None:
    config, folders = bench.config, [job.done[unit] for unit in _units(bench.config, job.done)]
    repaired = [trace for folder in folders for trace in read_traces(folder / "traces.parquet")]
    traces = {ALONE: load_traces(config, job.done), _name(config): repaired}
    compare(traces).save(job.out / "comparison")
    noted = all((folder / "flagged.json").exists() for folder in folders)
    flagged = (
        {_name(config): [row for folder in folders for row in read_json(folder / "flagged.json")]} if noted else {}
    )
    flips(traces, bench.tokenizer, flagged=flagged).save(job.out / "flips")


def _costs(config: DiagnoseConfig, done: Mapping[str, Path]) -> dict[str, Any]:
    """Return the share of tokens that the repair flagged, and the extra tokens that it read per decoded one."""
    counts = [read_json(done[unit] / "counts.json") for unit in _units(config, done)]
    total = {name: sum(count[name] for count in counts) for name in ("n_tokens", "n_flagged", "n_extra_tokens")}
    if not total["n_tokens"]:
        return {}
    return {
        "flagged": f"{total['n_flagged'] / total['n_tokens']:.2%}",
        "extra tokens": f"{total['n_extra_tokens'] / total['n_tokens']:.1f}",
    }


def _units(config: DiagnoseConfig, done: Mapping[str, Path]) -> list[str]:
    return [f"repaired/{part.name}" for part in parts(config, done)]


def _name(config: DiagnoseConfig) -> str:
    return Path(config.repair or "").name
