"""Saving and loading a model with its AdamW state as safetensors, so that a killed training resumes exactly."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from chainwright._errors import BadInput

_MOMENTS = ("exp_avg", "exp_avg_sq", "step")


def save_optimizer(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Write the weights and each one's moments under its name."""
    tensors = {}
    for name, weight in model.named_parameters():
        tensors[f"weight/{name}"] = weight.detach().contiguous()
        for moment in _MOMENTS:
            if moment in optimizer.state[weight]:
                tensors[f"{moment}/{name}"] = optimizer.state[weight][moment].detach().clone().contiguous()
    save_file(tensors, path)


def load_optimizer(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Read what `save_optimizer` wrote into a model and an optimizer over its parameters.

    Raises:
        BadInput: The file is missing, damaged, or of another model.
    """
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise BadInput(f"{path} is missing or damaged: {error}; train again in another folder.") from error
    parts = {True: ("weight", *_MOMENTS), False: ("weight",)}  # a frozen weight has no moments
    needed = {f"{part}/{name}" for name, weight in model.named_parameters() for part in parts[weight.requires_grad]}
    if needed != tensors.keys():
        raise BadInput(f"{path} does not belong to this model; train again in another folder.")
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.copy_(tensors[f"weight/{name}"])
            for moment in _MOMENTS if weight.requires_grad else ():
                saved = tensors[f"{moment}/{name}"]
                optimizer.state[weight][moment] = saved if moment == "step" else saved.to(weight.device)
