"""What the recipes of all small models share: settings of the model and the optimizer, and an untrained Qwen3.

The types below carry bounds and descriptions, so that a recipe with another default writes nothing but that default, as
in `d_model: Width = 128`.
"""

from __future__ import annotations

from typing import Annotated, Protocol

import torch
from pydantic import Field
from transformers import PreTrainedTokenizerBase, Qwen3Config, Qwen3ForCausalLM

from chainwright._config import Config
from chainwright.lab.tokenizer import BOS, END, PAD

Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]

Width = Annotated[int, Field(ge=1, description="Width of the residual stream.")]
Layers = Annotated[int, Field(ge=1, description="Number of layers.")]
Heads = Annotated[int, Field(ge=1, description="Attention heads per layer.")]
HeadSize = Annotated[int, Field(ge=1, description="Size of queries, keys and values of a head.")]
MLPSize = Annotated[int, Field(ge=1, description="Neurons per MLP.")]
Positions = Annotated[int, Field(ge=1, description="Maximum number of tokens of a sequence.")]
Steps = Annotated[int, Field(ge=1, description="Optimizer steps.")]
BatchSize = Annotated[int, Field(ge=1, description="Rows per step.")]
BatchTokens = Annotated[int, Field(ge=1, description="Tokens per step, approximately.")]
Rate = Annotated[float, Field(gt=0, description="Highest learning rate.")]
Betas = Annotated[tuple[float, float], Field(description="Decay of AdamW's two moments.")]
WeightDecay = Annotated[float, Field(ge=0, description="Weight decay of AdamW.")]
Warmup = Annotated[int, Field(ge=0, description="Steps over which the learning rate rises.")]
Decay = Annotated[float, Field(ge=0, le=1, description="Share of the steps over which the learning rate falls to 0.")]


class Schedule(Protocol):
    """The settings that the learning rate of a step depends on."""

    @property
    def lr(self) -> float:
        """Highest learning rate."""

    @property
    def n_steps(self) -> int:
        """Optimizer steps in all."""

    @property
    def n_warmup(self) -> int:
        """Steps over which the rate rises."""

    @property
    def decay_share(self) -> float:
        """Share of the steps over which the rate falls to zero."""


def learning_rate(config: Schedule, step: int) -> float:
    """Return the learning rate of a step: linear warm-up, constant, linear decay to zero after the last step."""
    warm = min(1.0, (step + 1) / max(1, config.n_warmup))
    decay = min(1.0, max(0, config.n_steps - step) / max(1.0, config.decay_share * config.n_steps))
    return config.lr * min(warm, decay)


class Optimization(Config):
    """How AdamW trains: warm-up, constant rate, linear decay; gradients are clipped.

    A recipe also has `n_steps`, as a setting or computed from others.
    """

    lr: Rate = 3e-3
    betas: Betas = (0.9, 0.98)
    weight_decay: WeightDecay = 0.1
    clip: Positive = Field(default=1.0, description="Maximum norm of the gradient.")
    n_warmup: Warmup = 50
    decay_share: Decay = 0.4
    seed: int = Field(default=0, description="Seed of the weights and the batches.")


class Recipe(Optimization):
    """Size of a model, and how AdamW trains it."""

    d_model: Width = 64
    n_layers: Layers = 4
    n_heads: Heads = 4


class Qwen3Recipe(Recipe):
    """A recipe whose model is a Qwen3 with as many key-value heads as heads."""

    d_head: HeadSize = 16
    d_mlp: MLPSize = 192


def new_qwen3(
    config: Qwen3Recipe,
    tokenizer: PreTrainedTokenizerBase,
    n_positions: int,
    *,
    is_tied: bool = True,
    initializer_range: float = 0.02,
) -> Qwen3ForCausalLM:
    """Return an untrained Qwen3, the same for the same seed; leaves PyTorch's generator right after its weights.

    Args:
        config: Sizes and seed.
        tokenizer: The tokenizer, with the special tokens of `word_tokenizer`.
        n_positions: Maximum number of tokens.
        is_tied: Share the weights of the embedding and the unembedding.
        initializer_range: Standard deviation of new weights.
    """
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
            max_position_embeddings=n_positions,
            initializer_range=initializer_range,
            tie_word_embeddings=is_tied,
            bos_token_id=tokenizer.convert_tokens_to_ids(BOS),
            eos_token_id=tokenizer.convert_tokens_to_ids(END),
            pad_token_id=tokenizer.convert_tokens_to_ids(PAD),
        )
    )
