"""What a plan needs to know of a model: it is built from its config without weights, and its parts are counted."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import PreTrainedModel

from chainwright._errors import BadInput

_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")
_PER_TOKEN = ("num_experts_per_tok", "moe_topk", "num_experts_per_token", "experts_per_token")


class Shape(NamedTuple):
    """The sizes of a model.

    Attributes:
        name: By which it was asked for.
        dtype: Number type that its config states.
        n_weights: All weights.
        n_layers, d_model, n_heads, n_kv_heads, d_head, d_vocab: As usual.
        in_layers: Weights of all layers.
        per_token: Those of them that one token is multiplied with; fewer where there are experts.
        written: Numbers that the linear modules of one layer write for one token.
        n_positions: Longest input.
    """

    name: str
    dtype: str
    n_weights: int
    n_layers: int
    d_model: int
    n_heads: int
    n_kv_heads: int
    d_head: int
    d_vocab: int
    in_layers: int
    per_token: float
    written: float
    n_positions: int

    @property
    def cached(self) -> int:
        """Return the numbers that one token has in the cache: keys and values of all layers."""
        return 2 * self.n_layers * self.n_kv_heads * self.d_head

    def sentence(self) -> str:
        """Return the sizes in a sentence."""
        active = f", of which a token uses {self._active:,.0f}" if self.per_token < self.in_layers else ""
        return (
            f"{self.name}: {self.n_weights:,} weights{active}, {self.n_layers} layers x {self.n_heads} heads "
            f"({self.n_kv_heads} for keys and values), width {self.d_model}, {self.d_vocab:,} tokens; {self.dtype}."
        )

    @property
    def _active(self) -> float:
        return self.n_weights - self.in_layers + self.per_token


def shape_of(name: str, model: PreTrainedModel) -> Shape:
    """Return the sizes of a model that was built without weights.

    Raises:
        BadInput: Its layers cannot be found, or have no attention heads.
    """
    config: Any = model.config.get_text_config()
    n_layers = getattr(config, "num_hidden_layers", None)
    n_heads = getattr(config, "num_attention_heads", None)
    layers = _layers(model, n_layers)
    if layers is None or not isinstance(n_heads, int):
        raise BadInput(
            f"The config of {name!r} ({model.config.model_type}) does not say how many layers and attention heads the "
            "model has in one stack, so nothing can be planned; a plan is of decoders such as llama, qwen or gpt2."
        )
    d_model = int(config.hidden_size)
    share = _share_of_experts(config)
    per_token, written = 0.0, 0.0
    for weight in (p for layer in layers for p in layer.parameters()):
        is_expert = weight.dim() == 3
        used = share if is_expert else 1.0
        per_token += used * weight.numel()
        # outputs of a product: all but the side that reads the width
        written += used * weight.numel() / d_model if weight.dim() > 1 else 0.0
    number = str(model.dtype).removeprefix("torch.")
    return Shape(
        name=name,
        dtype=number,
        n_weights=sum(p.numel() for p in model.parameters()),
        n_layers=len(layers),
        d_model=d_model,
        n_heads=n_heads,
        n_kv_heads=int(getattr(config, "num_key_value_heads", None) or n_heads),
        d_head=int(getattr(config, "head_dim", None) or d_model // n_heads),
        d_vocab=int(config.vocab_size),
        in_layers=sum(p.numel() for layer in layers for p in layer.parameters()),
        per_token=per_token,
        written=written / len(layers),
        n_positions=int(getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", 0) or 0),
    )


def itemsize(dtype: str) -> int:
    """Return the bytes of a number."""
    return int(getattr(torch, dtype).itemsize)


def _layers(model: nn.Module, n_layers: object) -> nn.ModuleList | None:
    """Return the longest list of modules that has as many members as the config has layers."""
    stacks = [m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) == n_layers]
    return max(stacks, key=lambda stack: sum(p.numel() for p in stack.parameters()), default=None)


def _share_of_experts(config: Any) -> float:
    """Return the share of the routed experts that a token is sent to; 1 where there are none."""
    n = next((value for name in _EXPERTS if (value := getattr(config, name, None))), None)
    used = next((value for name in _PER_TOKEN if (value := getattr(config, name, None))), None)
    return 1.0 if not n or not used else used / n
