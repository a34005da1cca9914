"""The recipe of the compass model: a small decoder that loses sight of its question as its chain grows.

1. Three kinds of rows, each a question and its chain. The task itself, in short chains. "Names": short chains that
   write down the turn in place of the direction, from which looking things up in the question is learned soon. Long
   chains of the task, whose directions are written out and do not count in the loss: counting far, stopping, the
   answer and all positions are learned from these.
2. So the model knows all of a long chain but one thing: finding the turn in the question has only been learned where
   few lines compete with the question for the attention of the heads that look it up.
3. Wide embeddings, as in `iteration_model.py`: with the usual ones the circuit does not form in this time.
4. The loss counts the chain alone. AdamW, warm-up, constant rate, linear decay; each batch is a pure function of
   (seed, step), and holds rows of like length.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import AfterValidator, Field
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Qwen3ForCausalLM

from chainwright._config import MustBe
from chainwright._errors import BadInput
from chainwright.lab.recipe import BatchTokens, Positions, Positive, Qwen3Recipe, Share, Steps, Warmup, new_qwen3
from chainwright.lab.tokenizer import word_tokenizer
from chainwright.lab.training import train_recipe
from chainwright.tasks import compass
from chainwright.tasks.base import write_chain

_IGNORED = -100
_NAMES = "names"  # the first word of a question whose chain names the turns


def _are_lines(ends: tuple[int, int]) -> tuple[int, int]:
    if not 1 <= ends[0] <= ends[1] <= compass.N_MINUTES:
        raise ValueError
    return ends


Lines = Annotated[tuple[int, int], AfterValidator(_are_lines), MustBe(f"a range within 1 to {compass.N_MINUTES} lines")]


class CompassConfig(Qwen3Recipe):
    """Everything that the recipe depends on."""

    hops: Lines = Field(
        default=(4, 10), description="Lines of a chain of the task and of one that names the turns, both ends included."
    )
    long_hops: Lines = Field(default=(4, 40), description="Lines of a chain whose directions do not count in the loss.")
    long_share: Share = Field(default=0.25, description="Share of the batches whose rows are such long chains.")
    names_share: Share = Field(
        default=0.25, description="Share of the rows of the other batches whose chains name the turns."
    )
    n_positions: Positions = 512
    embedding_std: Positive = Field(default=1.0, description="Standard deviation of new embeddings.")
    initializer_range: Positive = Field(default=0.1, description="Standard deviation of other new weights.")
    n_steps: Steps = 1600
    batch_tokens: BatchTokens = 2400
    n_warmup: Warmup = 100


def compass_tokenizer(config: CompassConfig) -> PreTrainedTokenizerBase:
    """Return the tokenizer of the task: one token per word and per digit."""
    return word_tokenizer(["\n", *"0123456789", *compass.vocabulary(), _NAMES], config.n_positions)


def new_compass(config: CompassConfig, tokenizer: PreTrainedTokenizerBase) -> Qwen3ForCausalLM:
    """Return an untrained model, the same for the same seed."""
    model = new_qwen3(config, tokenizer, config.n_positions, is_tied=False, initializer_range=config.initializer_range)
    torch.nn.init.normal_(model.model.embed_tokens.weight, std=config.embedding_std)
    return model


class CompassRows:
    """Draws the batch of each step from (seed, step)."""

    def __init__(self, config: CompassConfig, tokenizer: PreTrainedTokenizerBase):
        self.config = config
        self.tokenizer = tokenizer
        self.digits = torch.tensor(tokenizer.convert_tokens_to_ids(list("0123456789")))
        self.directions = torch.tensor(tokenizer.convert_tokens_to_ids(list(compass.DIRECTIONS)))

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Return right-padded ids and labels (the chain alone) of a step, both `[N, T]`."""
        rng, config = random.Random(f"{self.config.seed}/{step}"), self.config
        is_long = rng.random() < config.long_share
        low, high = config.long_hops if is_long else config.hops
        # the chains of a batch differ by a quarter at most
        most = rng.randint(low, high)
        texts, n_tokens = [], 0
        while n_tokens < config.batch_tokens:
            prompt, chain = self._drawn(rng, rng.randint(max(low, 3 * most // 4), most), is_long)
            texts.append((prompt, chain))
            n_tokens += 40 + 4 * chain.count("\n")
        prompts = self.tokenizer([prompt for prompt, _ in texts])["input_ids"]
        chains = self.tokenizer([chain for _, chain in texts], add_special_tokens=False)["input_ids"]
        rows = [(p, [*c, self.tokenizer.eos_token_id]) for p, c in zip(prompts, chains, strict=True)]
        ids, labels = self._padded(rows)
        if is_long:
            after_a_digit = torch.isin(ids, self.digits).roll(1, dims=1)
            labels[after_a_digit & torch.isin(ids, self.directions)] = _IGNORED
        return ids, labels

    def _drawn(self, rng: random.Random, hops: int, is_long: bool) -> tuple[str, str]:
        """Return the prompt and the chain of a row."""
        facts = compass.draw(rng, hops)
        script = compass.TASK.write(facts, "short")
        prompt, chain = script.question + "\n", write_chain(script.lines)[0]
        if not is_long and rng.random() < self.config.names_share:
            return prompt.replace("compass", _NAMES, 1), _naming(facts)
        return prompt, chain

    def _padded(self, rows: list[tuple[list[int], list[int]]]) -> tuple[Tensor, Tensor]:
        width = max(len(prompt) + len(chain) for prompt, chain in rows)
        if width > self.config.n_positions:
            raise BadInput(
                f"A row has {width} tokens, but the recipe has n_positions={self.config.n_positions}; raise that or "
                "lower the hops."
            )
        ids = torch.full((len(rows), width), self.tokenizer.pad_token_id)
        labels = torch.full((len(rows), width), _IGNORED)
        for i, (prompt, chain) in enumerate(rows):
            n = len(prompt) + len(chain)
            ids[i, :n] = torch.tensor([*prompt, *chain])
            labels[i, len(prompt) : n] = ids[i, len(prompt) : n]
        return ids, labels


def _naming(facts: Mapping[str, Any]) -> str:
    """Return a chain that writes the turn of each minute down, and nothing that follows from it."""
    turns = dict(map(tuple, facts["turns"]))
    minutes = range(facts["from"], facts["from"] + facts["hops"])
    return "\n".join([*(f"{minute:02d} {turns[minute % 10]}" for minute in minutes), "end"])


def train_compass(
    config: CompassConfig, folder: Path, *, device: str = "cpu", resume: bool = False, progress: bool = True
) -> Path:
    """Train the compass model and write the checkpoint, tokenizer and recipe to `folder`.

    Args:
        config: The recipe.
        folder: Where to write; `folder/training` holds the checkpoint that a killed run resumes from.
        device: Where to train.
        resume: Resume from `folder/training` if it is there.
        progress: Show a progress bar.

    Raises:
        BadInput: `folder` holds a training of another config or something else, is there already and `resume` is off,
            there is no such device, or the recipe has too few positions for its hops.
    """
    tokenizer = compass_tokenizer(config)
    model, rows = new_compass(config, tokenizer), CompassRows(config, tokenizer)

    def losses(first: int) -> Iterator[Tensor]:
        return (_loss(model, *rows.batch(step)) for step in range(first, config.n_steps))

    return train_recipe(config, folder, model, tokenizer, losses, device=device, resume=resume, progress=progress)


def _loss(model: PreTrainedModel, ids: Tensor, labels: Tensor) -> Tensor:
    ids, labels = ids.to(model.device), labels.to(model.device)
    loss: Tensor = model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=labels, use_cache=False).loss
    return loss
