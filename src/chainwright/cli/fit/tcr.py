"""The command `fit tcr`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from chainwright._registry import register
from chainwright.cli import _parse
from chainwright.cli._asking import ASKING, asking_of
from chainwright.cli._command import ConfigOptions, Values
from chainwright.cli._options import (
    HopCounts,
    ModelName,
    Overwrite,
    Quiet,
    RenderingName,
    RepairFolder,
)
from chainwright.cli._shared import err, say
from chainwright.cli._source import SOURCE, load

if TYPE_CHECKING:
    from chainwright.models import LoadedModel
    from chainwright.tasks import Problem
    from chainwright.traces import Trace

_CONFIG = "chainwright.repair.tcr.config"
PROBLEMS = ConfigOptions(f"{_CONFIG}:FitProblems", "task", "n", "seed", flags={"seed": "--seed"})
FIT = ConfigOptions(
    f"{_CONFIG}:FitConfig", "selector", "detector", "tau", "decision", "n_votes", flags={"n_votes": "--votes"}
)
CANDIDATES = ConfigOptions(
    f"{_CONFIG}:CandidateConfig", "max_heads", "positions", "cover", "n_contexts", "n_lessons", "min_errors",
    "sweep_bytes",
    flags={"n_contexts": "--contexts", "n_lessons": "--lessons"},
)  # fmt: skip
CLASSIFIER = ConfigOptions(
    f"{_CONFIG}:ClassifierConfig", "lr", "n_epochs", flags={"lr": "--selector-lr", "n_epochs": "--selector-epochs"}
)


@register("command", "fit.tcr")
def tcr(
    model: ModelName = "reasoner",
    hops: HopCounts = None,
    problems: Values = PROBLEMS,
    pivots: Annotated[
        Path | None,
        typer.Option("--pivots", help="Fit on the responses in this folder of `chainwright pivots`, not on tasks."),
    ] = None,
    out_folder: RepairFolder = Path("runs/tcr-repair"),
    rendering: RenderingName = "auto",
    asking: Values = ASKING,
    fit: Values = FIT,
    candidates: Values = CANDIDATES,
    classifier: Values = CLASSIFIER,
    source: Values = SOURCE,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Locate erroneous heads, learn when to silence which of them, and save the repair."""
    from chainwright._errors import BadInput
    from chainwright.repair.tcr.config import CandidateConfig, ClassifierConfig, FitConfig
    from chainwright.repair.tcr.fit import fit_tcr, fit_tcr_on_problems
    from chainwright.repair.tcr.repair import TCR

    _parse.check_free(out_folder, overwrite)
    config = FitConfig(candidates=CandidateConfig(**candidates), classifier=ClassifierConfig(**classifier), **fit)
    note = _silent if quiet else _note
    if pivots is not None:
        if hops is not None:
            raise BadInput("--pivots and --hops both say what is fitted on; pass only one of them.")
        if used := [ASKING.flag(name) for name, value in asking.items() if value != ASKING.default(name)]:
            raise BadInput(
                f"{used[0]} says how problems are asked, but --pivots are answered already; pass one of them."
            )
        traces = _searched(pivots)
        loaded = load(model, source)
        _check_model(pivots, loaded)
        fitted = fit_tcr(loaded.model, loaded.tokenizer, traces, config=config, say=note)
    else:
        how = asking_of(asking)
        lessons = _lessons(model, hops, problems, rendering)
        loaded = load(model, source)
        fitted = fit_tcr_on_problems(loaded.model, loaded.tokenizer, lessons, config=config, asking=how, say=note)
    TCR.from_fit(fitted).save_pretrained(out_folder, overwrite=overwrite)
    say(fitted.candidates.summary())
    for name, value in fitted.figures.items():
        say(f"{value:8.3f}  {name}")
    say(f"Wrote the repair to {out_folder}")


def _lessons(model: str, hops: str | None, problems: Values, rendering: str) -> list[Problem]:
    from chainwright import tasks
    from chainwright.prompts.rendering import rendering_for
    from chainwright.repair.tcr.config import FitProblems
    from chainwright.tasks.cells import fit_cells, sample_cells

    chosen = rendering_for(rendering, model)
    asked = FitProblems(**problems)
    cells = fit_cells(asked.task, hops, chosen)
    # one order of the tasks, however they are listed: every third problem is for tuning
    ordered = {name: cells[name] for name in tasks.known() if name in cells}
    return sample_cells(ordered, asked.n, asked.seed, chosen)


def _searched(folder: Path) -> list[Trace]:
    from chainwright.studies.pivots import traces_of

    return traces_of(folder)


def _check_model(folder: Path, loaded: LoadedModel) -> None:
    """Refuse a model that did not write the responses: its heads did not err there."""
    from chainwright._errors import BadInput
    from chainwright.models import provenance
    from chainwright.studies import Study

    wrote, own = Study.open(folder).manifest.model, provenance(loaded.model)
    if wrote.get("fingerprint") != own["fingerprint"]:
        raise BadInput(
            f"The responses in {folder} are searched with {wrote.get('model')!r}, and --model {own['model']!r} has "
            "other weights; fit the model that wrote them."
        )


def _note(line: str) -> None:
    err.print(line, markup=False, highlight=False)


def _silent(line: str) -> None:
    pass
