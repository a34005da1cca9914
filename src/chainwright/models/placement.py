"""Where a module runs, and its weights where they are now: also for modules that accelerate offloads.

An offloaded weight is a placeholder on the device `meta` between two calls; a hook of accelerate (`_hf_hook`) brings
it to its execution device for as long as its module runs. So a tensor that is to meet what a module returns belongs on
the execution device, not on the device of the weight.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn


def device_of(module: nn.Module) -> torch.device:
    """Return the device that a module runs on, whether its weights lie there or are brought there for each call.

    The first module inside it (itself included) that says so decides: by the execution device of its hook, or else by
    the device of a weight of its own. A module of which nothing but placeholders is known is on `meta`.
    """
    is_meta = False
    for part in module.modules():
        for hook in hooks_of(part):
            # a hook that only moves the inputs of the whole model says nothing of where its parts run
            device = getattr(hook, "execution_device", None)
            if device is not None and _holds_tensors(part):
                return torch.device(device)
        for tensor in (*part.parameters(recurse=False), *part.buffers(recurse=False)):
            if not tensor.is_meta:
                return tensor.device
            is_meta = True
    return torch.device("meta" if is_meta else "cpu")


def input_device(model: nn.Module) -> torch.device:
    """Return the device that token ids belong on: where the model's embedding runs."""
    embedding = model.get_input_embeddings()  # type: ignore[operator]
    return device_of(model if embedding is None else embedding)


def hooks_of(module: nn.Module) -> Iterator[Any]:
    """Yield the hooks that accelerate has put on a module itself; several are chained in one."""
    hook = getattr(module, "_hf_hook", None)
    if hook is not None:
        yield from getattr(hook, "hooks", (hook,))


def offloaded(module: nn.Module) -> Mapping[str, Tensor]:
    """Return the map from which a module's own offloaded weights are read when it runs; empty if it has none."""
    for hook in hooks_of(module):
        if getattr(hook, "offload", False) and getattr(hook, "weights_map", None) is not None:
            weights: Mapping[str, Tensor] = hook.weights_map
            return weights
    return {}


def _holds_tensors(module: nn.Module) -> bool:
    own = (*module.parameters(recurse=False), *module.buffers(recurse=False))
    return bool(own)
