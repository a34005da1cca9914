"""Commands on logit flow: flow."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from chainwright.cli._options import Device, Dtype, HopCounts, ModelName, Overwrite, Quiet, RemoteCode, Revision, Seed
from chainwright.cli._shared import clear_errors, load, load_repair, out, plain

if TYPE_CHECKING:
    from chainwright._finding import Finding
    from chainwright.models import LoadedModel


@clear_errors
def flow(
    model: ModelName = "world",
    prompt: Annotated[str | None, typer.Option(help="The text before the target, as it is.")] = None,
    target: Annotated[str | None, typer.Option(help="With --prompt: the answer to follow.")] = None,
    against: Annotated[str | None, typer.Option(help="With --prompt: an answer to compare with.")] = None,
    span: Annotated[
        str | None, typer.Option(help="For a target of several tokens: 'first' follows the first, 'sum' adds up all.")
    ] = None,
    entity: Annotated[str | None, typer.Option(help="With --prompt: words that name the entity, for stages.")] = None,
    relation: Annotated[str | None, typer.Option(help="With --prompt: words that name the relation.")] = None,
    task: Annotated[
        str | None, typer.Option("--task", "-t", help="'one-hop' or 'two-hop' of a made-up world, or tasks with hops.")
    ] = None,
    order: Annotated[
        str | None,
        typer.Option(help="Wording of a world's questions: 'bare', 'possessive' or 'nested'; left out: as trained."),
    ] = None,
    hops: HopCounts = None,
    n: Annotated[int, typer.Option("-n", help="With --task: questions or slots of each kind.")] = 20,
    n_problems: Annotated[int, typer.Option(help="With tasks that have hops: problems a task and hop count.")] = 30,
    repair: Annotated[
        str | None, typer.Option("--repair", help="Follow the model with this back attention attached.")
    ] = None,
    out_folder: Annotated[Path, typer.Option("--out", "-o", help="Folder for findings and report.")] = Path(
        "runs/flow"
    ),
    seed: Seed = 0,
    device: Device = None,
    dtype: Dtype = None,
    revision: Revision = None,
    trust_remote_code: RemoteCode = False,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Show what writes an answer, layer by layer, what switched that on, and the stages A to D."""
    from chainwright._errors import BadInput
    from chainwright.cli import _parse
    from chainwright.report import write_report
    from chainwright.studies import flow as flows

    if (prompt is None) == (task is None):
        raise BadInput("Give either --prompt with --target, or --task.")
    _parse.check_free(out_folder / "report.html", overwrite)
    if prompt is not None:
        if target is None:
            raise BadInput("--prompt needs --target, the answer whose writing is followed.")
        asked = flows.PromptAsked(prompt, target, against, entity, relation, _parse.span_mode(span))
        loaded = load(model, device, dtype, revision, trust_remote_code)
        with flows.mended(loaded.model, load_repair(repair)):
            found = flows.prompt_flow(loaded.model, loaded.tokenizer, asked)
    else:
        assert task is not None
        lone = {"--target": target, "--against": against, "--span": span, "--entity": entity, "--relation": relation}
        if stray := [name for name, value in lone.items() if value is not None]:
            raise BadInput(
                f"With --task the questions say what is followed; {', '.join(stray)} can only stand with --prompt."
            )
        loaded = load(model, device, dtype, revision, trust_remote_code)
        with flows.mended(loaded.model, load_repair(repair)):
            found = _of_task(loaded, model, task, order, hops, n, n_problems, seed, quiet)
    _print_found(found)
    path = flows.save_flow(found, out_folder, overwrite=overwrite)
    write_report(found, path)
    out.print(f"Report: {path}", soft_wrap=True, highlight=False)


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
    from chainwright import prompts
    from chainwright.cli import _parse
    from chainwright.studies import flow as flows
    from chainwright.tasks.cells import choose_cells, sample_cells

    if task in flows.WORLD_TASKS:
        chosen = None if order is None else _parse.world_order(order)
        return flows.world_flow(loaded.model, loaded.tokenizer, model, task, order=chosen, n=n, seed=seed)
    rendering = prompts.rendering_for("auto", model)
    cells = choose_cells(task, hops, rendering, also=flows.WORLD_TASKS)
    problems = sample_cells(cells, n_problems, seed, rendering)
    return flows.chain_flow(loaded.model, loaded.tokenizer, problems, n=n, progress=not quiet)


def _print_found(found: list[Finding]) -> None:
    from chainwright.diagnose.flow.attribution import LogitFlow
    from chainwright.diagnose.flow.contrast import FlowContrast
    from chainwright.studies import flow as flows

    for one in found:
        if isinstance(one, LogitFlow):
            out.print(plain(one.summary()), highlight=False, soft_wrap=True)
            rows = [{**row, "nats": f"{row['nats']:+.3f}"} for row in one.components()]
            _print("Components that raise it most", rows)
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
        out.print(plain(line), highlight=False, soft_wrap=True)
    for one in found:
        if isinstance(one, FlowContrast):
            out.print(plain(one.summary()), highlight=False, soft_wrap=True)


def _print(title: str, rows: list[dict[str, object]]) -> None:
    table = Table(*rows[0], title=title)
    for row in rows:
        table.add_row(*(plain(str(value)) for value in row.values()))
    out.print(table)
