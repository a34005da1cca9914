"""The parts that the traces of a diagnosis come in: cells of tasks, or 64 problems or traces of a file at a time.

Every unit of traces, scores and step maps is named by its part. How many parts a problem set or a trace file has is
known once the unit "source" is finished; until then there are none.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from random import Random
from types import MappingProxyType
from typing import Any, NamedTuple

from chainwright import tasks
from chainwright._files import read_json
from chainwright.figures.words import counted
from chainwright.studies.diagnosis.config import DiagnoseConfig
from chainwright.traces import Trace, read_traces

SOURCE = "source"
NOTES = "notes.json"
ROWS = 64  # problems or traces per part: about one batch
NOTHING: Mapping[str, Path] = MappingProxyType({})


class Cell(NamedTuple):
    """The problems of one task at one hop count, drawn with one seed."""

    task: str
    hops: int
    seed: int

    @property
    def name(self) -> str:
        """Return the last part of the cell's unit ids."""
        return f"{self.task}-{self.hops:03d}-{self.seed}"

    @property
    def title(self) -> str:
        """Return a title such as "Parity-NL, 12 hops"."""
        return f"{tasks.title(self.task)}, {counted(self.hops, 'hop')}"

    @property
    def decode_seed(self) -> int:
        """Return the seed that the cell is decoded with.

        Within one call of `generate` each row has its own noise, but row 3 of two calls with one seed has the same; so
        each cell has its own seed.
        """
        return Random(f"{self.seed}/{self.task}/{self.hops}").getrandbits(32)


class Slice(NamedTuple):
    """Up to 64 problems or traces of a file, from `start` on."""

    start: int
    what: str

    @property
    def name(self) -> str:
        """Return the last part of the slice's unit ids."""
        return f"part-{self.start // ROWS:06d}"

    @property
    def title(self) -> str:
        """Return a title such as "problems from 65"."""
        return f"{self.what} {self.start + 1} to {self.start + ROWS}"


Part = Cell | Slice


def parts(config: DiagnoseConfig, done: Mapping[str, Path] = NOTHING) -> list[Part]:
    """Return every part of a diagnosis; cells seed by seed within a task and hop count.

    Those of a problem set or of trace files are known once their source has been read.
    """
    if config.hops:
        return [Cell(task, hops, seed) for task, hops in config.cells() for seed in config.seeds]
    if SOURCE not in done:
        return []
    return [_slice(config, start) for start in range(0, int(notes(done)["n"]), ROWS)]


def part_of(config: DiagnoseConfig, unit: str) -> Part:
    """Return the part that a unit such as "traces/parity-012-0" is of."""
    name = unit.partition("/")[2]
    if config.hops:
        return next(part for part in parts(config) if part.name == name)
    return _slice(config, ROWS * int(name.removeprefix("part-")))


def _slice(config: DiagnoseConfig, start: int) -> Slice:
    return Slice(start, "problems" if config.traces is None else "traces")


def notes(done: Mapping[str, Path]) -> dict[str, Any]:
    """Return what was noticed when the source was read: `n`, `name`, `notes`, `n_bad`, `writers`; empty for tasks."""
    return dict(read_json(done[SOURCE] / NOTES)) if SOURCE in done else {}


def trace_units(config: DiagnoseConfig, done: Mapping[str, Path] = NOTHING) -> list[str]:
    """Return the ids of the units that hold traces, in the order of the parts."""
    return [f"traces/{part.name}" for part in parts(config, done)]


def load_traces(config: DiagnoseConfig, done: Mapping[str, Path]) -> list[Trace]:
    """Return all traces, part by part."""
    return [trace for unit in trace_units(config, done) for trace in read_traces(done[unit] / "traces.parquet")]


def load_part(part: Part, done: Mapping[str, Path]) -> list[Trace]:
    """Return the traces of one part."""
    return read_traces(done[f"traces/{part.name}"] / "traces.parquet")
