"""The problems of a part of a diagnosis, and their traces by the model itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from chainwright import tasks
from chainwright.decode.run import generate
from chainwright.repair.base import Repair
from chainwright.studies.diagnosis.base import Bench
from chainwright.studies.diagnosis.parts import ROWS, Cell, Part
from chainwright.studies.diagnosis.sources import load_pool, load_problems
from chainwright.studies.plan import Job
from chainwright.tasks import Problem
from chainwright.traces import Trace


def decode_part(bench: Bench, part: Part, job: Job, repair: Repair | None = None) -> list[Trace]:
    """Return the traces of a part's problems, alone or with a repair, ticking as they come."""
    problems, settings = asked_in(bench, part, job)
    n_samples = bench.config.drawing.n_samples
    count = job.counter(len(problems) * n_samples)
    settings |= {"repair": repair, "progress": False}
    traces = generate(bench.model, bench.tokenizer, problems, **settings, on_traces=count)
    return numbered(traces, part, n_samples)


def asked_in(bench: Bench, part: Part, job: Job) -> tuple[list[Problem], dict[str, Any]]:
    """Return the problems of a part, and the arguments of `generate` with which they are asked."""
    config = bench.config
    settings: dict[str, Any] = {**config.drawing.options(bench.model), "asking": config.asking}
    if isinstance(part, Cell):
        problems = tasks.sample(part.task, part.hops, config.n, part.seed, rendering=config.rendering)
        return problems, settings | {"seed": part.decode_seed}
    problems = load_problems(job.done)[part.start : part.start + ROWS]
    return problems, settings | {"first_row": part.start, "shots_pool": load_pool(job.done)}


def numbered(traces: Sequence[Trace], part: Part, n_samples: int) -> list[Trace]:
    """Return the traces of a part with the number of their problem in the whole set, if they are of a set."""
    if isinstance(part, Cell):
        return list(traces)
    return [_numbered(trace, part.start, i, n_samples) for i, trace in enumerate(traces)]


def _numbered(trace: Trace, start: int, i: int, n_samples: int) -> Trace:
    """Return a trace whose `info` has the number of its problem in the whole set."""
    return replace(trace, info={**trace.info, "problem": start + i // n_samples, "sample": i % n_samples})
