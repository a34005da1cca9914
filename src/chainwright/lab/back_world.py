"""Back attention for a model of a made-up world: what it is fitted on, and what it reaches on held-out questions.

1. Fitted on the training compositions that the model was never shown, with copies behind a random word.
2. Judged on all single facts and on four parts of the compositions that no fit uses, without and with it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import nn
from transformers import PreTrainedTokenizerBase

from chainwright.lab import two_hop
from chainwright.lab.knowledge import KnowledgeConfig, known_compositions
from chainwright.repair.back_attention.repair import BackAttention
from chainwright.tasks.base import Problem
from chainwright.tasks.knowledge import questions

_PARTS = {
    "held_out": "held-out compositions",
    "new_first": "compositions with a new first fact",
    "new_second": "compositions with a new second fact",
    "new_both": "compositions of two new facts",
}


def world_problems(recipe: KnowledgeConfig, n_prefixes: int = two_hop.N_PREFIXES) -> list[Problem]:
    """Return the questions that a back attention of a model is fitted on.

    Args:
        recipe: The model's recipe.
        n_prefixes: Copies of each question behind a random word.
    """
    _, parts = known_compositions(recipe)
    return two_hop.with_prefixes(recipe.world, questions(recipe.world, parts.train, recipe.order), n_prefixes)


def with_figures(
    repair: BackAttention,
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    recipe: KnowledgeConfig,
    n: int = 500,
) -> BackAttention:
    """Return the repair with its figures: shares answered right without and with it, `n` questions per part at most."""
    _, parts = known_compositions(recipe)
    alone = two_hop.judged(model, tokenizer, recipe.world, parts, n, recipe.order)
    with repair.attached(model):
        repaired = two_hop.judged(model, tokenizer, recipe.world, parts, n, recipe.order)
    note = f"All single facts, and at most {n} compositions of each part, none of which was in the fit."
    origin = replace(repair.origin, figures=_rows(alone, repaired), note=note)
    return BackAttention(repair.heads, positions=repair.positions, tokens=repair.tokens, origin=origin)


def _rows(
    alone: Mapping[str, Mapping[str, float]], repaired: Mapping[str, Mapping[str, float]]
) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = [_row("single facts", alone["one hop"], repaired["one hop"], "right")]
    return rows + [_row(words, alone[part], repaired[part], "e3") for part, words in _PARTS.items() if part in alone]


def _row(words: str, alone: Mapping[str, float], repaired: Mapping[str, float], key: str) -> dict[str, Any]:
    return {"questions": words, "model alone": alone[key], "repaired": repaired[key]}
