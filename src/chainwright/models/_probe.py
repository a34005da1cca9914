"""Watching a forward pass module by module: what each one was given, and what it returned.

`anatomy` and `writers` recognise the parts of a model by comparing these tensors, so no model type has to be named.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from chainwright.models.placement import input_device


class ModuleCall(NamedTuple):
    """One call of one module: the tensor that it worked on and the tensor that it returned, both copies."""

    module: nn.Module
    given: Tensor
    returned: Tensor


def first_tensor(value: Any) -> Tensor | None:
    """Return the tensor that a module returned first, looking into one level of tuple or list."""
    if isinstance(value, (tuple, list)):
        value = value[0] if value else None
    return value if isinstance(value, Tensor) else None


def given_tensor(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    """Return the first tensor among a module's arguments, which in Transformers is the one that it works on."""
    return next((value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)), None)


def probe_ids(model: PreTrainedModel) -> Tensor:
    """Return the input of a probing pass, `[2, 2]`: two rows that differ in their second token only."""
    ids = torch.tensor([[3, 4], [3, 5]], device=input_device(model))
    return ids.clamp(max=vocabulary_size(model) - 1)


def vocabulary_size(model: PreTrainedModel) -> int:
    """Return the number of tokens in the model's vocabulary, by its config."""
    return int(model.config.get_text_config().vocab_size)


@contextmanager
def recording(modules: Iterable[nn.Module]) -> Iterator[list[ModuleCall]]:
    """Record the calls of some modules, in the order in which they end; an outer module follows those inside it."""
    calls: list[ModuleCall] = []

    def record(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        given, returned = given_tensor(args, kwargs), first_tensor(output)
        if given is not None and returned is not None:
            # copies, since some models add to the residual stream in place
            calls.append(ModuleCall(module, given.clone(), returned.clone()))

    with ExitStack() as stack:
        for module in modules:
            stack.callback(module.register_forward_hook(record, with_kwargs=True).remove)
        yield calls


def first_calls(calls: Iterable[ModuleCall], modules: Collection[nn.Module]) -> dict[nn.Module, ModuleCall]:
    """Return each module's first call, in the order in which those calls ended."""
    first: dict[nn.Module, ModuleCall] = {}
    for call in calls:
        if call.module in modules:
            first.setdefault(call.module, call)
    return first


def is_equal(a: Tensor, b: Tensor) -> bool:
    """Return whether two tensors have the same shape and the same numbers, bit for bit."""
    return a.shape == b.shape and a.equal(b)


def holds_equal(a: Tensor, b: Tensor) -> bool:
    """Return whether two tensors hold the same numbers in the same order, whatever their shapes.

    An MLP may work on all positions of a batch side by side, `[N T, D]`, while its layer works on `[N, T, D]`.
    """
    return a.numel() == b.numel() and torch.equal(a.flatten(), b.flatten())


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put every module in evaluation mode, and restore each one's own mode afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def widened(values: Tensor) -> Tensor:
    """Return `values` in float32, or as they are in float64."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def close(a: Tensor, b: Tensor) -> bool:
    """Return whether two results of one computation agree but for rounding, by the norm of their difference."""
    room = 0.05 if a.dtype in (torch.float16, torch.bfloat16) else 1e-3
    return bool((a - b).float().norm() <= room * a.float().norm())


def adds_up(total: Tensor, *terms: Tensor) -> bool:
    """Return whether the terms add up to `total` up to rounding, which grows with the terms and not with their sum."""
    each = torch.stack([widened(term) for term in terms])
    sizes, off = each.abs().sum(0), (widened(total) - each.sum(0)).abs()
    room = 4 * torch.finfo(total.dtype).eps * (sizes + sizes.mean(-1, keepdim=True))
    return bool((off <= room).all())


def fitted_factor(scaled: Tensor, vectors: Tensor) -> float | None:
    """Return m in `scaled = m * vectors`, or None if the shapes differ or no factor but 0 fits."""
    if scaled.shape != vectors.shape:
        return None
    step, v = widened(scaled), widened(vectors)
    fitted = float((step * v).sum() / (v * v).sum())
    return next((m for m in (1.0, fitted) if m != 0 and adds_up(scaled, m * vectors)), None)
