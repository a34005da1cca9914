"""LoRA on the attention projections, by PEFT: the control of a back attention with as many parameters."""

from __future__ import annotations

import copy

import torch
from peft import LoraConfig, PeftModel
from torch import nn

from chainwright.models.adapters import with_adapters
from chainwright.models.anatomy import anatomy


def low_rank(model: nn.Module, n_parameters: int, seed: int = 0) -> PeftModel:
    """Return a copy of a model with fresh LoRA adapters of at most `n_parameters` parameters (at least rank 1).

    They are added to every linear projection of the attentions, change nothing before they are trained, and have
    scale 1 and no dropout.

    Source: LoRA (arXiv 2106.09685).
    """
    copied = copy.deepcopy(anatomy(model).model)
    places = _places(copied)
    rank = max(1, n_parameters // sum(m.in_features + m.out_features for m in places.values()))
    config = LoraConfig(r=rank, lora_alpha=rank, lora_dropout=0.0, target_modules=sorted(places))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return with_adapters(copied, config)


def trained_parameters(adapted: nn.Module) -> list[nn.Parameter]:
    """Return the adapters' parameters."""
    return [p for name, p in adapted.named_parameters() if "lora_" in name]


def _places(model: nn.Module) -> dict[str, nn.Linear]:
    parts = anatomy(model)
    inside = {id(m) for layer in parts.layers for m in layer.attention.modules() if isinstance(m, nn.Linear)}
    return {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear) and id(m) in inside}
