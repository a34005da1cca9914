"""The command `generate`."""

from __future__ import annotations

from typing import Annotated

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
from chainwright.cli._shared import out, print_accuracy


@register("command", "generate")
def generate(
    model: ModelName = "reasoner",
    task: TaskNames = "parity",
    hops: HopCounts = None,
    n: NProblems = 10,
    prompt: Annotated[str | None, typer.Option("--prompt", help="Ask this text instead of problems of tasks.")] = None,
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
    """Let a model answer problems or a prompt; print the first trace and the accuracy, and write the traces."""
    from chainwright.evaluation.accuracy import evaluate

    source = Source(model, device, dtype, revision, trust_remote_code)
    asked = Asked(task, hops, n, rendering, prompt, raw)
    traces = decode(source, asked, decoding, repair, out_file, overwrite=overwrite, quiet=quiet)
    out.rule("first trace")
    for text in (traces[0].prompt or "", traces[0].response or ""):
        out.print(text, markup=False, highlight=False)
    if prompt is None:
        print_accuracy(evaluate(traces))
