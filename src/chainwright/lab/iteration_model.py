"""The recipe of a training on iterative tasks, and the model that it begins with.

The embedding tables are drawn far wider than usual: with the usual 0.02 the circuit does not form in the time that
these recipes take.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from chainwright._errors import BadInput
from chainwright.lab.iteration_data import TASKS, n_tokens, task_of, vocabulary
from chainwright.lab.recipe import BatchSize, Count, Heads, Layers, Recipe, Steps, Warmup, WeightDecay
from chainwright.models.load import load_model


class IterationConfig(Recipe):
    """Everything that a training of the laboratory depends on."""

    tasks: Mapping[str, float] = Field(
        default={"polynomial": 1.0},
        description="How often each of copy, parity and polynomial is drawn, relative to the others.",
    )
    polynomial: str = Field(
        default="s*x + 1", description="The next state from the state s and the input x, such as 's*x + 1'."
    )
    modulus: int = Field(default=11, description="Number of states of the polynomial task.")
    alphabet: int = Field(default=0, description="Number of its inputs; 0 for as many as states.")
    min_length: Count = Field(default=1, description="Shortest length to train on.")
    max_length: int = Field(default=12, description="Longest length to train on; lengths are drawn uniformly.")
    chain_of_thought: bool = Field(default=True, description="Write every state, not the last alone.")
    held_out_share: float = Field(
        default=0.25, gt=0, lt=1, description="Share of the sequences that is never trained on."
    )
    n_layers: Layers = 2
    n_heads: Heads = 1
    positions: Literal["learned", "rotary", "none"] = Field(
        default="learned", description="Position embeddings: learned (GPT-2), rotary (Llama) or none (GPT-2 without)."
    )
    n_positions: int = Field(
        default=0, description="Maximum number of tokens of a sequence; 0 for as many as the longest one has."
    )
    model: Mapping[str, Any] = Field(
        default={},
        description="A Transformers config as plain values with its model_type, in place of the sizes above; "
        "vocabulary, positions and special tokens are filled in.",
    )
    initializer_range: float = Field(default=0.1, description="Standard deviation of new weights.")
    embedding_std: float = Field(default=1.0, description="Standard deviation of the token and position tables.")
    start_from: str = Field(default="", description="Folder of a checkpoint to start from; empty for a new model.")
    n_steps: Steps = 1000
    batch_size: BatchSize = 64
    weight_decay: WeightDecay = 0.01
    n_warmup: Warmup = 100
    measure_every: Count = Field(default=50, description="Steps between two checkpoints.")
    n_held_out: Count = Field(
        default=64,
        description="Held-out sequences per task and length at a checkpoint, where there are so many.",
    )

    @model_validator(mode="after")
    def _fits(self) -> Self:
        self._check_tasks()
        self._check_lengths()
        return self

    def _check_tasks(self) -> None:
        if not self.tasks or min(self.tasks.values()) < 0 or sum(self.tasks.values()) <= 0:
            raise BadInput(
                f"Setting tasks gives a weight to at least one of {', '.join(TASKS)}; got {dict(self.tasks)}."
            )
        # every task is made, since the words of the polynomial task are in each model's vocabulary
        for name in {*self.tasks, "polynomial"}:
            task_of(self, name)

    def _check_lengths(self) -> None:
        if self.max_length < self.min_length:
            raise BadInput(
                f"Setting max_length must be at least min_length; got {self.max_length} and {self.min_length}."
            )
        if self.n_positions and self.n_positions < self.most_tokens:
            raise BadInput(
                f"Sequences of length {self.max_length} have {self.most_tokens} tokens, more than the "
                f"{self.n_positions} positions of the model; lower max_length or raise n_positions."
            )

    @property
    def most_tokens(self) -> int:
        """Return the number of tokens of the longest sequence."""
        return n_tokens(self.max_length, chain_of_thought=self.chain_of_thought)


def model_config(config: IterationConfig) -> PretrainedConfig:
    """Return the Transformers config of a recipe.

    Raises:
        BadInput: Setting `model` makes no Transformers config.
    """
    shared: dict[str, Any] = {
        "vocab_size": len(vocabulary(config)),
        "bos_token_id": None,
        "eos_token_id": 1,
        "pad_token_id": 0,
        "tie_word_embeddings": False,
        "initializer_range": config.initializer_range,
    }
    n_positions = config.n_positions or config.most_tokens
    if config.model:
        own = {name: value for name, value in config.model.items() if name != "model_type"}
        try:
            kind = AutoConfig.for_model(config.model.get("model_type", ""))
            place = kind.attribute_map.get("max_position_embeddings", "max_position_embeddings")
            return AutoConfig.for_model(kind.model_type, **{place: n_positions}, **(shared | own))
        except (ValueError, TypeError) as error:
            raise BadInput(f"Setting model makes no Transformers config: {error}.") from error
    if config.positions == "rotary":
        return AutoConfig.for_model(
            "llama",
            **shared,
            hidden_size=config.d_model,
            intermediate_size=4 * config.d_model,
            num_hidden_layers=config.n_layers,
            num_attention_heads=config.n_heads,
            num_key_value_heads=config.n_heads,
            max_position_embeddings=n_positions,
        )
    return AutoConfig.for_model(
        "gpt2",
        **shared,
        n_embd=config.d_model,
        n_layer=config.n_layers,
        n_head=config.n_heads,
        n_positions=n_positions,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        resid_pdrop=0.0,
    )


def new_iteration_model(config: IterationConfig) -> PreTrainedModel:
    """Return the model that a training begins with, the same for the same seed.

    Raises:
        BadInput: The recipe's sizes do not make a model, or the checkpoint to start from does not fit the recipe.
    """
    if config.start_from:
        return _started(config)
    torch.manual_seed(config.seed)
    try:
        model: PreTrainedModel = AutoModelForCausalLM.from_config(model_config(config))
    except ValueError as error:
        raise BadInput(f"These sizes make no model: {error}.") from error
    generator = torch.Generator().manual_seed(config.seed)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Embedding):
                drawn = torch.randn(module.weight.shape, generator=generator)
                module.weight.copy_(config.embedding_std * drawn)
    if config.positions == "none" and not config.model:
        model.transformer.wpe.weight.data.zero_()
        model.transformer.wpe.weight.requires_grad_(False)
    return model


def _started(config: IterationConfig) -> PreTrainedModel:
    model, tokenizer = load_model(config.start_from, device="cpu")
    if tokenizer.get_vocab() != {word: i for i, word in enumerate(vocabulary(config))}:
        raise BadInput(
            f"The checkpoint {config.start_from} was made for another modulus or alphabet; its words differ from "
            "those of this recipe."
        )
    n_positions = int(getattr(model.config, "max_position_embeddings", config.most_tokens))
    if n_positions < config.most_tokens:
        raise BadInput(
            f"Sequences of length {config.max_length} have {config.most_tokens} tokens, more than the {n_positions} "
            f"positions of the checkpoint {config.start_from}; lower max_length."
        )
    if config.positions == "none" and not config.model:
        model.transformer.wpe.weight.requires_grad_(False)
    return model
