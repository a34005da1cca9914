"""Arithmetic from scratch: one layer, that layer twice, one layer with back attention, two layers."""

from __future__ import annotations

import random
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, Qwen3Config, Qwen3ForCausalLM

from chainwright.edits import AttendBack, BackHead, edit
from chainwright.lab.tokenizer import word_tokenizer
from chainwright.repair.back_attention.training import Row, rows_of
from chainwright.tasks.arithmetic import two_digit_problems

VARIANTS = ("one layer", "one layer twice", "own position fed back", "one layer + back attention", "two layers")
_IGNORED = -100


@dataclass(frozen=True)
class FromScratch:
    """The settings of one training."""

    n_steps: int = 1000
    batch_size: int = 256
    d_model: int = 64
    d_back: int = 16
    lr: float = 4e-3
    measure_every: int = 50
    held_out: int = 1000


def train_arithmetic(variant: str, seed: int, config: FromScratch, tick: Any = None) -> dict[str, Any]:
    """Train one variant and return its parameters, its accuracy by step, and the step at which it reaches 90%."""
    torch.manual_seed(seed)
    tokenizer = word_tokenizer(["\n", *"0123456789", "+", "-", "*", "(", ")", "="], 32)
    problems = two_digit_problems()
    random.Random("arithmetic/split").shuffle(problems)
    rows = [_whole(row, int(tokenizer.eos_token_id)) for row in rows_of(tokenizer, problems)]
    held_out, trained = rows[: config.held_out], rows[config.held_out :]
    model, head = _new(variant, len(tokenizer), config)
    parameters = list({id(p): p for p in (*model.parameters(), *(head.parameters() if head else ()))}.values())
    optimizer = torch.optim.AdamW(parameters, lr=config.lr, betas=(0.9, 0.98), weight_decay=0.01)
    curve: list[list[float]] = []
    with _attached(variant, model, head):
        for step in range(config.n_steps):
            for group in optimizer.param_groups:
                group["lr"] = config.lr * min((step + 1) / 50, 1.0, (config.n_steps - step) / (0.4 * config.n_steps))
            loss = _loss(model, random.Random(f"{seed}/{step}").choices(trained, k=config.batch_size))
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            if (step + 1) % config.measure_every == 0:
                curve.append([step + 1, _accuracy(model, held_out)])
                if tick is not None:
                    tick(step + 1, config.n_steps)
    to_90 = next((int(step) for step, accuracy in curve if accuracy >= 0.9), None)
    n_parameters = sum(p.numel() for p in parameters)
    return {
        "variant": variant,
        "seed": seed,
        "accuracy": curve[-1][1],
        "n_parameters": n_parameters,
        "steps_to_90": to_90,
        "curve": curve,
    }


def _whole(row: Row, end: int) -> Row:
    """Return the row with the end token, which the answer's length is judged by."""
    return Row([*row.ids, end], row.n_answer + 1, None)


def _new(variant: str, d_vocab: int, config: FromScratch) -> tuple[PreTrainedModel, BackHead | None]:
    model = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=d_vocab,
            hidden_size=config.d_model,
            intermediate_size=4 * config.d_model,
            num_hidden_layers=1 + (variant in ("two layers", "one layer twice")),
            num_attention_heads=4,
            num_key_value_heads=4,
            head_dim=config.d_model // 4,
            max_position_embeddings=32,
            tie_word_embeddings=True,
        )
    )
    if variant == "one layer twice":
        first, second = model.model.layers
        for name, module in first.named_modules():
            for key, weight in module.named_parameters(recurse=False):
                setattr(second.get_submodule(name), key, weight)
    has_head = variant in ("own position fed back", "one layer + back attention")
    return model, BackHead(config.d_model, 0, (1,), config.d_back) if has_head else None


def _attached(variant: str, model: PreTrainedModel, head: BackHead | None) -> AbstractContextManager[Any]:
    if head is None:
        return nullcontext()
    return edit(model, AttendBack([head], positions="own" if variant == "own position fed back" else None))


def _batch(rows: list[Row]) -> tuple[Tensor, Tensor]:
    """Return right-padded ids and labels, the answer's tokens alone."""
    width = max(len(row.ids) for row in rows)
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    labels = torch.full_like(ids, _IGNORED)
    for i, row in enumerate(rows):
        n = len(row.ids)
        ids[i, :n] = torch.tensor(row.ids)
        labels[i, n - row.n_answer : n] = ids[i, n - row.n_answer : n]
    return ids, labels


def _loss(model: PreTrainedModel, rows: list[Row]) -> Tensor:
    ids, labels = _batch(rows)
    logits = model(input_ids=ids[:, :-1], use_cache=False).logits
    return nn.functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=_IGNORED)


@torch.no_grad()
def _accuracy(model: PreTrainedModel, rows: list[Row]) -> float:
    """Return the share of rows whose whole answer is the likeliest, token by token: that of greedy decoding."""
    model.eval()
    ids, labels = _batch(rows)
    best = model(input_ids=ids[:, :-1], use_cache=False).logits.argmax(-1)
    is_right = (best == labels[:, 1:]) | (labels[:, 1:] == _IGNORED)
    model.train()
    return float(is_right.all(-1).float().mean())
