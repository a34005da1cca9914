"""The recipe of the small model of one-digit composite arithmetic: "( 3 + 4 ) * 2 =" answered at once, without a chain.

1. Rows are expressions with their answer and an end token: all of two operands, and those of three operands that
   `held_out_composites` does not hold out.
2. The loss counts the answer and the end token. AdamW, warm-up, linear decay; each batch is a pure function of
   (seed, step).
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from pydantic import Field
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from chainwright.lab.recipe import BatchSize, Qwen3Recipe, Share, Steps, WeightDecay, new_qwen3
from chainwright.lab.tokenizer import word_tokenizer
from chainwright.lab.training import train_recipe
from chainwright.tasks.arithmetic import all_composite_problems, held_out_composites
from chainwright.tasks.base import Problem

_IGNORED = -100
_N_POSITIONS = 32


class ArithmeticConfig(Qwen3Recipe):
    """Everything that the recipe depends on."""

    held_out_share: Share = Field(
        default=0.2, description="Share of the three-operand expressions that is never trained on."
    )
    split_seed: int = Field(default=1, description="Seed of the draw of these expressions.")
    two_operand_share: Share = Field(default=0.1, description="Share of the rows with two operands.")
    n_steps: Steps = 3000
    batch_size: BatchSize = 256
    weight_decay: WeightDecay = 0.3


def arithmetic_tokenizer() -> PreTrainedTokenizerBase:
    """Return the tokenizer: one token per digit, sign or bracket."""
    return word_tokenizer(["\n", *"0123456789", "+", "-", "*", "(", ")", "="], _N_POSITIONS)


class _Row:
    """Ids of one expression with its answer and the end token; `n_answer` of them are judged."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, problem: Problem):
        answer = tokenizer(problem.answer, add_special_tokens=False)["input_ids"]
        self.ids = [*tokenizer(problem.prompt)["input_ids"], *answer, tokenizer.eos_token_id]
        self.n_answer = len(answer) + 1


def _batch(rows: Sequence[_Row], pad: int) -> tuple[Tensor, Tensor]:
    """Return right-padded ids and labels, the answer's tokens alone."""
    width = max(len(row.ids) for row in rows)
    ids = torch.full((len(rows), width), pad)
    labels = torch.full_like(ids, _IGNORED)
    for i, row in enumerate(rows):
        n = len(row.ids)
        ids[i, :n] = torch.tensor(row.ids)
        labels[i, n - row.n_answer : n] = ids[i, n - row.n_answer : n]
    return ids, labels


class _Rows:
    """Draws the batch of each step from (seed, step)."""

    def __init__(self, config: ArithmeticConfig, tokenizer: PreTrainedTokenizerBase):
        self.config, self.pad = config, int(tokenizer.pad_token_id)
        trained, _ = held_out_composites(share=config.held_out_share, seed=config.split_seed)
        self.three = [_Row(tokenizer, problem) for problem in trained]
        self.two = [_Row(tokenizer, problem) for problem in all_composite_problems(2)]

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        rng = random.Random(f"{self.config.seed}/{step}")
        n_two = round(self.config.two_operand_share * self.config.batch_size)
        rows = rng.choices(self.two, k=n_two) + rng.choices(self.three, k=self.config.batch_size - n_two)
        return _batch(rows, self.pad)


def train_arithmetic(
    config: ArithmeticConfig, folder: Path, *, device: str = "cpu", resume: bool = False, progress: bool = True
) -> Path:
    """Train the model of composite arithmetic and write the checkpoint, tokenizer and recipe to `folder`.

    Args:
        config: The recipe.
        folder: Where to write; `folder/training` holds the checkpoint that a killed run resumes from.
        device: Where to train.
        resume: Resume from `folder/training` if it is there.
        progress: Show a progress bar.

    Raises:
        BadInput: `folder` holds a training of another config or something else, is there already and `resume` is off,
            or there is no such device.
    """
    tokenizer = arithmetic_tokenizer()
    model, rows = new_qwen3(config, tokenizer, _N_POSITIONS), _Rows(config, tokenizer)

    def losses(first: int) -> Iterator[Tensor]:
        return (_loss(model, *rows.batch(step)) for step in range(first, config.n_steps))

    return train_recipe(config, folder, model, tokenizer, losses, device=device, resume=resume, progress=progress)


def _loss(model: PreTrainedModel, ids: Tensor, labels: Tensor) -> Tensor:
    ids, labels = ids.to(model.device), labels.to(model.device)
    logits = model(input_ids=ids[:, :-1], use_cache=False).logits
    return nn.functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=_IGNORED)


@torch.no_grad()
def greedy_answers(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, problems: Sequence[Problem], batch_size: int = 1024
) -> list[bool]:
    """Return whether the greedy answer to each problem is right, end token included."""
    right: list[bool] = []
    for start in range(0, len(problems), batch_size):
        rows = [_Row(tokenizer, problem) for problem in problems[start : start + batch_size]]
        ids, labels = _batch(rows, int(tokenizer.pad_token_id))
        best = model(input_ids=ids[:, :-1], use_cache=False).logits.argmax(-1)
        # greedy decoding writes the answer if and only if each of its tokens is likeliest after those before it
        right += ((best == labels[:, 1:]) | (labels[:, 1:] == _IGNORED)).all(-1).tolist()
    return right


def accuracies(model: nn.Module, tokenizer: PreTrainedTokenizerBase, config: ArithmeticConfig) -> dict[str, list[bool]]:
    """Return which answers are right: of two operands, of three operands trained on, and of those held out."""
    trained, held_out = held_out_composites(share=config.held_out_share, seed=config.split_seed)
    asked = {"two operands": all_composite_problems(2), "three, trained on": trained, "three, held out": held_out}
    return {name: greedy_answers(model, tokenizer, problems) for name, problems in asked.items()}


def wrong_by_signs(config: ArithmeticConfig, right: Sequence[bool]) -> dict[str, tuple[int, int]]:
    """Return the wrong answers and the expressions of each pair of signs among those held out, such as "* then +"."""
    _, held_out = held_out_composites(share=config.held_out_share, seed=config.split_seed)
    found: dict[str, tuple[int, int]] = {}
    for problem, is_right in zip(held_out, right, strict=True):
        signs = " then ".join(word for word in problem.prompt.split() if word in "+-*")
        wrong, n = found.get(signs, (0, 0))
        found[signs] = (wrong + (not is_right), n + 1)
    return dict(sorted(found.items(), key=lambda item: -item[1][0] / item[1][1]))
