"""Many traces for one file: decoded in parts that survive a kill, then joined.

The parts are a study in `<file>.parts`, beside the file, which is removed when the file is complete. Joined, they equal
the result of one call of `generate`, since the noise of a row depends on the seed and the row's number alone.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path

from torch import nn
from transformers import PreTrainedTokenizerBase

from chainwright._errors import BadInput
from chainwright._files import clear_disk_errors
from chainwright._registry import register
from chainwright.decode.run import generate
from chainwright.models import provenance
from chainwright.models.anatomy import anatomy
from chainwright.repair.base import Repair
from chainwright.studies.config import DecodeSettings
from chainwright.studies.display import Display
from chainwright.studies.engine import Study
from chainwright.studies.plan import Job, Plan, Results, Watch
from chainwright.studies.records import sha256_of
from chainwright.tasks import Problem
from chainwright.traces import Trace, read_traces, write_traces

ROWS = 64  # per part: about one batch


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
        *,
        raw: bool = False,
        markers: tuple[str, str] | None = None,
    ) -> None:
        """Take the problems (or prompts) to decode, and in `config` the settings that they were drawn with."""
        self.raw, self.markers = raw, markers
        self.model, self.tokenizer, self.asked, self.settings, self.repair = model, tokenizer, asked, settings, repair
        self.config = {**config, **settings.record(), "rows": ROWS}
        # only where they are given, so that files that were begun before these options are resumed
        self.config |= {name: value for name, value in (("raw", raw), ("markers", markers)) if value}
        self.source = provenance(anatomy(model).model)

    def units(self, done: Results) -> list[str]:
        """Return one unit per part of the list."""
        return [f"part-{start // ROWS:06d}" for start in range(0, len(self.asked), ROWS)]

    def compute(self, job: Job) -> None:
        """Write the traces of a part."""
        start = ROWS * int(job.unit.removeprefix("part-"))
        asked = self.asked[start : start + ROWS]
        traces = generate(
            self.model,
            self.tokenizer,
            asked,
            repair=self.repair,
            **dict(self.settings),
            first_row=start,
            raw=self.raw,
            markers=self.markers,
            progress=False,
            on_traces=job.counter(len(asked)),
        )
        write_traces(job.out / "traces.parquet", traces)

    def title(self, unit: str) -> str:
        """Return a title such as "problems 65-128"."""
        start = ROWS * int(unit.removeprefix("part-"))
        return f"problems {start + 1}-{min(start + ROWS, len(self.asked))}"


def decode_in_memory(plan: TracesPlan, *, progress: bool = True) -> list[Trace]:
    """Decode all problems of a plan in one call, without a file."""
    return generate(
        plan.model,
        plan.tokenizer,
        plan.asked,
        repair=plan.repair,
        **dict(plan.settings),
        raw=plan.raw,
        markers=plan.markers,
        progress=progress,
    )


def generate_to(path: Path, plan: TracesPlan, *, overwrite: bool = False, progress: bool = True) -> list[Trace]:
    """Decode the problems of a plan into a Parquet file, resuming from the parts of an interrupted run.

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
    """Return the study of the parts; `overwrite` replaces one with other settings."""
    # Without `overwrite` first: parts of the same settings are resumed either way, never decoded again.
    try:
        return Study.make(parts, plan)
    except BadInput:
        if not overwrite:
            raise
    return Study.make(parts, plan, overwrite=True)


def identity_of(repair: str | None) -> str | None:
    """Return what identifies a repair: its name and, if it is a folder, the hashes of its files."""
    if repair is None or not Path(repair).is_dir():
        return repair
    files = sorted(path for path in Path(repair).rglob("*") if path.is_file())
    return f"{repair} ({', '.join(f'{path.name} {sha256_of(path)[:16]}' for path in files)})"
