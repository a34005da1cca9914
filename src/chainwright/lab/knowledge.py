"""The recipe of the small model of a made-up world: it knows every single fact and fails most two-hop questions.

1. Rows are questions in one wording with their answer, "bado mother kevi" by default, about the facts of a
   `World`, all of them every time.
2. In a share of the rows a random word is in front, so that no position is special; in a share some relation
   comes between a one-hop question and its answer. From the latter the model learns to pass over what follows the
   first relation, and its usual wrong answer to a two-hop question becomes that of the first hop.
3. A share of the training compositions is learned by heart with them. Those that are not stay for a back attention.
4. The loss counts the answer alone. AdamW, warm-up, linear decay; each batch is a pure function of (seed, step).
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Qwen3ForCausalLM

from chainwright._errors import BadInput
from chainwright._files import read_json
from chainwright.lab.recipe import BatchSize, HeadSize, MLPSize, Qwen3Recipe, Share, Steps, Width, new_qwen3
from chainwright.lab.tokenizer import word_tokenizer
from chainwright.lab.training import train_recipe
from chainwright.models.sources import BUNDLED, bundled_models
from chainwright.tasks.base import Problem
from chainwright.tasks.knowledge import Composition, Order, Split, World, split

_N_POSITIONS = 64


class KnowledgeConfig(Qwen3Recipe):
    """Everything that the recipe depends on."""

    n_entities: int = Field(default=100, description="Entities of the world.")
    n_relations: int = Field(default=8, description="Relations of the world.")
    world_seed: int = Field(default=0, description="Seed of the facts.")
    order: Order = Field(default="bare", description="How questions are worded: bare, possessive or nested.")
    prefix_share: Share = Field(default=0.66, description="Share of the rows behind a random word.")
    pass_over_share: Share = Field(
        default=0.0, description="Share of the one-hop rows with a random relation's name before the answer."
    )
    known_share: Share = Field(default=0.0, description="Share of the training compositions that is learned by heart.")
    two_hop_share: Share = Field(
        default=0.35, description="Share of the rows that are such compositions, if there are any."
    )
    d_model: Width = 128
    d_head: HeadSize = 32
    d_mlp: MLPSize = 384
    n_steps: Steps = 400
    batch_size: BatchSize = 128

    @property
    def world(self) -> World:
        """Return the world that the settings describe."""
        return World(self.n_entities, self.n_relations, self.world_seed)


def known_compositions(config: KnowledgeConfig) -> tuple[list[Composition], Split]:
    """Return the compositions that the recipe learns by heart, and the world's parts without them.

    `Split.train` of what is returned holds the compositions that a back attention may be trained on: the model has
    never seen them, and what is fitted already could not train it.
    """
    parts = split(config.world)
    drawn = random.Random(f"{config.world_seed}/by heart")
    known = [c for c in parts.train if drawn.random() < config.known_share]
    kept = set(known)
    return known, Split(
        [c for c in parts.train if c not in kept], parts.held_out, parts.new_first, parts.new_second, parts.new_both
    )


def read_recipe(name: str) -> Mapping[str, Any]:
    """Return the `recipe.json` beside a model's weights.

    Args:
        name: A bundled name or the folder of a checkpoint.

    Raises:
        BadInput: The folder has none.
    """
    folder = BUNDLED / name if name in bundled_models() else Path(name)
    if not (folder / "recipe.json").is_file():
        raise BadInput(
            f"{folder} has no recipe.json, so the facts of its world are unknown; give a model that "
            "chainwright train world made."
        )
    recipe: Mapping[str, Any] = read_json(folder / "recipe.json")
    return recipe


def world_recipe(recipe: Mapping[str, Any]) -> KnowledgeConfig:
    """Return the recipe of a model of a made-up world, from what its `recipe.json` holds.

    Raises:
        BadInput: It is the recipe of another kind of model.
    """
    if not {"n_entities", "n_relations", "known_share"} <= recipe.keys() <= KnowledgeConfig.model_fields.keys():
        raise BadInput(
            "The model is not one of a made-up world: its recipe.json lacks the world's settings. Train one with "
            "chainwright train world, or take the bundled 'world'."
        )
    return KnowledgeConfig.from_record(recipe)


def recipe_for(name: str) -> KnowledgeConfig:
    """Return the recipe of a model of a made-up world, by its bundled name or folder.

    Raises:
        BadInput: The model has no recipe, or one of another kind.
    """
    return world_recipe(read_recipe(name))


def knowledge_tokenizer(config: KnowledgeConfig) -> PreTrainedTokenizerBase:
    """Return the tokenizer of the world: one token per word."""
    return word_tokenizer(["\n", *"0123456789", *config.world.vocabulary()], _N_POSITIONS)


def new_model(config: KnowledgeConfig, tokenizer: PreTrainedTokenizerBase) -> Qwen3ForCausalLM:
    """Return an untrained model, the same for the same seed."""
    return new_qwen3(config, tokenizer, _N_POSITIONS)


class _Rows:
    """Draws batches: ids right-aligned at the answer, `[N, T]`, with their mask."""

    def __init__(self, config: KnowledgeConfig, tokenizer: PreTrainedTokenizerBase):
        self.config = config
        world = config.world
        ids = {word: tokenizer.convert_tokens_to_ids(word) for word in world.vocabulary()}
        self.words = list(ids.values())
        self.relations = [ids[name] for name in world.relations]
        self.bos, self.pad = tokenizer.bos_token_id, tokenizer.pad_token_id
        known, _ = known_compositions(config)
        self.one = [self._row(ids, world.question(*fact, order=config.order)) for fact in world.facts]
        self.two = [self._row(ids, world.question(*c, order=config.order)) for c in known]

    @staticmethod
    def _row(ids: dict[str, int], problem: Problem) -> list[int]:
        return [ids[word] for word in (*problem.prompt.split(), problem.answer)]

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        rng = random.Random(f"{self.config.seed}/{step}")
        rows = [self._drawn(rng) for _ in range(self.config.batch_size)]
        width = max(map(len, rows))
        ids = torch.tensor([[self.pad] * (width - len(row)) + row for row in rows])
        return ids, (ids != self.pad).long()

    def _drawn(self, rng: random.Random) -> list[int]:
        is_two = bool(self.two) and rng.random() < self.config.two_hop_share
        row = rng.choice(self.two if is_two else self.one)
        if not is_two and rng.random() < self.config.pass_over_share:
            row = [*row[:-1], rng.choice(self.relations), row[-1]]
        if rng.random() < self.config.prefix_share:
            row = [rng.choice(self.words), *row]
        return [self.bos, *row]


def train_knowledge(
    config: KnowledgeConfig, folder: Path, *, device: str = "cpu", resume: bool = False, progress: bool = True
) -> Path:
    """Train the model of a world and write the checkpoint, tokenizer and recipe to `folder`.

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
    tokenizer = knowledge_tokenizer(config)
    model, rows = new_model(config, tokenizer), _Rows(config, tokenizer)

    def losses(first: int) -> Iterator[Tensor]:
        return (_loss(model, *rows.batch(step)) for step in range(first, config.n_steps))

    return train_recipe(config, folder, model, tokenizer, losses, device=device, resume=resume, progress=progress)


def _loss(model: PreTrainedModel, ids: Tensor, mask: Tensor) -> Tensor:
    ids, mask = ids.to(model.device), mask.to(model.device)
    return nn.functional.cross_entropy(last_logits(model, ids[:, :-1], mask[:, :-1]), ids[:, -1])


def last_logits(model: nn.Module, ids: Tensor, mask: Tensor) -> Tensor:
    """Return the logits at the last position of left-padded rows, `[N, V]`."""
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    out: Tensor = model(
        input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False, logits_to_keep=1
    ).logits
    return out[:, -1]


def answers(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, problems: Sequence[Problem], batch_size: int = 512
) -> list[str]:
    """Return the likeliest next word after each prompt."""
    out: list[str] = []
    for start in range(0, len(problems), batch_size):
        rows = tokenizer([p.prompt for p in problems[start : start + batch_size]], padding=True, return_tensors="pt")
        rows = rows.to(model.device)
        with torch.no_grad():
            best = last_logits(model, rows["input_ids"], rows["attention_mask"]).argmax(-1)
        out += tokenizer.convert_ids_to_tokens(best.tolist())
    return out
