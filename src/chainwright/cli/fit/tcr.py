"""The command `fit tcr`."""

from __future__ import annotations

from pathlib import Path

from chainwright._registry import register
from chainwright.cli import _parse
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

_CONFIG = "chainwright.repair.tcr.config"
PROBLEMS = ConfigOptions(f"{_CONFIG}:FitProblems", "task", "n", "seed", flags={"seed": "--seed"})
FIT = ConfigOptions(
    f"{_CONFIG}:FitConfig", "selector", "detector", "tau", "decision", "n_votes", flags={"n_votes": "--votes"}
)
CANDIDATES = ConfigOptions(f"{_CONFIG}:CandidateConfig", "max_heads", "positions", "cover")
CLASSIFIER = ConfigOptions(
    f"{_CONFIG}:ClassifierConfig", "lr", "n_epochs", flags={"lr": "--selector-lr", "n_epochs": "--selector-epochs"}
)


@register("command", "fit.tcr")
def tcr(
    model: ModelName = "reasoner",
    hops: HopCounts = None,
    problems: Values = PROBLEMS,
    out_folder: RepairFolder = Path("runs/tcr-repair"),
    rendering: RenderingName = "auto",
    fit: Values = FIT,
    candidates: Values = CANDIDATES,
    classifier: Values = CLASSIFIER,
    source: Values = SOURCE,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Locate erroneous heads, learn when to silence which of them, and save the repair."""
    from chainwright import tasks
    from chainwright.prompts.rendering import rendering_for
    from chainwright.repair.tcr.config import CandidateConfig, ClassifierConfig, FitConfig, FitProblems
    from chainwright.repair.tcr.fit import fit_tcr_on_problems
    from chainwright.repair.tcr.repair import TCR
    from chainwright.tasks.cells import fit_cells, sample_cells

    _parse.check_free(out_folder, overwrite)
    chosen = rendering_for(rendering, model)
    asked = FitProblems(**problems)
    cells = fit_cells(asked.task, hops, chosen)
    config = FitConfig(candidates=CandidateConfig(**candidates), classifier=ClassifierConfig(**classifier), **fit)
    # one order of the tasks, however they are listed: every third problem is for tuning
    ordered = {name: cells[name] for name in tasks.known() if name in cells}
    lessons = sample_cells(ordered, asked.n, asked.seed, chosen)
    loaded = load(model, source)
    fitted = fit_tcr_on_problems(
        loaded.model, loaded.tokenizer, lessons, config=config, say=_silent if quiet else _note
    )
    TCR.from_fit(fitted).save_pretrained(out_folder, overwrite=overwrite)
    say(fitted.candidates.summary())
    for name, value in fitted.figures.items():
        say(f"{value:8.3f}  {name}")
    say(f"Wrote the repair to {out_folder}")


def _note(line: str) -> None:
    err.print(line, markup=False, highlight=False)


def _silent(line: str) -> None:
    pass
