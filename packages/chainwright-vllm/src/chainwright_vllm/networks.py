"""The small networks of saved repairs: standardised inputs, and at most one hidden layer."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn


class Perceptron(nn.Module):
    """Standardises its inputs `[N, F]` and returns `[N, K]`.

    Args:
        tensors: Its weights as they were saved: mean, std, last.*, and first.* where there is a hidden layer.

    Raises:
        KeyError: One is missing.
        RuntimeError: They do not fit together.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, tensors: Mapping[str, Tensor]):
        super().__init__()
        n_in, n_out = len(tensors["mean"]), len(tensors["last.bias"])
        n_hidden = len(tensors["first.weight"]) if "first.weight" in tensors else 0
        self.register_buffer("mean", torch.zeros(n_in))
        self.register_buffer("std", torch.ones(n_in))
        self.first = nn.Linear(n_in, n_hidden) if n_hidden else None
        self.last = nn.Linear(n_hidden or n_in, n_out)
        self.load_state_dict(dict(tensors))
        self.eval().requires_grad_(False)

    @property
    def n_in(self) -> int:
        """Inputs."""
        return len(self.mean)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the outputs `[N, K]`, on the CPU."""
        x = (inputs.float().cpu() - self.mean) / self.std
        if self.first is not None:
            x = nn.functional.gelu(self.first(x))
        out: Tensor = self.last(x)
        return out
