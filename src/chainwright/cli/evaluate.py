"""The command `evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from chainwright._registry import register
from chainwright.cli._command import Values
from chainwright.cli._decoding import DECODING, Asked, Source, decode
from chainwright.cli._options import (
    Device,
    Dtype,
    HopCounts,
    ModelName,
    NProblems,
    Overwrite,
    Quiet,
    Raw,
    RemoteCode,
    RenderingName,
    RepairName,
    Revision,
    TaskNames,
    TraceFile,
)
from chainwright.cli._shared import print_accuracy, say

if TYPE_CHECKING:
    from chainwright.traces import JsonlTraces, Trace


@register("command", "evaluate")
def evaluate(
    model: ModelName = "reasoner",
    task: TaskNames = "all",
    hops: HopCounts = None,
    n: NProblems = 100,
    traces: Annotated[
        Path | None,
        typer.Option("--traces", help="Evaluate these traces instead: Parquet, or JSONL with question and response."),
    ] = None,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Skip broken lines of a JSONL file.")] = False,
    think_markers: Annotated[
        tuple[str, str] | None,
        typer.Option("--think-markers", metavar="OPEN CLOSE", help="What is around the thinking in a JSONL file."),
    ] = None,
    out_file: TraceFile = None,
    rendering: RenderingName = "auto",
    raw: Raw = False,
    repair: RepairName = None,
    decoding: Values = DECODING,
    device: Device = None,
    dtype: Dtype = None,
    revision: Revision = None,
    trust_remote_code: RemoteCode = False,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Print accuracy per task and hop count, with Wilson intervals, and the types of first errors."""
    from chainwright.cli._trace_files import are_judged, read_file
    from chainwright.diagnose.errors import first_errors
    from chainwright.evaluation import accuracy

    source = Source(model, device, dtype, revision, trust_remote_code)
    if traces is None:
        asked = Asked(task, hops, n, rendering, raw=raw)
        judged = decode(source, asked, decoding, repair, out_file, overwrite=overwrite, quiet=quiet)
    else:
        _check_only_reads(repair, out_file)
        judged = _read(read_file(traces, source.tokenizer(), skip_bad=skip_bad, markers=think_markers))
    if are_judged(judged):
        print_accuracy(accuracy.evaluate(judged))
        say(first_errors(judged).summary())


def _check_only_reads(repair: str | None, out_file: Path | None) -> None:
    from chainwright._errors import BadInput

    if repair is not None:
        raise BadInput("--repair changes how a model decodes, but --traces are decoded already; pass only one of them.")
    if out_file is not None:
        raise BadInput("--out writes new traces, but --traces only reads some; pass only one of them.")


def _read(read: JsonlTraces) -> list[Trace]:
    """Return the traces that were read; print how many, which lines were skipped, and how many are right."""
    judged = [trace.is_correct for trace in read.traces if trace.is_correct is not None]
    say(f"Read {len(read.traces)} traces; skipped {len(read.bad_lines)} broken lines.")
    for line in read.bad_lines:
        say(f"  line {line.number}: {line.reason}")
    if judged:
        say(f"Right: {sum(judged)} of the {len(judged)} traces that are judged.")
    return list(read.traces)
