"""The command `evaluate`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

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
from chainwright.cli._problems import PROBLEM_SET, problem_source
from chainwright.cli._ranks import in_ranks
from chainwright.cli._samples import print_samples
from chainwright.cli._shared import print_accuracy, say
from chainwright.cli._source import SOURCE, load_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from chainwright.traces import JsonlTraces, Trace


@register("command", "evaluate")
def evaluate(
    model: ModelName = "reasoner",
    task: Annotated[
        str | None, typer.Option("--task", "-t", help="A task, several separated by commas, or 'all' (default: all).")
    ] = None,
    hops: HopCounts = None,
    n: Annotated[
        int | None,
        typer.Option("-n", help="Problems per task and hop count (default: 100), or of --problems (default: all)."),
    ] = None,
    problems: Values = PROBLEM_SET,
    traces: Annotated[
        Path | None,
        typer.Option("--traces", help="Take the traces in this file instead, in any format that is recognised."),
    ] = None,
    think_markers: Markers = None,
    out_file: TraceFile = None,
    rendering: RenderingName = "auto",
    raw: Raw = False,
    asking: Values = ASKING,
    repair: RepairNames = None,
    decoding: Values = DECODING,
    source: Values = SOURCE,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Print accuracy per task and hop count, with Wilson intervals, and the types of first errors."""
    from chainwright.cli._trace_files import are_judged
    from chainwright.diagnose.errors import first_errors
    from chainwright.evaluation import accuracy

    if traces is None:
        (out_file,) = in_ranks(source["tp"], out_file)
        asked = Asked(task, "all", hops, n, 100, rendering, problems, asking, raw=raw, markers=think_markers)
        judged = decode(model, source, asked, decoding, repair or (), out_file, overwrite=overwrite, quiet=quiet)
    else:
        _check_only_reads(repair, out_file, source)
        _check_unasked({"--task": task, "--hops": hops, "-n": n, "--raw": raw or None}, asking, decoding)
        judged = _from_file(traces, load_tokenizer(model, source), problems, think_markers)
    if are_judged(judged):
        print_accuracy(accuracy.evaluate(judged))
        print_samples(judged)
        say(first_errors(judged).summary())


def _check_only_reads(repair: list[str] | None, out_file: Path | None, source: Values) -> None:
    from chainwright._errors import BadInput

    if repair:
        raise BadInput("--repair changes how a model decodes, but --traces are decoded already; pass only one of them.")
    if out_file is not None:
        raise BadInput("--out writes new traces, but --traces only reads some; pass only one of them.")
    if used := [flag for name, flag in (("tp", "--tp"), ("device_map", "--device-map")) if source[name] is not None]:
        raise BadInput(f"{used[0]} says where a model runs, but --traces are answered already; pass only one of them.")


def _check_unasked(named: Mapping[str, object], asking: Values, decoding: Values) -> None:
    """Raise BadInput for an option that says how something is asked or decoded, which `--traces` have behind them."""
    from chainwright._errors import BadInput

    used = [flag for flag, value in named.items() if value is not None]
    for options, values in ((ASKING, asking), (DECODING, decoding)):
        used += [options.flag(name) for name, value in values.items() if value != options.default(name)]
    if used:
        raise BadInput(f"{used[0]} says how problems are asked, but --traces are answered already; pass one of them.")


def _from_file(
    path: Path, tokenizer: PreTrainedTokenizerBase, problems: Values, markers: tuple[str, str] | None
) -> list[Trace]:
    """Return the traces of a file, judged by the problem set that is named, if one is."""
    from chainwright.cli._trace_files import read_file
    from chainwright.traces.source import read_traces

    skip_bad = bool(problems["skip_bad"])
    source = problem_source(problems if problems["source"] else {**problems, "skip_bad": False})
    if source is None:
        return _read(read_file(path, tokenizer, skip_bad=skip_bad, markers=markers))
    judged = read_traces(path, tokenizer, problems=source.load().problems, skip_bad=skip_bad, markers=markers)
    say(f"Read {len(judged)} traces.")
    return judged


def _read(read: JsonlTraces) -> list[Trace]:
    """Return the traces that were read; print how many, which lines were skipped, and how many are right."""
    judged = [trace.is_correct for trace in read.traces if trace.is_correct is not None]
    say(f"Read {len(read.traces)} traces; skipped {len(read.bad_lines)} broken lines.")
    for line in read.bad_lines:
        say(f"  line {line.number}: {line.reason}")
    if judged:
        say(f"Right: {sum(judged)} of the {len(judged)} traces that are judged.")
    return list(read.traces)
