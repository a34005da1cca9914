"""The recipe of the bundled reasoner: a small Qwen3 that learns short chains of the seven tasks.

1. Samples are drawn on the fly from the tasks' short rendering, hops uniform in each task's training range,
   and a copy task is mixed in from the first step, so that induction forms.
2. In half of the samples the positions jump ahead at random places, so that long inputs bring no unseen
   positions. An attention mask of ones goes with them: without one Transformers would read a jump as a packed
   sequence.
3. The loss counts the chain alone. AdamW, warm-up, constant rate, then a long linear decay; nothing can be
   judged before the decay.
4. Every batch is a pure function of (seed, its number): a killed training resumes from its last checkpoint with
   the same batches, and the number of data workers changes nothing.

Evaluation problems use small seeds (`tasks.sample(..., seed=0)` and so on), training draws its own above
2**32.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Qwen3ForCausalLM

from chainwright import tasks
from chainwright._errors import BadInput
from chainwright.lab.recipe import (
    BatchTokens,
    Count,
    Decay,
    Heads,
    HeadSize,
    MLPSize,
    Positions,
    Qwen3Recipe,
    Rate,
    Share,
    Warmup,
    Width,
    new_qwen3,
)
from chainwright.lab.tokenizer import word_tokenizer
from chainwright.lab.training import train_recipe

_COPY = "copy"
_SEPARATORS = (".", ";", "and", ",")
_IGNORED = -100
_GROUP = 8  # batches that are drawn together and sorted by length, so that little is padded


class ReasonerConfig(Qwen3Recipe):
    """Everything that the recipe depends on."""

    d_model: Width = 128
    n_heads: Heads = 8
    d_head: HeadSize = 24
    d_mlp: MLPSize = 384
    n_positions: Positions = 1536
    hops: Mapping[str, tuple[int, int]] = Field(
        default={
            "parity": (2, 10),
            "mdm": (1, 3),
            "llc": (2, 7),
            "clf": (2, 10),
            "moas": (2, 10),
            "nums": (2, 8),
            "objc": (2, 8),
        },
        description="Training range of hops for each task, both ends included.",
    )
    weights: Mapping[str, float] = Field(
        default={
            "parity": 1.0,
            "mdm": 0.5,
            "llc": 1.0,
            "clf": 1.0,
            "moas": 1.6,
            "nums": 1.0,
            "objc": 1.0,
            _COPY: 0.8,
        },
        description="How often each task is drawn, relative to the others; copy is the copy task.",
    )
    jump_share: Share = Field(default=0.5, description="Share of the samples whose positions jump.")
    n_tokens: Count = Field(default=24_000_000, description="Length of the training in tokens.")
    batch_tokens: BatchTokens = 2048
    lr: Rate = 2e-3
    n_warmup: Warmup = 200
    decay_share: Decay = 0.5

    @model_validator(mode="after")
    def _tasks_have_hops(self) -> Self:
        unknown = [name for name in self.weights if name != _COPY and name not in self.hops]
        if unknown or not self.weights:
            raise BadInput(f"Each task in weights needs its hops; missing: {', '.join(unknown) or 'every task'}.")
        return self

    @property
    def n_steps(self) -> int:
        """Return the number of optimizer steps."""
        return max(1, self.n_tokens // self.batch_tokens)


class Batch(NamedTuple):
    """Right-padded rows: token ids, labels (chain only) and positions, each `[N, T]`."""

    input_ids: Tensor
    labels: Tensor
    positions: Tensor


def reasoner_tokenizer(config: ReasonerConfig) -> PreTrainedTokenizerBase:
    """Return the tokenizer of the short rendering."""
    words = list(tasks.vocabulary())
    extra = [word for word in (_COPY, *_SEPARATORS) if word not in words]
    return word_tokenizer([*words, *extra], config.n_positions)


def new_reasoner(config: ReasonerConfig, tokenizer: PreTrainedTokenizerBase) -> Qwen3ForCausalLM:
    """Return an untrained reasoner, the same for the same seed."""
    return new_qwen3(config, tokenizer, config.n_positions)


class ReasonerData(Dataset[list[Batch]]):
    """Groups of batches, each a pure function of (seed, group number)."""

    def __init__(self, config: ReasonerConfig, tokenizer: PreTrainedTokenizerBase, first: int = 0):
        self.config = config
        self.tokenizer = tokenizer
        self.first = first
        self.copyable = [w for w in tasks.vocabulary() if (w.isalnum() and len(w) > 1) or w.isdigit()]

    def __len__(self) -> int:
        """Return the number of groups from the first one to the end of training."""
        return -(-self.config.n_steps // _GROUP) - self.first

    def __getitem__(self, index: int) -> list[Batch]:
        """Return the batches of one group in a random order; of the last group only those before the last step."""
        number = self.first + index
        rng = random.Random(f"{self.config.seed}/{number}")
        rows: list[tuple[list[int], int]] = []
        while sum(len(ids) for ids, _ in rows) < _GROUP * self.config.batch_tokens:
            rows.extend(self._rows([self._draw(rng) for _ in range(32)]))
        rows.sort(key=lambda row: len(row[0]))
        batches = self._cut(rows, rng)
        rng.shuffle(batches)
        return batches[: self.config.n_steps - number * _GROUP]

    def _draw(self, rng: random.Random) -> tuple[str, str]:
        """Return a prompt and its chain, of a task drawn by its weight."""
        names = list(self.config.weights)
        (name,) = rng.choices(names, [self.config.weights[n] for n in names])
        if name == _COPY:
            separator = f" {rng.choice(_SEPARATORS)} "
            text = separator.join(rng.choice(self.copyable) for _ in range(rng.randint(4, 24)))
            return f"{_COPY} {text} ?\n", text
        low, high = self.config.hops[name]
        (problem,) = tasks.sample(name, rng.randint(low, high), 1, seed=2**32 + rng.getrandbits(48))
        return problem.prompt, problem.chain

    def _rows(self, texts: list[tuple[str, str]]) -> list[tuple[list[int], int]]:
        """Return (ids, length of the prompt) for each text."""
        prompts = self.tokenizer([prompt for prompt, _ in texts])["input_ids"]
        chains = self.tokenizer([chain for _, chain in texts], add_special_tokens=False)["input_ids"]
        end = self.tokenizer.eos_token_id
        return [([*p, *c, end], len(p)) for p, c in zip(prompts, chains, strict=True)]

    def _cut(self, rows: list[tuple[list[int], int]], rng: random.Random) -> list[Batch]:
        """Cut sorted rows into batches of about the same number of tokens, none of them empty."""
        total = sum(len(ids) for ids, _ in rows)
        cut: list[list[tuple[list[int], int]]] = [[] for _ in range(_GROUP)]
        n_before = at = 0
        for i, row in enumerate(rows):
            # long rows could jump over a batch, which would shift the numbers of all later steps
            at = min(max(n_before * _GROUP // total, _GROUP - len(rows) + i), at + 1 if cut[at] else at)
            cut[at].append(row)
            n_before += len(row[0])
        return [self._batch(part, rng) for part in cut]

    def _batch(self, rows: list[tuple[list[int], int]], rng: random.Random) -> Batch:
        width = max(len(ids) for ids, _ in rows)
        if width > self.config.n_positions:
            raise BadInput(
                f"A sample has {width} tokens, but the recipe has n_positions={self.config.n_positions}; raise that or "
                "lower the hops."
            )
        input_ids = torch.full((len(rows), width), self.tokenizer.pad_token_id)
        labels = torch.full((len(rows), width), _IGNORED)
        positions = torch.arange(width).repeat(len(rows), 1)
        for i, (ids, n_prompt) in enumerate(rows):
            input_ids[i, : len(ids)] = torch.tensor(ids)
            labels[i, n_prompt : len(ids)] = input_ids[i, n_prompt : len(ids)]
            if rng.random() < self.config.jump_share:
                positions[i] = self._jumping(width, rng)
        return Batch(input_ids, labels, positions)

    def _jumping(self, width: int, rng: random.Random) -> Tensor:
        """Return increasing positions with a few random gaps."""
        steps = torch.ones(width, dtype=torch.long)
        slack = rng.randint(0, self.config.n_positions - width)
        for _ in range(rng.randint(1, 6)):
            gap = rng.randint(0, slack)
            steps[rng.randrange(width)] += gap
            slack -= gap
        return steps.cumsum(0) - 1


def train_reasoner(
    config: ReasonerConfig,
    folder: Path,
    *,
    device: str = "cpu",
    resume: bool = False,
    n_workers: int = 0,
    seconds_between_checkpoints: float = 60.0,
    progress: bool = True,
) -> Path:
    """Train the reasoner and write the checkpoint, tokenizer and training log to `folder`.

    Args:
        config: The recipe.
        folder: Where to write; `folder/training` holds the checkpoint that a killed run resumes from.
        device: Where to train.
        resume: Resume from `folder/training` if it is there.
        n_workers: Processes that draw samples while the main one trains.
        seconds_between_checkpoints: How much work a kill can cost.
        progress: Show a progress bar.

    Returns:
        `folder`.

    Raises:
        BadInput: `folder` holds a training of another config or something else, is there already and `resume` is off,
            its checkpoint is damaged, the disk is full, there is no such device, or the recipe has too few
            positions for its hops.
    """
    tokenizer = reasoner_tokenizer(config)
    model = new_reasoner(config, tokenizer)

    def losses(first: int) -> Iterator[Tensor]:
        # checkpoints are written between groups, so the first step that is left begins one
        data = ReasonerData(config, tokenizer, first=-(-first // _GROUP))
        options: dict[str, Any] = {"prefetch_factor": 4} if n_workers else {}
        for group in DataLoader(data, batch_size=None, num_workers=n_workers, **options):
            for batch in group:
                yield _loss(model, batch)

    return train_recipe(
        config, folder, model, tokenizer, losses, device=device, resume=resume, progress=progress, n_at_once=_GROUP,
        log_every=_GROUP, seconds_between_checkpoints=seconds_between_checkpoints,
    )  # fmt: skip


def _loss(model: PreTrainedModel, batch: Batch) -> Tensor:
    input_ids, labels, positions = (tensor.to(model.device, non_blocking=True) for tensor in batch)
    loss: Tensor = model(
        input_ids, attention_mask=torch.ones_like(input_ids), position_ids=positions, labels=labels
    ).loss
    return loss
