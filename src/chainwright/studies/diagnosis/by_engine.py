"""Traces of a diagnosis that another engine writes, checked against the model before they are used.

traces/<part>/engine.json          the comparison of its log-probabilities with the model's, in some of the traces
traces/<part>/engine.safetensors   the log-probabilities that it gave the tokens of each response, NaN where unknown
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file

from chainwright._files import read_json, write_json
from chainwright.engines.base import Engine
from chainwright.engines.check import EngineCheck, checked
from chainwright.engines.kinds import engine_of
from chainwright.engines.writing import written_by
from chainwright.studies.diagnosis.base import Bench
from chainwright.studies.diagnosis.config import DiagnoseConfig
from chainwright.studies.diagnosis.decoding import asked_in, numbered
from chainwright.studies.diagnosis.parts import Part, trace_units
from chainwright.studies.plan import Job
from chainwright.traces import Trace

_CHECK, _LOGPROBS = "engine.json", "engine.safetensors"


def open_engine(bench: Bench) -> Engine:
    """Return the engine that a diagnosis names.

    Raises:
        BadInput: It cannot be used.
    """
    config = bench.config
    assert config.engine is not None
    return engine_of(
        config.engine,
        bench.tokenizer,
        model=config.engine_model or config.model,
        url=config.engine_url,
        dtype=config.dtype,
        revision=config.revision,
        timeout=config.engine_timeout,
    )


def engine_part(bench: Bench, engine: Engine, part: Part, job: Job) -> list[Trace]:
    """Return the traces of a part; write how they compare with the model, and their log-probabilities.

    Raises:
        BadInput: The engine fails, or its traces are not the model's.
    """
    problems, settings = asked_in(bench, part, job)
    settings.pop("batch_size")
    n_samples, n_done = bench.config.drawing.n_samples, 0

    def done(n: int) -> None:
        nonlocal n_done
        n_done += n
        job.tick(n_done, len(problems) * n_samples)

    found = written_by(engine, bench.model, bench.tokenizer, problems, **settings, done=done)
    row = checked(bench.model, found.traces, found.logprobs, engine.name, bench.config.engine_tolerance)
    write_json(job.out / _CHECK, {"engine": engine.name, "part": part.name, **row, "n_text": found.n_text})
    lengths = torch.tensor([len(each) for each in found.logprobs])
    save_file({"logprob": torch.cat(found.logprobs), "n_tokens": lengths}, job.out / _LOGPROBS)
    return numbered(found.traces, part, n_samples)


def engine_check(config: DiagnoseConfig, done: Mapping[str, Path]) -> EngineCheck:
    """Return how the traces of all parts compare with the model."""
    rows = [dict(read_json(done[unit] / _CHECK)) for unit in trace_units(config, done)]
    names = [str(row.pop("engine")) for row in rows]
    return EngineCheck(engine=names[0], tolerance=config.engine_tolerance, rows=rows, config={}, provenance={})
