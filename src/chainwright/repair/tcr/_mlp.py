"""The small network that the light selector and the trained detector are: standardised inputs, one hidden layer."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from chainwright.repair.base import load_weights
from chainwright.repair.tcr.config import TrainConfig


class Perceptron(nn.Module):
    """Standardises its inputs `[N, F]` and returns `[N, K]`."""

    mean: Tensor
    std: Tensor

    def __init__(self, n_in: int, n_hidden: int, n_out: int, dropout: float = 0.0):
        super().__init__()
        self.register_buffer("mean", torch.zeros(n_in))
        self.register_buffer("std", torch.ones(n_in))
        self.drop = nn.Dropout(dropout)
        self.first = nn.Linear(n_in, n_hidden) if n_hidden else None
        self.last = nn.Linear(n_hidden or n_in, n_out)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the outputs `[N, K]`."""
        x = self.drop((inputs - self.mean) / self.std)
        if self.first is not None:
            x = self.drop(nn.functional.gelu(self.first(x)))
        return self.last(x)  # type: ignore[no-any-return]

    @classmethod
    def restore(cls, tensors: Mapping[str, Tensor]) -> Perceptron:
        """Return the network that `state_dict` describes.

        Raises:
            BadInput: A tensor is missing, or they do not fit together.
        """
        n_in, n_hidden, n_out = (
            len(tensors[name]) if name in tensors else 0 for name in ("mean", "first.weight", "last.bias")
        )
        made = cls(n_in, n_hidden, n_out)
        load_weights(made, tensors, "a network")
        return made.eval()


Loss = Callable[[Tensor, Tensor], Tensor]


def train_perceptron(inputs: Tensor, labels: Tensor, n_out: int, loss: Loss, config: TrainConfig) -> Perceptron:
    """Return a perceptron trained on `inputs` `[N, F]` and `labels` `[N, ...]`, the same for the same seed.

    Args:
        inputs: Features on the CPU.
        labels: What `loss` takes beside the outputs.
        n_out: Outputs of the network.
        loss: Mean loss of a batch.
        config: How to train.
    """
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(config.seed)
        network = Perceptron(inputs.shape[1], config.n_hidden, n_out, config.dropout)
        network.mean.copy_(inputs.mean(0))
        network.std.copy_(inputs.std(0, unbiased=False).clamp(min=1e-4))
        order = torch.randperm(len(inputs))
        n_held = int(config.held_out * len(inputs))
        held, seen = order[:n_held], order[n_held:]
        return _best_epoch(network, (inputs, labels), seen, held, loss, config)


def _best_epoch(
    network: Perceptron, data: tuple[Tensor, Tensor], seen: Tensor, held: Tensor, loss: Loss, config: TrainConfig
) -> Perceptron:
    inputs, labels = data
    optimizer = torch.optim.AdamW(network.parameters(), lr=config.lr, weight_decay=config.weight_decay)
    steps = -(-len(seen) // config.batch_size) * config.n_epochs
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    best, kept = float("inf"), network.state_dict()
    for _ in range(config.n_epochs):
        network.train()
        for batch in torch.split(seen[torch.randperm(len(seen))], config.batch_size):
            optimizer.zero_grad()
            loss(network(inputs[batch]), labels[batch]).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
        network.eval()
        with torch.no_grad():
            now = float(loss(network(inputs[held]), labels[held])) if len(held) else -1.0
        if now < best or not len(held):
            best, kept = now, {name: value.clone() for name, value in network.state_dict().items()}
    network.load_state_dict(kept)
    return network.eval().requires_grad_(False)
