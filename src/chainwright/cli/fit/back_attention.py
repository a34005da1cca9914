"""The command `fit back-attention`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import typer

from chainwright._registry import register
from chainwright.cli import _parse
from chainwright.cli._command import ConfigOptions, Values
from chainwright.cli._options import (
    Changes,
    ModelName,
    Overwrite,
    Quiet,
    RepairFolder,
)
from chainwright.cli._shared import say
from chainwright.cli._source import SOURCE, load

SIZE = ConfigOptions(
    "chainwright.repair.back_attention.repair:BackAttention.fit",
    "source",
    "d_back",
    flags={"d_back": "--size"},
    helps={
        "source": "Layer whose input is changed, or several separated by commas.",
        "d_back": "Size of queries, keys and values.",
    },
)


@register("command", "fit.back-attention")
def back_attention(
    model: ModelName = "world",
    questions: Annotated[
        Path | None,
        typer.Option(
            "--questions", help="File of questions to fit on (default: the training questions of a made-up world)."
        ),
    ] = None,
    kind: Annotated[
        str, typer.Option("--kind", metavar="two-hop|svamp|multiarith", help="Format of that file.")
    ] = "two-hop",
    targets: Annotated[
        str | None,
        typer.Option(
            "--targets", help="Depths that are read, such as '4,5', or 'stack' (default: the last layer's output)."
        ),
    ] = None,
    size: Values = SIZE,
    out_folder: RepairFolder = Path("runs/back-attention"),
    changes: Changes = None,
    source: Values = SOURCE,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Train back attention beside a frozen model on questions and their answers, and save the repair."""
    from chainwright.lab import back_world
    from chainwright.lab.knowledge import recipe_for
    from chainwright.repair.back_attention.repair import BackAttention
    from chainwright.repair.back_attention.training import AnswerTraining
    from chainwright.tasks.readers import read_problems

    _parse.check_free(out_folder, overwrite)
    training = _parse.changed(AnswerTraining(), changes or [])
    depths = _depths(targets)
    recipe = None if questions else recipe_for(model)
    problems = back_world.world_problems(recipe) if recipe else read_problems(questions or "", kind)
    loaded = load(model, source)
    repair = BackAttention.fit(
        loaded.model, loaded.tokenizer, problems, targets=depths, training=training, progress=not quiet, **size
    )
    if recipe is not None:
        repair = back_world.with_figures(repair, loaded.model, loaded.tokenizer, recipe)
    repair.save_pretrained(out_folder, overwrite=overwrite)
    for row in repair.origin.figures:
        say(f"{row['model alone']:8.3f} -> {row['repaired']:.3f}  {row['questions']}")
    say(f"Wrote the repair to {out_folder}")


def _depths(text: str | None) -> Sequence[int] | Literal["stack"] | None:
    if text is None or text == "stack":
        return text  # type: ignore[return-value]
    return _parse.parse_numbers(text, "--targets")
