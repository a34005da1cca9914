"""The command `fit back-attention`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

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

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

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
    positions: Annotated[
        str | None,
        typer.Option(
            "--positions",
            metavar="N,N|own",
            help="Positions that may be read, from 0, or each token's 'own' (default: all before it).",
        ),
    ] = None,
    words: Annotated[
        str | None,
        typer.Option("--words", help="Read only at these words, wherever they are; separated by commas."),
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
    depths, read_at = _depths(targets), _positions(positions)
    recipe = None if questions else recipe_for(model)
    # copies behind a random word would move what a position holds
    more = {"n_prefixes": 0} if isinstance(read_at, tuple) else {}
    problems = back_world.world_problems(recipe, **more) if recipe else read_problems(questions or "", kind)
    loaded = load(model, source)
    repair = BackAttention.fit(
        loaded.model, loaded.tokenizer, problems, targets=depths, positions=read_at,
        tokens=_tokens(loaded.tokenizer, words), training=training, progress=not quiet, **size,
    )  # fmt: skip
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


def _positions(text: str | None) -> tuple[int, ...] | Literal["own"] | None:
    if text is None or text == "own":
        return text  # type: ignore[return-value]
    return _parse.parse_numbers(text, "--positions")


def _tokens(tokenizer: PreTrainedTokenizerBase, words: str | None) -> list[int] | None:
    """Return every token that writes one of some words, at the beginning of a text or after a space.

    Raises:
        BadInput: A word that the tokenizer does not know.
    """
    from chainwright._errors import BadInput

    if words is None:
        return None
    ids: set[int] = set()
    for word in (part.strip() for part in words.split(",")):
        written = {*tokenizer(word, add_special_tokens=False)["input_ids"]}
        written |= {*tokenizer(f" {word}", add_special_tokens=False)["input_ids"]}
        if not word or not written or tokenizer.unk_token_id in written:
            raise BadInput(f"--words takes words that the tokenizer knows, separated by commas; {word!r} is not known.")
        ids |= written
    return sorted(ids)
