"""Decoding problems for `generate` and `evaluate`: from options to traces, in memory or into a file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from chainwright.cli import _parse
from chainwright.cli._command import ConfigOptions, Values
from chainwright.cli._shared import load_repairs, print_cost, say
from chainwright.cli._source import load

if TYPE_CHECKING:
    from chainwright.traces import Trace

DECODING = ConfigOptions(
    "chainwright.studies.config:DecodeSettings", "seed", "temperature", "max_new_tokens", "batch_size"
)


@dataclass(frozen=True)
class Asked:
    """What is decoded: problems of tasks, or one prompt."""

    task: str
    hops: str | None
    n: int
    rendering: str
    prompt: str | None = None
    raw: bool = False
    markers: tuple[str, str] | None = None


def decode(
    model: str,
    source: Values,
    asked: Asked,
    decoding: Values,
    repair: Sequence[str],
    out_file: Path | None,
    *,
    overwrite: bool,
    quiet: bool,
) -> list[Trace]:
    """Return the traces that the options ask for; say how they were asked, what a repair cost, and what was written."""
    from chainwright.prompts.describe import describe
    from chainwright.prompts.rendering import rendering_for
    from chainwright.studies import generation
    from chainwright.studies.config import DecodeSettings
    from chainwright.tasks.cells import choose_cells, sample_cells

    rendering = rendering_for(asked.rendering, model)
    cells = choose_cells(asked.task, asked.hops, rendering)
    settings = DecodeSettings(**decoding)
    is_prompt = asked.prompt is not None
    problems = [asked.prompt] if asked.prompt is not None else sample_cells(cells, asked.n, settings.seed, rendering)
    _parse.check_free(out_file, overwrite)
    fixed = load_repairs(repair)
    loaded = load(model, source)
    chosen_by = {
        "model": model,
        "asked": asked.prompt if is_prompt else cells,
        "n": asked.n,
        "rendering": rendering,
        "repair": _identity(repair),
    }
    plan = generation.TracesPlan(
        loaded.model, loaded.tokenizer, problems, settings, fixed, chosen_by, raw=asked.raw, markers=asked.markers
    )
    if out_file is None:
        traces = generation.decode_in_memory(plan, progress=not quiet)
    else:
        traces = generation.generate_to(out_file, plan, overwrite=overwrite, progress=not quiet)
        say(f"Wrote {len(traces)} traces to {out_file}")
    say(describe(traces))
    print_cost(fixed)
    return traces


def _identity(repairs: Sequence[str]) -> str | list[str | None] | None:
    """Return what identifies the repairs of a trace file, that of a single one as it always was."""
    from chainwright.studies.generation import identity_of

    return [identity_of(name) for name in repairs] if len(repairs) > 1 else identity_of(next(iter(repairs), None))
