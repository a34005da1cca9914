"""The rendering that a problem is asked in: the one that the tokenizer is made for, unless it was chosen."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerBase

from chainwright._errors import BadInput, OtherRendering
from chainwright.models.sources import bundled_models, source_of
from chainwright.tasks import fix_rendering
from chainwright.tasks.base import Problem, Rendering


def as_asked(tokenizer: PreTrainedTokenizerBase, problem: Problem | str) -> Problem | str:
    """Return a problem in the rendering in which a model with this tokenizer is asked.

    A rendering that was chosen stays; an open one becomes short where `reads_short` holds, else natural.

    Raises:
        BadInput: The task has the short rendering alone, and the tokenizer is not made for it.
    """
    if isinstance(problem, str) or problem.draw is None:
        return problem
    return fix_rendering(problem, "short" if reads_short(tokenizer, problem) else "natural")


def reads_short(tokenizer: PreTrainedTokenizerBase, problem: Problem) -> bool:
    """Return whether a tokenizer is made for the short text of a problem, prompt and chain.

    That takes a word-level tokenizer, as the models trained here have, without an unknown word in the text. One
    without a chat template passes with unknown words too: the natural rendering has only more of them.
    """
    if problem.rendering != "short":  # an open problem of a task without a short rendering
        return False
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or not isinstance(backend.model, WordLevel):
        return False
    return not tokenizer.chat_template or _knows(tokenizer, problem)


def _knows(tokenizer: PreTrainedTokenizerBase, problem: Problem) -> bool:
    ids = tokenizer(f"{problem.prompt}{problem.chain}", add_special_tokens=False)["input_ids"]
    return tokenizer.unk_token_id not in ids


def warn_of_rendering(tokenizer: PreTrainedTokenizerBase, problems: Sequence[Problem | str]) -> None:
    """Warn if a problem of a task is asked in a short text that the tokenizer is not made for."""
    if any(_is_foreign(tokenizer, problem) for problem in problems):
        template = ", without the chat template" if tokenizer.chat_template else ""
        warnings.warn(
            f"Problems of the short rendering go to this model as bare words{template}, but its tokenizer is not "
            "made for them (they are for the small word-level models trained here); sample them with "
            "rendering='natural', or without a rendering, which is then chosen for the model.",
            OtherRendering,
            stacklevel=4,
        )


def _is_foreign(tokenizer: PreTrainedTokenizerBase, problem: Problem | str) -> bool:
    """Return whether a problem will be asked short although the tokenizer is not made for it."""
    if isinstance(problem, str) or problem.rendering != "short" or is_by_hand(problem):
        return False
    is_made_for_it = reads_short(tokenizer, problem)
    if problem.draw is not None and not is_made_for_it:
        return False  # it will be asked in the natural rendering
    # a question without a script has no other rendering; only a chat template would have changed how it is asked
    has_choice = bool(problem.lines or tokenizer.chat_template)
    return has_choice and not (is_made_for_it and _knows(tokenizer, problem))


def is_plain_text(problem: Problem | str) -> bool:
    """Return whether a prompt is text like any string, instead of one that a task wrote."""
    return isinstance(problem, str) or is_by_hand(problem)


def is_by_hand(problem: Problem) -> bool:
    """Return whether a problem was not drawn by a task: its prompt is text like any string, as in a problem set."""
    return not problem.lines and (problem.rendering == "natural" or not problem.facts)


def rendering_for(requested: str, model: str) -> Rendering:
    """Return the rendering to use where no tokenizer is loaded: as requested, or for "auto" by the model's name.

    A bundled model, or a folder with the `recipe.json` that Chainwright's training writes, reads the short rendering.
    That is what `reads_short` says of their tokenizers.

    Raises:
        BadInput: Neither "auto" nor a rendering.
    """
    if requested == "auto":
        source = source_of(model)
        place = model if source is None else source.place
        is_ours = model in bundled_models() or (Path(place) / "recipe.json").is_file()
        return "short" if is_ours else "natural"
    if requested not in get_args(Rendering):
        raise BadInput(f"--rendering must be auto, {' or '.join(get_args(Rendering))}; got {requested!r}.")
    return requested  # type: ignore[return-value]
