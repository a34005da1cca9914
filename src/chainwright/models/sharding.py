"""Models whose weights are spread over several processes."""

from __future__ import annotations

import torch
from torch import nn

from chainwright._errors import UnsupportedModel


def is_sharded(model: nn.Module) -> bool:
    """Return whether a weight of the model lies in parts in several processes."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return False
    from torch.distributed.tensor import DTensor

    return any(isinstance(weight, DTensor) for weight in model.parameters())


def check_whole(model: nn.Module) -> None:
    """Raise UnsupportedModel if the model is spread over several processes."""
    if is_sharded(model):
        raise UnsupportedModel(
            f"This {type(model).__name__} is spread over {torch.distributed.get_world_size()} processes, each of which "
            "would count its own heads from 0 and edit or measure only those; load it in one process (without tp_plan "
            "or FSDP)."
        )
