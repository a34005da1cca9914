"""The recipe of `smollm2-hops`: LoRA on SmolLM2-135M-Instruct that learns chains of the seven tasks in English.

1. A step's batch holds problems of one task and hop count in the natural rendering, asked through the chat template;
   the chain is the assistant's turn, and the loss counts it and the end of the turn. A few batches have a worked
   example before the question, the others none.
2. Short chains come first: over the first steps the largest hop count rises to the end of each task's range.
3. Longer chains mean fewer problems per batch, so that steps cost about the same.
4. Strings of letters (LLC) are written letter by letter, one token each. The base's tokenizer would merge
   them into tokens of two or three letters, and each added letter can change how the whole string is split, so that
   the model would have to know how many different tokens are spelled. That tokenizer splits digits anyway.

Evaluation problems use small seeds (`tasks.sample(..., seed=0)` and so on), training draws its own from 2**32 on. Of
one or two hops some tasks have few different problems, so that the same one may come up in both; from three hops on
that is rare.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Self, Unpack

from pydantic import Field, model_validator
from transformers import PreTrainedTokenizerBase

from chainwright import tasks
from chainwright._errors import BadInput
from chainwright.lab.adapters import AdapterRecipe, Step, TrainOptions, train_adapter
from chainwright.lab.chains import Row
from chainwright.lab.recipe import Count, Decay, Rate, Share, Steps
from chainwright.prompts.prompt import prompt_ids
from chainwright.tasks import Problem

FIRST_SEED = 2**32
_LEAST_ROWS, _MOST_ROWS = 3, 8


class HopsConfig(AdapterRecipe):
    """Everything that the recipe of `smollm2-hops` depends on."""

    hops: Mapping[str, tuple[int, int]] = Field(
        default={
            "parity": (1, 5),
            "mdm": (1, 2),
            "llc": (1, 5),
            "clf": (1, 5),
            "moas": (1, 5),
            "nums": (1, 5),
            "objc": (1, 5),
        },
        description="Training range of hops for each task, both ends included.",
    )
    weights: Mapping[str, float] = Field(
        default={"parity": 1.2, "mdm": 0.4, "llc": 0.9, "clf": 1.0, "moas": 1.0, "nums": 1.0, "objc": 1.2},
        description="How often each task is drawn, relative to the others.",
    )
    chain_tokens: Count = Field(
        default=320, description="Tokens of chains per step, approximately; 3 to 8 problems in any case."
    )
    n_short_steps: int = Field(default=150, ge=0, description="Steps until the full range of hops is reached.")
    spelled: tuple[str, ...] = Field(
        default=("concatenation",), description="Types of slots whose letters are tokens of their own."
    )
    demonstrated_share: Share = Field(default=0.04, description="Share of the steps whose questions have an example.")
    n_steps: Steps = 340
    lr: Rate = 1.5e-3
    decay_share: Decay = 0.41

    @property
    def shots(self) -> int:
        """Return how many demonstrations come before most of the questions that are trained on."""
        return round(self.demonstrated_share)

    @model_validator(mode="after")
    def _tasks_have_hops(self) -> Self:
        if not self.weights or (unknown := [name for name in self.weights if name not in self.hops]):
            raise BadInput(f"Each task in weights needs its hops; missing: {', '.join(unknown) or 'every task'}.")
        return self


def draw_hops(config: HopsConfig, tokenizer: PreTrainedTokenizerBase, step: int) -> Step:
    """Return the batch of a step, the same for the same seed and step."""
    rng = random.Random(f"{config.seed}/{step}")
    (task,) = rng.choices(list(config.weights), list(config.weights.values()))
    low, high = config.hops[task]
    if step < config.n_short_steps:
        high = low + (high - low) * step // config.n_short_steps
    hops = rng.randint(low, high)
    n_demonstrations = int(rng.random() < config.demonstrated_share)
    seed = FIRST_SEED + rng.getrandbits(48)
    problems = tasks.sample(task, hops, _MOST_ROWS, seed, rendering="natural", n_demonstrations=n_demonstrations)
    first = chat_row(tokenizer, problems[0], config.spelled)
    n_rows = max(_LEAST_ROWS, min(_MOST_ROWS, round(config.chain_tokens / len(first.chain))))
    rest = [chat_row(tokenizer, problem, config.spelled) for problem in problems[1:n_rows]]
    return Step(f"{task} {hops}", [first, *rest])


def chat_row(tokenizer: PreTrainedTokenizerBase, problem: Problem, spelled: Sequence[str] = ()) -> Row:
    """Return a problem's prompt as `generate` asks it, and its chain with the end of the turn.

    Args:
        tokenizer: The model's.
        problem: The problem.
        spelled: Types of the slots in which every character becomes a token of its own.
    """
    inside = {at for slot in problem.slots if slot.error_type in spelled for at in range(slot.start + 1, slot.end)}
    cuts = [0, *sorted(inside), len(problem.chain)]
    parts = tokenizer([problem.chain[a:b] for a, b in pairwise(cuts)], add_special_tokens=False)["input_ids"]
    return Row(prompt_ids(tokenizer, problem), [*(i for part in parts for i in part), tokenizer.eos_token_id])


def train_hops(config: HopsConfig, folder: Path, **options: Unpack[TrainOptions]) -> Path:
    """Train the adapter of chains of the seven tasks, and write it to `folder/adapter`.

    Args:
        config: The recipe.
        folder: Where to write; `folder/training` holds the checkpoint that a killed run resumes from.
        **options: As in `train_adapter`.

    Returns:
        The folder of the adapter, for `load_model(config.base, adapter=...)`.

    Raises:
        BadInput: The base was not fetched, `folder` holds a training of another recipe or something else, is there
            already and `resume` is off, its checkpoint is damaged, the disk is full, there is no such device, or
            `start` is no adapter of this base and rank.
    """
    return train_adapter(config, folder, partial(draw_hops, config), **options)
