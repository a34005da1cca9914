"""Many traces for one file: decoded in parts that survive a kill, then joined.

Parts lie beside the file, in `<file>.parts`, a study that goes when the file is complete. Joined they are what one call
of `generate` gives: a row's draws depend on the seed and its number alone.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path

from pydantic import Field
from torch import nn
from transformers import PreTrainedTokenizerBase

from chainwright._config import Config
from chainwright._errors import BadInput
from chainwright._files import clear_disk_errors
from chainwright._registry import register
from chainwright.decode import generate
from chainwright.models import provenance
from chainwright.models.anatomy import anatomy
from chainwright.repair.base import Repair
from chainwright.studies.config import BatchSize, NewTokens, Temperature
from chainwright.studies.display import Display
from chainwright.studies.engine import Study
from chainwright.studies.plan import Job, Plan, Results, Watch
from chainwright.studies.records import sha256_of
from chainwright.tasks import Problem
from chainwright.traces import Trace, read_traces, write_traces

ROWS = 64  # a part: about one batch


class DecodeSettings(Config):
    """How traces are decoded; see `generate`."""

    max_new_tokens: NewTokens = None
    batch_size: BatchSize = None
    temperature: Temperature = 0.0
    seed: int = Field(default=0, description="Seed of the sampling noise.")


@register("study", "traces")
class TracesPlan(Plan):
    """Decodes a list of problems part by part."""

    kind = "traces"
    again = "the same command again; its parts are in {folder}"

    def __init__(
        self,
        model: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        asked: Sequence[Problem | str],
        settings: DecodeSettings,
        repair: Repair | None,
        config: Mapping[str, object],
    ) -> None:
        """Take what is decoded, and in `config` what it was chosen by."""
        self.model, self.tokenizer, self.asked, self.settings, self.repair = model, tokenizer, asked, settings, repair
        self.config = {**config, **settings.record(), "rows": ROWS}
        self.source = provenance(anatomy(model).model)

    def units(self, done: Results) -> list[str]:
        """Return one unit a part."""
        return [f"part-{start // ROWS:06d}" for start in range(0, len(self.asked), ROWS)]

    def compute(self, job: Job) -> None:
        """Write the traces of a part."""
        start = ROWS * int(job.unit.removeprefix("part-"))
        asked = self.asked[start : start + ROWS]
        n_done = 0

        def count(traces: list[tuple[int, Trace]]) -> None:
            nonlocal n_done
            n_done += len(traces)
            job.tick(n_done, len(asked))

        traces = generate(
            self.model,
            self.tokenizer,
            asked,
            repair=self.repair,
            **dict(self.settings),
            first_row=start,
            progress=False,
            on_traces=count,
        )
        write_traces(job.out / "traces.parquet", traces)

    def title(self, unit: str) -> str:
        """Return such as "problems 65-128"."""
        start = ROWS * int(unit.removeprefix("part-"))
        return f"problems {start + 1}-{min(start + ROWS, len(self.asked))}"


def decode_in_memory(plan: TracesPlan, *, progress: bool = True) -> list[Trace]:
    """Return the traces that a plan asks for, in one go."""
    return generate(
        plan.model, plan.tokenizer, plan.asked, repair=plan.repair, **dict(plan.settings), progress=progress
    )


def generate_to(path: Path, plan: TracesPlan, *, overwrite: bool = False, progress: bool = True) -> list[Trace]:
    """Decode what a plan asks into a Parquet file, going on from the parts of a run that was stopped.

    Raises:
        BadInput: The file exists and `overwrite` is off, parts of other settings are there, or it cannot be written.
    """
    parts = path.with_name(f"{path.name}.parts")
    if path.exists() and not overwrite:
        raise BadInput(f"{path} exists; pass --overwrite to replace it, or choose another name.")
    study = _parts_study(parts, plan, overwrite)
    with Display() if progress else nullcontext(Watch()) as watch:
        results = study.run(watch, recompute=True)
    traces = [trace for folder in results.values() for trace in read_traces(folder / "traces.parquet")]
    write_traces(path, traces, overwrite=overwrite)
    with clear_disk_errors(parts):
        shutil.rmtree(parts)
    return traces


def _parts_study(parts: Path, plan: TracesPlan, overwrite: bool) -> Study:
    """Return the study of the parts; with `overwrite` one of other settings is replaced, never one to go on with."""
    try:
        return Study.make(parts, plan)
    except BadInput:
        if not overwrite:
            raise
    return Study.make(parts, plan, overwrite=True)


def identity_of(repair: str | None) -> str | None:
    """Return a repair's name and, of a folder, the hash of its files, so that another one is told from it."""
    if repair is None or not Path(repair).is_dir():
        return repair
    files = sorted(path for path in Path(repair).rglob("*") if path.is_file())
    return f"{repair} ({', '.join(f'{path.name} {sha256_of(path)[:16]}' for path in files)})"
