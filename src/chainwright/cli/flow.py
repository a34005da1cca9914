"""The command `flow`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from chainwright._registry import register
from chainwright.cli._command import Values
from chainwright.cli._options import HopCounts, ModelName, Overwrite, Quiet, Seed
from chainwright.cli._shared import load_repair, out, plain, print_table, say, uncollected
from chainwright.cli._source import SOURCE, load

if TYPE_CHECKING:
    from chainwright._finding import Finding
    from chainwright.models import LoadedModel


Prompt = Annotated[str | None, typer.Option("--prompt", help="Text that the target follows, used as it is.")]
Target = Annotated[str | None, typer.Option("--target", help="With --prompt: the answer to trace.")]
Against = Annotated[str | None, typer.Option("--against", help="With --prompt: another answer to compare it with.")]
TargetSpan = Annotated[
    str | None,
    typer.Option(
        "--span", metavar="first|sum", help="For a target of several tokens: trace the first, or the sum of all."
    ),
]
Entity = Annotated[str | None, typer.Option("--entity", help="With --prompt: words that name the entity, for stages.")]
Relation = Annotated[str | None, typer.Option("--relation", help="With --prompt: words that name the relation.")]
Questions = Annotated[
    str | None,
    typer.Option(
        "--task",
        "-t",
        help="'one-hop' or 'two-hop' questions of a made-up world, 'facts' or 'two-hop-facts' of the real one, or "
        "tasks with hops.",
    ),
]
WordOrder = Annotated[
    str | None,
    typer.Option(
        "--order",
        metavar="bare|possessive|nested",
        help="Wording of a made-up world's questions (default: as the model was trained).",
    ),
]
NQuestions = Annotated[int, typer.Option("-n", help="With --task: questions or slots of each kind to trace.")]
NProblems = Annotated[
    int, typer.Option("--n-problems", help="With tasks that have hops: problems per task and hop count.")
]
OneTraceFile = Annotated[
    Path | None, typer.Option("--trace-file", help="Follow a token of a response in this file of traces.")
]
TraceNumber = Annotated[
    int, typer.Option("--trace", help="With --trace-file: number of the trace, from 1, as in reports.")
]
Token = Annotated[
    int | None,
    typer.Option(
        "--token", help="With --trace-file: place of the token, from 0, as in reports (default: the first error)."
    ),
]
BackAttentionName = Annotated[
    str | None, typer.Option("--repair", help="Trace the model with this back-attention repair attached.")
]
FlowFolder = Annotated[Path, typer.Option("--out", "-o", help="Folder for findings and report.")]


@register("command", "flow")
def flow(
    model: ModelName = "world",
    prompt: Prompt = None,
    target: Target = None,
    against: Against = None,
    span: TargetSpan = None,
    entity: Entity = None,
    relation: Relation = None,
    task: Questions = None,
    order: WordOrder = None,
    hops: HopCounts = None,
    n: NQuestions = 20,
    n_problems: NProblems = 30,
    trace_file: OneTraceFile = None,
    trace: TraceNumber = 1,
    token: Token = None,
    repair: BackAttentionName = None,
    out_folder: FlowFolder = Path("runs/flow"),
    seed: Seed = 0,
    source: Values = SOURCE,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Trace which layers, heads and neurons produce an answer, and what activated them."""
    from chainwright.cli import _parse

    of_prompt = {"--target": target, "--against": against, "--span": span, "--entity": entity, "--relation": relation}
    _check_way(prompt, task, trace_file, of_prompt)
    span_mode = _parse.span_mode(span)
    _parse.check_free(out_folder / "report.html", overwrite)
    with uncollected():
        from chainwright.report import write_report
        from chainwright.studies import flow as flows
    loaded = load(model, source)
    with flows.attached(loaded.model, load_repair(repair)):
        if prompt is not None:
            assert target is not None
            asked = flows.PromptAsked(prompt, target, against, entity, relation, span_mode)
            found = flows.prompt_flow(loaded.model, loaded.tokenizer, asked)
        elif trace_file is not None:
            found = _of_trace(loaded, trace_file, trace, token)
        else:
            assert task is not None
            found = _of_task(loaded, model, task, order, hops, n, n_problems, seed, quiet)
    _print_found(found)
    path = flows.save_flow(found, out_folder, overwrite=overwrite)
    write_report(found, path)
    say(f"Report: {path}")


