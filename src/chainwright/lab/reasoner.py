"""The recipe of the bundled reasoner: a small Qwen3 that learns short chains of the seven tasks.

1. Samples are drawn on the fly from the tasks' short rendering, hops uniform in each task's training range,
   and a copy task is mixed in from the first step, so that induction forms.
2. In half of the samples the positions jump ahead at random places, so that long inputs bring no unseen
   positions. An attention mask of ones goes with them: without one Transformers would read a jump as a packed
   sequence.
3. The loss counts the chain alone. AdamW, warm-up, constant rate, then a long linear decay; nothing can be
   judged before the decay.
4. Every batch is a pure function of (seed, its number): training that was killed goes on from its last
   checkpoint with the same batches, and the number of data workers changes nothing.

Evaluation problems use small seeds (`tasks.sample(..., seed=0)` and so on), training draws its own above
2**32.
"""

from __future__ import annotations

import random
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Qwen3Config, Qwen3ForCausalLM

from chainwright import tasks
from chainwright._errors import BadInput
from chainwright._files import atomic_folder, clear_disk_errors, read_json, write_json
from chainwright._progress import progress_bar
from chainwright.lab.optim import load_optimizer, save_optimizer
from chainwright.lab.tokenizer import BOS, END, PAD, word_tokenizer
from chainwright.lab.training import begin, learning_rate
from chainwright.models.load import check_device

_COPY = "copy"
_SEPARATORS = (".", ";", "and", ",")
_IGNORED = -100
_GROUP = 8  # batches that are drawn together and sorted by length, so that little is padded


@dataclass(frozen=True)
class ReasonerConfig:
    """Everything that the recipe depends on.

    Attributes:
        hops: Training range of hops for each task, both ends included.
        weights: How often each task is drawn, relative to the others; `copy` is the copy task.
        jump_share: Share of samples whose positions jump.
        n_tokens: Length of the training, in tokens seen.
        batch_tokens: Tokens a step, about.
        decay_share: Share of the steps over which the learning rate falls to zero.
    """

    d_model: int = 128
    n_layers: int = 4
    n_heads: int = 8
    d_head: int = 24
    d_mlp: int = 384
    n_positions: int = 1536
    hops: Mapping[str, tuple[int, int]] = field(
        default_factory=lambda: {
            "parity": (2, 10),
            "mdm": (1, 3),
            "llc": (2, 7),
            "clf": (2, 10),
            "moas": (2, 10),
            "nums": (2, 8),
            "objc": (2, 8),
        }
    )
    weights: Mapping[str, float] = field(
        default_factory=lambda: {
            "parity": 1.0,
            "mdm": 0.5,
            "llc": 1.0,
            "clf": 1.0,
            "moas": 1.6,
            "nums": 1.0,
            "objc": 1.0,
            _COPY: 0.8,
        }
    )
    jump_share: float = 0.5
    n_tokens: int = 24_000_000
    batch_tokens: int = 2048
    lr: float = 2e-3
    betas: tuple[float, float] = (0.9, 0.98)
    weight_decay: float = 0.1
    clip: float = 1.0
    n_warmup: int = 200
    decay_share: float = 0.5
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what could not be trained."""
        whole = ("d_model", "n_layers", "n_heads", "d_head", "d_mlp", "n_positions", "n_tokens", "batch_tokens")
        if self.n_warmup < 0:
            raise BadInput(f"Setting n_warmup must be at least 0; got {self.n_warmup}.")
        for name in (*whole, "lr"):
            if getattr(self, name) <= 0:
                raise BadInput(f"Setting {name} must be above 0; got {getattr(self, name)}.")
        for name in ("jump_share", "decay_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise BadInput(f"Setting {name} is a share from 0 to 1; got {getattr(self, name)}.")
        unknown = [name for name in self.weights if name != _COPY and name not in self.hops]
        if unknown or not self.weights:
            raise BadInput(f"Each task in weights needs its hops; missing: {', '.join(unknown) or 'every task'}.")

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
            max_position_embeddings=config.n_positions,
            tie_word_embeddings=True,
            bos_token_id=tokenizer.convert_tokens_to_ids(BOS),
            eos_token_id=tokenizer.convert_tokens_to_ids(END),
            pad_token_id=tokenizer.convert_tokens_to_ids(PAD),
        )
    )


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
        """Return one (prompt, chain)."""
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
        folder: Where to write; `folder/training` holds what a killed run needs to go on.
        device: Where to train.
        resume: Go on from `folder/training` if it is there.
        n_workers: Processes that draw samples beside the training one.
        seconds_between_checkpoints: How much work a kill can cost.
        progress: Show a progress bar.

    Returns:
        `folder`.

    Raises:
        BadInput: `folder` holds a training of another config or something else, is there already and `resume` is off,
            what a killed run left is damaged, the disk is full, there is no such device, or the recipe has too few
            positions for its hops.
    """
    place = check_device(device)
    state_folder = folder / "training"
    step = begin(config, folder, state_folder, resume)
    tokenizer = reasoner_tokenizer(config)
    model = new_reasoner(config, tokenizer).to(place)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=config.lr, betas=config.betas, weight_decay=config.weight_decay
    )
    if step:
        load_optimizer(state_folder / "state.safetensors", model, optimizer)
    trainer = _Trainer(config, model, tokenizer, optimizer, state_folder, seconds_between_checkpoints)
    trainer.run(step, n_workers, progress)
    with clear_disk_errors(folder):
        model.to("cpu").eval().save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return folder


@dataclass
class _Trainer:
    config: ReasonerConfig
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    optimizer: torch.optim.Optimizer
    folder: Path
    seconds_between_checkpoints: float
    log: list[dict[str, float]] = field(default_factory=list)

    def run(self, step: int, n_workers: int, progress: bool) -> None:
        """Train from `step` to the end."""
        if step:
            self.log = read_json(self.folder / "progress.json")["log"]
        saved = time.monotonic()
        loader = self._loader(step, n_workers)
        with progress_bar("training", self.config.n_steps, shown=progress, completed=step) as bar:
            for group in loader:
                loss = torch.stack([self._step(step + i, batch) for i, batch in enumerate(group)])
                step += len(group)
                mean = float(loss.mean())
                self.log.append({"step": step, "loss": round(mean, 5), "lr": learning_rate(self.config, step)})
                bar.move_to(step, f"loss {mean:.3f}")
                if time.monotonic() - saved > self.seconds_between_checkpoints:
                    self._save(step)
                    saved = time.monotonic()
        self._save(step)

    def _loader(self, step: int, n_workers: int) -> DataLoader[Any]:
        # saved steps are multiples of a group, or the last one
        data = ReasonerData(self.config, self.tokenizer, first=-(-step // _GROUP))
        options: dict[str, Any] = {"prefetch_factor": 4} if n_workers else {}
        return DataLoader(data, batch_size=None, num_workers=n_workers, **options)

    def _step(self, step: int, batch: Batch) -> Tensor:
        device = self.model.device
        input_ids, labels, positions = (tensor.to(device, non_blocking=True) for tensor in batch)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.config, step)
        output = self.model(input_ids, attention_mask=torch.ones_like(input_ids), position_ids=positions, labels=labels)
        output.loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return output.loss.detach()  # type: ignore[no-any-return]

    def _save(self, step: int) -> None:
        with atomic_folder(self.folder) as draft:
            save_optimizer(draft / "state.safetensors", self.model, self.optimizer)
            write_json(draft / "progress.json", {"step": step, "log": self.log})
