"""Where the problems or traces of an open diagnosis come from: read once, checked, and kept in the study.

source/problems.json    the problems of a problem set
source/pool.json        the whole set, if demonstrations are chosen from it
source/000000.parquet   the traces of trace files, 64 to a file, as this model's tokenizer sees them
source/notes.json       how many there are, what was skipped and noticed

The study then needs the files no longer; a changed file makes another study. What is longer than the model's positions
is named here, before anything is computed.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from chainwright import tasks
from chainwright._errors import BadInput
from chainwright._files import read_json, write_json
from chainwright.figures.words import counted
from chainwright.prompts.limits import n_positions
from chainwright.prompts.prompt import prompts_of
from chainwright.studies.diagnosis.base import Bench, Instrument
from chainwright.studies.diagnosis.config import DiagnoseConfig
from chainwright.studies.diagnosis.parts import NOTES, ROWS, SOURCE, Slice
from chainwright.studies.plan import Job, Results
from chainwright.tasks.base import Problem
from chainwright.traces import Trace, write_traces

_PROBLEMS, _POOL = "problems.json", "pool.json"
_N_NAMED = 3


def pinned(config: DiagnoseConfig) -> DiagnoseConfig:
    """Return a config with the hashes of its problems and trace files, so that changed ones make another study.

    Raises:
        BadInput: A file cannot be read.
    """
    return config if config.hops or config.sha256 else config.replace(sha256=_digests(config))


def _digests(config: DiagnoseConfig) -> dict[str, str]:
    found = {} if config.traces is None else config.traces.digests()
    return found if config.problems is None else found | {"problems": config.problems.load().sha256}


class Source(Instrument):
    """Reads the problems or traces; comes before all that costs anything."""

    name, groups, order = "source", (SOURCE,), 1

    def __init__(self) -> None:
        self._draft: TemporaryDirectory[str] | None = None

    def prepare(self, bench: Bench) -> None:
        """Read everything before there is a study, so that a mistake in the files leaves no folder behind.

        Raises:
            BadInput: As `compute`.
        """
        draft = TemporaryDirectory(prefix="chainwright-")
        _write(bench, Path(draft.name))
        self._draft = draft

    def is_asked(self, config: DiagnoseConfig) -> bool:
        """Return whether the diagnosis is of a problem set or of trace files."""
        return not config.hops

    def units(self, config: DiagnoseConfig, done: Results) -> list[str]:
        """Return its one unit, which needs no other."""
        return [SOURCE]

    def compute(self, bench: Bench, job: Job) -> None:
        """Write the problems or the traces, with what was noticed.

        Raises:
            BadInput: A file was changed since the study began, or something is too long for the model.
        """
        config = bench.config
        changed = [name for name, digest in _digests(config).items() if config.sha256.get(name) != digest]
        if changed:
            raise BadInput(
                f"{changed[0]} was changed since the study began, so it cannot be resumed with it; put it back, or "
                "begin again in another folder (or with --overwrite)."
            )
        if self._draft is None:
            _write(bench, job.out)
            return
        for path in Path(self._draft.name).iterdir():
            shutil.move(path, job.out / path.name)
        self._draft.cleanup()
        self._draft = None

    def title(self, config: DiagnoseConfig, unit: str) -> str:
        """Return what is read."""
        return "Reading the problems" if config.traces is None else "Reading the traces"


def _write(bench: Bench, out: Path) -> None:
    if bench.config.traces is None:
        _write_problems(bench, out)
    else:
        _write_traces(bench, out)


def _write_problems(bench: Bench, out: Path) -> None:
    config = bench.config
    assert config.problems is not None
    loaded = config.problems.load()
    pool = _pool(config, loaded.problems)
    problems, long = _that_fit(bench, loaded.problems, pool)
    _refuse(long, "problem", config.problems.skip_bad, bench)
    bad = [f"{record.place}: {record.reason}" for record in loaded.bad_records]
    said = [] if not bad else [f"{counted(len(bad), 'record')} could not be used and were skipped: {_some(bad)}."]
    write_json(out / _PROBLEMS, [problem.to_record() for problem in problems])
    if len(pool) > len(loaded.problems):
        write_json(out / _POOL, [problem.to_record() for problem in pool])
    _write_notes(out, len(problems), loaded.name, [*said, *_on_long(long, bench)], len(bad) + len(long), [])


def _pool(config: DiagnoseConfig, problems: Sequence[Problem]) -> Sequence[Problem]:
    """Return what demonstrations are chosen from: the whole set, of which `problems` may be the first few."""
    assert config.problems is not None
    has_shots = config.asking is not None and bool(config.asking.n_shots)
    return config.problems.replace(n=None, seed=None).load().problems if has_shots and config.problems.n else problems


def _that_fit(bench: Bench, problems: Sequence[Problem], pool: Sequence[Problem]) -> tuple[list[Problem], list[str]]:
    """Return the problems whose prompts the model has positions for, and what is wrong with the others."""
    fit, long = [], []
    for i, problem in enumerate(problems):
        try:
            prompts_of(bench.model, bench.tokenizer, [problem], bench.config.max_new_tokens, i,
                       asking=bench.config.asking, pool=pool)  # fmt: skip
        except BadInput as error:
            if "position" not in str(error):
                raise
            long.append(f"problem {i + 1}")
        else:
            fit.append(problem)
    return fit, long


def _write_traces(bench: Bench, out: Path) -> None:
    config = bench.config
    assert config.traces is not None
    problems = None if config.problems is None else config.problems.load().problems
    found = config.traces.load(bench.tokenizer, problems)
    most = n_positions(bench.model)
    long = [f"{_place(trace)} ({len(trace):,} tokens)" for trace in found.traces if len(trace) > most]
    _refuse(long, "trace", config.traces.skip_bad, bench)
    fit = [trace for trace in found.traces if len(trace) <= most]
    for start in range(0, len(fit), ROWS):
        write_traces(out / f"{start // ROWS:06d}.parquet", fit[start : start + ROWS])
    name = ", ".join(Path(file).name for file in config.traces.files)
    said = [*found.notes, *_on_long(long, bench)]
    _write_notes(out, len(fit), name, said, len(found.bad_records) + len(long), found.writers)


def _place(trace: Trace) -> str:
    return f"line {trace.info['line']} of {trace.info['source']}" if "line" in trace.info else "a trace"


def _refuse(long: Sequence[str], what: str, skip_bad: bool, bench: Bench) -> None:
    if long and not skip_bad:
        raise BadInput(
            f"{counted(len(long), what)} {'is' if len(long) == 1 else 'are'} longer than the model's "
            f"{n_positions(bench.model):,} positions ({_some(long)}); shorten them, or leave them out with --skip-bad "
            "(skip_bad=True)."
        )


def _on_long(long: Sequence[str], bench: Bench) -> list[str]:
    if not long:
        return []
    return [f"{counted(len(long), 'record')} longer than the model's {n_positions(bench.model):,} positions were left "
            f"out: {_some(long)}."]  # fmt: skip


def _some(places: Sequence[str]) -> str:
    more = len(places) - _N_NAMED
    return "; ".join(places[:_N_NAMED]) + (f"; and {more} more" if more > 0 else "")


def _write_notes(out: Path, n: int, name: str, said: Sequence[str], n_bad: int, writers: Sequence[str]) -> None:
    if not n:
        raise BadInput(f"{name} has nothing left to diagnose: {' '.join(said) or 'it is empty'}")
    known: dict[str, Any] = {"n": n, "name": name, "notes": list(said), "n_bad": n_bad, "writers": list(writers)}
    write_json(out / NOTES, known)


def load_problems(done: Mapping[str, Path]) -> list[Problem]:
    """Return the problems of a diagnosis of a problem set, in their order."""
    return [tasks.from_record(record) for record in read_json(done[SOURCE] / _PROBLEMS)]


def load_pool(done: Mapping[str, Path]) -> list[Problem]:
    """Return the problems that demonstrations are chosen from."""
    path = done[SOURCE] / _POOL
    return [tasks.from_record(record) for record in read_json(path)] if path.exists() else load_problems(done)


def source_file(part: Slice, done: Mapping[str, Path]) -> Path:
    """Return the file with the traces of a part."""
    return done[SOURCE] / f"{part.start // ROWS:06d}.parquet"
