"""Low-rank updates of attention projections, the control of a back attention with as many parameters."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn


class LowRank(nn.Module):
    """Adds `x A B` to what every square or rectangular linear module of the attentions returns.

    Source: LoRA (arXiv 2106.09685), without dropout and with scale 1.
    """

    def __init__(self, model: nn.Module, rank: int, seed: int = 0):
        super().__init__()
        torch.manual_seed(seed)
        self.places = [m for name, m in model.named_modules() if isinstance(m, nn.Linear) and "attn" in name]
        self.down = nn.ParameterList(
            nn.Parameter(torch.randn(m.in_features, rank) / m.in_features**0.5) for m in self.places
        )
        self.up = nn.ParameterList(nn.Parameter(torch.zeros(rank, m.out_features)) for m in self.places)

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Let the model run with the updates."""

        def hook(k: int) -> Any:
            def add(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
                added: Tensor = args[0] @ self.down[k] @ self.up[k]
                return output + added

            return add

        with ExitStack() as stack:
            for k, module in enumerate(self.places):
                stack.callback(module.register_forward_hook(hook(k)).remove)
            yield


def rank_for(model: nn.Module, n_parameters: int) -> int:
    """Return the rank whose updates have as many parameters as asked for, or a few less."""
    per_rank = sum(
        m.in_features + m.out_features
        for name, m in model.named_modules()
        if isinstance(m, nn.Linear) and "attn" in name
    )
    return max(1, n_parameters // per_rank)
