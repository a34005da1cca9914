"""The command `generate`."""

from __future__ import annotations

from typing import Annotated

import typer

from chainwright._registry import register
from chainwright.cli._asking import ASKING
from chainwright.cli._command import Values
from chainwright.cli._decoding import DECODING, Asked, decode
from chainwright.cli._options import (
    HopCounts,
    Markers,
    ModelName,
    Overwrite,
    Quiet,
    Raw,
    RenderingName,
    RepairNames,
    TraceFile,
)
from chainwright.cli._problems import PROBLEM_SET
from chainwright.cli._ranks import in_ranks
from chainwright.cli._samples import print_samples
from chainwright.cli._shared import out, print_accuracy
from chainwright.cli._source import SOURCE


@register("command", "generate")
def generate(
    model: ModelName = "reasoner",
    task: Annotated[
        str | None,
        typer.Option("--task", "-t", help="A task, several separated by commas, or 'all' (default: parity)."),
    ] = None,
    hops: HopCounts = None,
    n: Annotated[
        int | None,
        typer.Option("-n", help="Problems per task and hop count (default: 10), or of --problems (default: all)."),
    ] = None,
    problems: Values = PROBLEM_SET,
    prompt: Annotated[str | None, typer.Option("--prompt", help="Ask this text instead of problems of tasks.")] = None,
    out_file: TraceFile = None,
    rendering: RenderingName = "auto",
    raw: Raw = False,
    asking: Values = ASKING,
    think_markers: Markers = None,
    repair: RepairNames = None,
    decoding: Values = DECODING,
    source: Values = SOURCE,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Let a model answer problems or a prompt; print the first trace and the accuracy, and write the traces."""
    from chainwright.evaluation.accuracy import evaluate

    (out_file,) = in_ranks(source["tp"], out_file)
    asked = Asked(task, "parity", hops, n, 10, rendering, problems, asking, prompt, raw, think_markers)
    traces = decode(model, source, asked, decoding, repair or (), out_file, overwrite=overwrite, quiet=quiet)
    out.rule("first trace")
    for text in (traces[0].prompt or "", traces[0].response or ""):
        out.print(text, markup=False, highlight=False)
    if prompt is None:
        print_accuracy(evaluate(traces))
        print_samples(traces)
