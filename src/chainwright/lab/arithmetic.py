"""The recipe of the small model of one-digit composite arithmetic: "( 3 + 4 ) * 2 =" answered at once, without a chain.

1. Rows are expressions with their answer and an end token: all of two operands, and those of three operands that
   `held_out_composites` does not hold out.
2. The loss counts the answer and the end token. AdamW, warm-up, linear decay; each batch is a pure function of
   (seed, step).
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Qwen3Config, Qwen3ForCausalLM

from chainwright._errors import BadInput
from chainwright.lab.tokenizer import BOS, END, PAD, word_tokenizer
from chainwright.lab.training import train_recipe
from chainwright.tasks.arithmetic import all_composite_problems, held_out_composites
from chainwright.tasks.base import Problem

_IGNORED = -100


@dataclass(frozen=True)
class ArithmeticConfig:
    """Everything that the recipe depends on.

    Attributes:
        held_out_share: Share of the three-operand expressions that are never trained on.
        split_seed: Decides which.
        two_operand_share: Share of the rows with two operands.
    """

    held_out_share: float = 0.2
    split_seed: int = 1
    two_operand_share: float = 0.1
    d_model: int = 64
    n_layers: int = 4
    n_heads: int = 4
    d_head: int = 16
    d_mlp: int = 192
    n_steps: int = 3000
    batch_size: int = 256
    lr: float = 3e-3
    betas: tuple[float, float] = (0.9, 0.98)
    weight_decay: float = 0.3
    clip: float = 1.0
    n_warmup: int = 50
    decay_share: float = 0.4
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what could not be trained."""
        for name in ("d_model", "n_layers", "n_heads", "d_head", "d_mlp", "n_steps", "batch_size", "lr"):
            if getattr(self, name) <= 0:
                raise BadInput(f"Setting {name} must be above 0; got {getattr(self, name)}.")
        for name in ("held_out_share", "two_operand_share", "decay_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise BadInput(f"Setting {name} is a share from 0 to 1; got {getattr(self, name)}.")


def arithmetic_tokenizer() -> PreTrainedTokenizerBase:
    """Return the tokenizer: one token a digit, a sign or a bracket."""
    return word_tokenizer(["\n", *"0123456789", "+", "-", "*", "(", ")", "="], 32)


def new_model(config: ArithmeticConfig, tokenizer: PreTrainedTokenizerBase) -> Qwen3ForCausalLM:
    """Return an untrained model, the same for the same seed."""
    torch.manual_seed(config.seed)
    return Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=len(tokenizer),
            hidden_size=config.d_model,
            intermediate_size=config.d_mlp,
            num_hidden_layers=config.n_layers,
            num_attention_heads=config.n_heads,
            num_key_value_heads=config.n_heads,
            head_dim=config.d_head,
            max_position_embeddings=32,
            tie_word_embeddings=True,
            bos_token_id=tokenizer.convert_tokens_to_ids(BOS),
            eos_token_id=tokenizer.convert_tokens_to_ids(END),
            pad_token_id=tokenizer.convert_tokens_to_ids(PAD),
        )
    )


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
    """Draws batches."""

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
        folder: Where to write; `folder/training` holds what a killed run needs to go on.
        device: Where to train.
        resume: Go on from `folder/training` if it is there.
        progress: Show a progress bar.

    Raises:
        BadInput: `folder` holds a training of another config or something else, is there already and `resume` is off,
            or there is no such device.
    """
    tokenizer = arithmetic_tokenizer()
    model, rows = new_model(config, tokenizer), _Rows(config, tokenizer)
    return train_recipe(
        config, folder, model, tokenizer, lambda step: _loss(model, *rows.batch(step)),
        device=device, resume=resume, progress=progress,
    )  # fmt: skip


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
