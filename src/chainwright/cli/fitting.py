"""Commands that fit repairs: fit tcr, fit back-attention."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from chainwright.cli._options import (
    Device,
    Dtype,
    HopCounts,
    ModelName,
    NProblems,
    Overwrite,
    Quiet,
    RemoteCode,
    RenderingName,
    Revision,
)
from chainwright.cli._shared import clear_errors, err, load, out


@clear_errors
def tcr(
    model: ModelName = "reasoner",
    task: Annotated[str, typer.Option("--task", "-t", help="Tasks to fit on.")] = "parity,mdm,llc,clf,moas",
    hops: HopCounts = None,
    n: NProblems = 80,
    out_folder: Annotated[Path, typer.Option("--out", "-o", help="Folder for the repair.")] = Path("runs/tcr-repair"),
    seed: Annotated[int, typer.Option(help="Decides the problems to fit and tune on.")] = 100,
    rendering: RenderingName = "auto",
    selector: Annotated[
        str, typer.Option(help="'light', or a base classifier: a bundled name, a folder, a Hub id.")
    ] = "light",
    selector_lr: Annotated[float, typer.Option(help="Learning rate of a base classifier; 1e-4 is the paper's.")] = 1e-4,
    selector_epochs: Annotated[int, typer.Option(help="Its passes over the samples; 3 is the paper's.")] = 3,
    detector: Annotated[str, typer.Option(help="'trained' or 'entropy'.")] = "trained",
    tau: Annotated[float | None, typer.Option(help="Entropy threshold in nats; left out: tuned.")] = None,
    positions: Annotated[str, typer.Option(help="Silence heads at 'all' positions or the 'last'.")] = "all",
    cover: Annotated[str, typer.Option(help="Heads are to cover errors ('samples') or error 'types'.")] = "samples",
    max_heads: Annotated[int, typer.Option(help="Most candidate heads.")] = 8,
    decision: Annotated[
        str, typer.Option(help="'verify': a network reads the runs without heads; 'vote': they vote, as in the paper.")
    ] = "verify",
    n_votes: Annotated[
        int | None, typer.Option("--votes", help="Heads that vote; left out: the paper's 3, or 1 if clearly better.")
    ] = None,
    device: Device = None,
    dtype: Dtype = None,
    revision: Revision = None,
    trust_remote_code: RemoteCode = False,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Find erroneous heads, learn when and which to silence, and save the repair."""
    from chainwright import prompts, tasks
    from chainwright.cli import _parse
    from chainwright.repair.tcr.candidate_heads import CandidateConfig
    from chainwright.repair.tcr.fit import FitConfig, fit_tcr_on_problems
    from chainwright.repair.tcr.repair import TCR
    from chainwright.repair.tcr.selector import ClassifierConfig
    from chainwright.tasks.cells import fit_cells, sample_cells

    _parse.check_free(out_folder, overwrite)
    chosen = prompts.rendering_for(rendering, model)
    cells = fit_cells(task, hops, chosen)
    candidates = CandidateConfig(max_heads=max_heads, cover=cover, positions=positions)  # type: ignore[arg-type]
    fit = FitConfig(
        candidates=candidates,
        detector=detector,
        tau=tau,
        n_votes=n_votes,
        selector=selector,
        classifier=ClassifierConfig(lr=selector_lr, n_epochs=selector_epochs),
        decision=decision,  # type: ignore[arg-type]
    )
    # in one order of the tasks, however they were named: every third problem is for tuning
    problems = sample_cells({name: cells[name] for name in tasks.known() if name in cells}, n, seed, chosen)
    loaded = load(model, device, dtype, revision, trust_remote_code)
    say = (lambda line: None) if quiet else (lambda line: err.print(line, markup=False, highlight=False))
    fitted = fit_tcr_on_problems(loaded.model, loaded.tokenizer, problems, config=fit, say=say)
    TCR.from_fit(fitted).save_pretrained(out_folder, overwrite=overwrite)
    out.print(fitted.candidates.summary(), markup=False, highlight=False)
    for name, value in fitted.figures.items():
        out.print(f"{value:8.3f}  {name}", markup=False, highlight=False)
    out.print(f"Wrote the repair to {out_folder}", soft_wrap=True, highlight=False)


@clear_errors
def back_attention(
    model: ModelName = "world",
    questions: Annotated[
        Path | None,
        typer.Option("--questions", help="File to fit on; left out: the training questions of a made-up world."),
    ] = None,
    kind: Annotated[
        str, typer.Option("--kind", help="What the file is: 'two-hop', 'svamp' or 'multiarith'.")
    ] = "two-hop",
    source: Annotated[str, typer.Option("--source", help="Layer, or layers with commas, that read back.")] = "0",
    targets: Annotated[
        str | None,
        typer.Option("--targets", help="Depths to read, such as 4,5, or 'stack'; left out: the last layer's output."),
    ] = None,
    d_back: Annotated[int, typer.Option("--size", help="Size of queries, keys and values.")] = 64,
    out_folder: Annotated[Path, typer.Option("--out", "-o", help="Folder for the repair.")] = Path(
        "runs/back-attention"
    ),
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", help="A setting of the training, such as n_steps=100; may be given several times."),
    ] = None,
    device: Device = None,
    dtype: Dtype = None,
    revision: Revision = None,
    trust_remote_code: RemoteCode = False,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Train back attention beside a frozen model on questions and their answers, and save the repair."""
    from chainwright.cli import _parse
    from chainwright.lab import back_world
    from chainwright.lab.knowledge import recipe_for
    from chainwright.models.anatomy import anatomy
    from chainwright.repair.back_attention.repair import BackAttention
    from chainwright.repair.back_attention.training import AnswerTraining
    from chainwright.tasks.readers import read_problems

    _parse.check_free(out_folder, overwrite)
    training = _parse.changed(AnswerTraining(), changes or [])
    sources = _parse.parse_layers(source, "--source")
    depths = None if targets in (None, "stack") else _parse.parse_layers(targets or "", "--targets")
    recipe = None if questions else recipe_for(model)
    problems = back_world.world_problems(recipe) if recipe else read_problems(questions or "", kind)
    loaded = load(model, device, dtype, revision, trust_remote_code)
    if targets is None:
        depths = (anatomy(loaded.model).n_layers,)
    repair = BackAttention.fit(
        loaded.model, loaded.tokenizer, problems, source=sources, targets=depths, d_back=d_back, training=training,
        progress=not quiet,
    )  # fmt: skip
    if recipe is not None:
        repair = back_world.with_figures(repair, loaded.model, loaded.tokenizer, recipe)
    repair.save_pretrained(out_folder, overwrite=overwrite)
    for row in repair.origin.figures:
        line = f"{row['model alone']:8.3f} -> {row['repaired']:.3f}  {row['questions']}"
        out.print(line, markup=False, highlight=False)
    out.print(f"Wrote the repair to {out_folder}", soft_wrap=True, highlight=False)
