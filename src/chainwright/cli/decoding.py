"""Commands that let a model answer: generate and evaluate."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from chainwright._errors import BadInput
from chainwright.cli._options import (
    BatchSize,
    Device,
    Dtype,
    HopCounts,
    MaxNewTokens,
    ModelName,
    NProblems,
    Overwrite,
    Quiet,
    RemoteCode,
    RenderingName,
    RepairName,
    Revision,
    Seed,
    TaskNames,
    Temperature,
)
from chainwright.cli._shared import clear_errors, load, load_repair, out, plain, print_accuracy, print_cost

if TYPE_CHECKING:
    from chainwright.studies.generation import TracesPlan
    from chainwright.traces import JsonlTraces, Trace

OutFile = Annotated[
    Path | None,
    typer.Option("--out", "-o", help="Write the traces here (Parquet); what was stopped is gone on with."),
]


@clear_errors
def generate(
    model: ModelName = "reasoner",
    task: TaskNames = "parity",
    hops: HopCounts = None,
    n: NProblems = 10,
    prompt: Annotated[str | None, typer.Option(help="Ask this instead of a task's problems.")] = None,
    out_file: OutFile = None,
    seed: Seed = 0,
    rendering: RenderingName = "auto",
    repair: RepairName = None,
    temperature: Temperature = 0.0,
    max_new_tokens: MaxNewTokens = None,
    batch_size: BatchSize = None,
    device: Device = None,
    dtype: Dtype = None,
    revision: Revision = None,
    trust_remote_code: RemoteCode = False,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Generate traces, print the first one and the accuracy, and write them if asked."""
    from chainwright import prompts
    from chainwright.cli import _parse
    from chainwright.evaluation.accuracy import evaluate
    from chainwright.studies import generation
    from chainwright.tasks.cells import choose_cells, sample_cells

    chosen = prompts.rendering_for(rendering, model)
    cells = choose_cells(task, hops, chosen)
    asked = [prompt] if prompt is not None else sample_cells(cells, n, seed, chosen)
    _parse.check_free(out_file, overwrite)
    mended = load_repair(repair)
    loaded = load(model, device, dtype, revision, trust_remote_code)
    settings = generation.DecodeSettings(
        max_new_tokens=max_new_tokens, batch_size=batch_size, temperature=temperature, seed=seed
    )
    config = _config(model, cells if prompt is None else prompt, n, chosen, repair)
    plan = generation.TracesPlan(loaded.model, loaded.tokenizer, asked, settings, mended, config)
    traces = _decoded(plan, out_file, overwrite, quiet)
    out.rule("first trace")
    for text in (traces[0].prompt or "", traces[0].response or ""):
        out.print(text, markup=False, highlight=False)
    if prompt is None:
        print_accuracy(evaluate(traces))
    print_cost(mended)


@clear_errors
def evaluate(
    model: ModelName = "reasoner",
    task: TaskNames = "all",
    hops: HopCounts = None,
    n: NProblems = 100,
    traces: Annotated[
        Path | None, typer.Option(help="Evaluate these traces (Parquet, or JSONL of question and response) instead.")
    ] = None,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Leave broken lines of a JSONL file out.")] = False,
    out_file: OutFile = None,
    seed: Seed = 0,
    rendering: RenderingName = "auto",
    repair: RepairName = None,
    temperature: Temperature = 0.0,
    max_new_tokens: MaxNewTokens = None,
    batch_size: BatchSize = None,
    device: Device = None,
    dtype: Dtype = None,
    revision: Revision = None,
    trust_remote_code: RemoteCode = False,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Print accuracy by task and hops, with Wilson intervals, and the types of first errors."""
    from chainwright import diagnose, prompts
    from chainwright.cli import _parse, _trace_files
    from chainwright.evaluation import accuracy
    from chainwright.studies import generation
    from chainwright.tasks.cells import choose_cells, sample_cells

    chosen = prompts.rendering_for(rendering, model)
    cells = {} if traces is not None else choose_cells(task, hops, chosen)
    asked = sample_cells(cells, n, seed, chosen)
    if repair is not None and traces is not None:
        raise BadInput("--repair changes how a model decodes, but --traces are decoded already; give one of the two.")
    if out_file is not None and traces is not None:
        raise BadInput("--out is for new traces, but --traces are read; give one of the two.")
    _parse.check_free(out_file, overwrite)
    mended = load_repair(repair)
    loaded = load(model, device, dtype, revision, trust_remote_code)
    if traces is not None:
        read = _trace_files.read_file(traces, loaded.tokenizer, skip_bad=skip_bad)
        _print_read(read)
        found = read.traces
    else:
        settings = generation.DecodeSettings(
            max_new_tokens=max_new_tokens, batch_size=batch_size, temperature=temperature, seed=seed
        )
        config = _config(model, cells, n, chosen, repair)
        plan = generation.TracesPlan(loaded.model, loaded.tokenizer, asked, settings, mended, config)
        found = _decoded(plan, out_file, overwrite, quiet)
    if _trace_files.are_judged(found):
        print_accuracy(accuracy.evaluate(found))
        out.print(diagnose.first_errors(found).summary(), highlight=False)
    print_cost(mended)


def _config(model: str, asked: object, n: int, rendering: str, repair: str | None) -> dict[str, object]:
    from chainwright.studies.generation import identity_of

    return {"model": model, "asked": asked, "n": n, "rendering": rendering, "repair": identity_of(repair)}


def _decoded(plan: TracesPlan, out_file: Path | None, overwrite: bool, quiet: bool) -> list[Trace]:
    """Decode in memory or, with a file to write, in parts that survive a kill."""
    from chainwright.studies.generation import decode_in_memory, generate_to

    if out_file is None:
        return decode_in_memory(plan, progress=not quiet)
    traces = generate_to(out_file, plan, overwrite=overwrite, progress=not quiet)
    out.print(f"Wrote {len(traces)} traces to {out_file}", soft_wrap=True)
    return traces


def _print_read(read: JsonlTraces) -> None:
    judged = [t for t in read.traces if t.is_correct is not None]
    right = sum(bool(t.is_correct) for t in judged)
    out.print(f"Read {len(read.traces)} traces; skipped {len(read.bad_lines)} broken lines.", highlight=False)
    for line in read.bad_lines:
        out.print(f"  line {line.number}: {plain(line.reason)}", highlight=False)
    if judged:
        out.print(f"Right: {right} of the {len(judged)} that say whether they are.", highlight=False)
