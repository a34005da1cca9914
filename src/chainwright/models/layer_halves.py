"""One layer in two halves: up to and with its attention, and what follows position by position.

Blocks differ between families, so none is written again here. The first half is the block left as soon as its
attention module returns; the second is the block run with its attention module returning what it is given, which may
be for some positions only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from chainwright.models._probe import first_tensor
from chainwright.models.anatomy import Layer

PER_TOKEN = ("hidden_states", "attention_mask", "position_ids", "position_embeddings", "cache_position")


class _Enough(Exception):
    """Leaves a block after its attention."""

    def __init__(self, output: Any):
        self.output = output


def is_hooked(block: nn.Module, but: int = 0) -> bool:
    """Return whether a layer has more hooks than `but`, the number that are known to do no harm."""
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in block.modules()) > but


def has_halves(layer: Layer, args: tuple[Any, ...], kwargs: dict[str, Any], n_hooks: int = 0) -> bool:
    """Return whether what follows the attention of a layer may be run for some positions only.

    Tensors of unknown meaning among its arguments might be per position, and a hook might read other positions.

    Args:
        layer: The layer.
        args: Its arguments, the hidden states first, unless they are a keyword.
        kwargs: Its keywords.
        n_hooks: How many of its hooks do no harm.
    """
    extra = [*args[1:], *(value for name, value in kwargs.items() if name not in PER_TOKEN)]
    return not any(isinstance(value, Tensor) for value in extra) and not is_hooked(layer.block, but=n_hooks)


def attention_output(layer: Layer, run: Callable[[], Any]) -> Any:
    """Return what the attention module of a layer returns when `run` runs the layer, which is left there."""

    def leave(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        raise _Enough(output)

    handle = layer.attention.register_forward_hook(leave)
    try:
        run()
    except _Enough as enough:
        return enough.output
    finally:
        handle.remove()
    raise AssertionError("the layer did not call its attention")


@contextmanager
def attention_returning(layer: Layer, output: Any) -> Iterator[None]:
    """Make a layer's attention module return `output` inside this context."""
    with returning(layer.attention, lambda *args, **kwargs: output):
        yield


@contextmanager
def returning(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Replace a module's forward function inside this context; hooks on the module are still called."""
    before = module.__dict__.get("forward")  # accelerate sets one where weights are moved between devices
    module.forward = forward
    try:
        yield
    finally:
        if before is None:
            del module.forward
        else:
            module.forward = before


def with_first(output: Any, first: Tensor) -> Any:
    """Return what a module returned with its first tensor replaced."""
    return first if isinstance(output, Tensor) else type(output)((first, *output[1:]))


def at_positions(output: Any, positions: slice) -> Any:
    """Return an attention module's output for some positions only."""
    first = first_tensor(output)
    assert first is not None
    return with_first(output, first[:, positions])


def called(block: Callable[..., Any], hidden: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Return what a block returns for new hidden states among its recorded arguments."""
    if args:
        return block(hidden, *args[1:], **kwargs)
    return block(**{**kwargs, "hidden_states": hidden})