def _check_way(
    prompt: str | None, task: str | None, trace_file: Path | None, of_prompt: Mapping[str, str | None]
) -> None:
    """Raise BadInput unless one thing is to be followed, with options that belong to it."""
    from chainwright._errors import BadInput

    if sum(way is not None for way in (prompt, task, trace_file)) != 1:
        raise BadInput("Pass either --prompt with --target, or --task, or --trace-file.")
    if prompt is not None and of_prompt["--target"] is None:
        raise BadInput("--prompt needs --target, the answer to trace.")
    if prompt is None and (stray := [name for name, value in of_prompt.items() if value is not None]):
        raise BadInput(f"With --task or --trace-file {', '.join(stray)} would change nothing; they belong to --prompt.")


def _of_trace(loaded: LoadedModel, path: Path, number: int, token: int | None) -> list[Finding]:
    from chainwright._errors import BadInput
    from chainwright.studies import flow as flows
    from chainwright.traces import read_traces

    traces = read_traces(path, loaded.tokenizer)
    if not 1 <= number <= len(traces):
        raise BadInput(f"--trace must be from 1 to {len(traces)}, the traces of {path}; got {number}.")
    return flows.trace_flow(loaded.model, loaded.tokenizer, traces[number - 1], token)


def _of_task(
    loaded: LoadedModel,
    model: str,
    task: str,
    order: str | None,
    hops: str | None,
    n: int,
    n_problems: int,
    seed: int,
    quiet: bool,
) -> list[Finding]:
    from chainwright.cli import _parse
    from chainwright.prompts.rendering import rendering_for
    from chainwright.studies import flow as flows
    from chainwright.studies.fact_flow import FACT_TASKS, fact_flow
    from chainwright.tasks.cells import choose_cells, sample_cells

    if task in FACT_TASKS:
        return fact_flow(loaded.model, loaded.tokenizer, task, n=n, seed=seed, progress=not quiet)
    if task in flows.WORLD_TASKS:
        chosen = None if order is None else _parse.world_order(order)
        return flows.world_flow(loaded.model, loaded.tokenizer, model, task, order=chosen, n=n, seed=seed)
    rendering = rendering_for("auto", model)
    cells = choose_cells(task, hops, rendering, also=(*flows.WORLD_TASKS, *FACT_TASKS))
    problems = sample_cells(cells, n_problems, seed, rendering)
    return flows.chain_flow(loaded.model, loaded.tokenizer, problems, n=n, progress=not quiet)


def _print_found(found: list[Finding]) -> None:
    from chainwright.diagnose.flow.attribution import LogitFlow
    from chainwright.diagnose.flow.contrast import FlowContrast
    from chainwright.studies import flow as flows

    for finding in found:
        if isinstance(finding, LogitFlow):
            say(finding.summary())
            rows = [{**row, "nats": f"{row['nats']:+.3f}"} for row in finding.components()]
            print_table("Components that raise it most", rows)
    for title, rows in flows.stage_tables(found).items():
        columns = [("", *(str(row["queries"]) for row in rows))]
        columns += [(name, *(str(row[name]) for row in rows)) for name in rows[0] if name != "queries"]
        table = Table(
            *map(plain, columns[0]), title=f"Stages, {plain(title)}: layers of the middle 80% (centre), share"
        )
        for cells in columns[1:]:
            table.add_row(*cells)
        out.print(table)
    for line in flows.error_lines(found):
        say(line)
    for finding in found:
        if isinstance(finding, FlowContrast):
            say(finding.summary())
