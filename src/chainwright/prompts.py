"""How a model is asked: the tokens of a prompt, the room for the response, and the rendering that a model reads."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from torch import nn
from transformers import PreTrainedTokenizerBase

from chainwright._errors import BadInput
from chainwright.models.load import bundled_models
from chainwright.models.seam import causal_lm
from chainwright.tasks.base import Problem, Rendering

_MAX_TOKENS_OF_TEXT = 512


@dataclass(frozen=True)
class Prompt:
    """A question as tokens, and the room for its response.

    Attributes:
        index: Its place among all rows of a run, which decides its sampling noise.
        ids: Its tokens.
        problem: The problem that it asks, if it was no plain string.
        max_new_tokens: Longest response.
    """

    index: int
    ids: list[int]
    problem: Problem | None
    max_new_tokens: int


def prompt_of(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    index: int,
    problem: Problem | str,
    limit: int | None,
) -> Prompt:
    """Return what `generate` asks a problem or a string with.

    Raises:
        BadInput: The prompt is empty, or longer than the model's positions.
    """
    text = problem if isinstance(problem, str) else problem.prompt
    if not text.strip():
        raise BadInput(f"Prompt {index} is empty; give some text.")
    ids = prompt_ids(tokenizer, problem)
    if not ids:
        raise BadInput(f"Prompt {index} has no tokens for this tokenizer; give some other text.")
    most = n_positions(model)
    if len(ids) >= most:
        raise BadInput(
            f"Prompt {index} has {len(ids)} tokens, but the model has positions for {most}; shorten "
            "it (fewer hops or fewer demonstrations)."
        )
    n_new = limit or _room(tokenizer, problem)
    known = None if isinstance(problem, str) else problem
    return Prompt(index, ids, known, min(n_new, most - len(ids)))


def prompt_ids(tokenizer: PreTrainedTokenizerBase, problem: Problem | str) -> list[int]:
    """Return the tokens that `generate` asks a problem or a string with."""
    text = problem if isinstance(problem, str) else problem.prompt
    chat = bool(tokenizer.chat_template) and (isinstance(problem, str) or problem.rendering == "natural")
    if chat:
        turn = [{"role": "user", "content": text}]
        text = tokenizer.apply_chat_template(turn, add_generation_prompt=True, tokenize=False)
    return list(tokenizer(text, add_special_tokens=not chat)["input_ids"])


def _room(tokenizer: PreTrainedTokenizerBase, problem: Problem | str) -> int:
    if isinstance(problem, str):
        return _MAX_TOKENS_OF_TEXT
    n_gold = len(tokenizer(problem.chain, add_special_tokens=False)["input_ids"])
    return n_gold + n_gold // 2 + 16


def n_positions(model: nn.Module) -> int:
    """Return how many positions a model has; a number beyond any prompt where its config sets no limit."""
    return int(getattr(causal_lm(model).config.get_text_config(), "max_position_embeddings", None) or 2**31)


def rendering_for(asked: str, model: str) -> Rendering:
    """Return the rendering to use: as asked, or for "auto" the one that the model was made for.

    A bundled model, or a folder with the `recipe.json` that Chainwright's training writes, reads the short rendering.
    """
    if asked == "auto":
        is_ours = model in bundled_models() or (Path(model) / "recipe.json").is_file()
        return "short" if is_ours else "natural"
    if asked not in get_args(Rendering):
        raise BadInput(f"--rendering must be auto, {' or '.join(get_args(Rendering))}; got {asked!r}.")
    return asked  # type: ignore[return-value]
