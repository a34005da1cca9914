"""The gradient of a loss, one layer at a time: memory for the inputs of all layers and the insides of one.

1. One pass without gradients keeps what each layer was called with.
2. The loss and its gradient by the last layer's output are made a stretch of positions at a time, so that the logits
   of a long trace never stand in memory together.
3. From the last layer to the first: run the layer again, with gradients, and pull the gradient through it.

This is activation checkpointing with every layer a segment, without the model's own switch for it, which in
Transformers only works in training mode.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from chainwright._errors import UnsupportedModel
from chainwright.models._probe import first_tensor
from chainwright.models.anatomy import Anatomy
from chainwright.models.padding import position_ids
from chainwright.models.residual import unembed
from chainwright.models.seam import STATE_KEY, Handler, Handlers, widened

LOGITS_AT_ONCE = 2**19
_LEAST_POSITIONS = 64  # a stretch costs one pass of one token besides its logits
# how far a layer that is run again may be off, of the largest number; sums in another order differ by rounding
_MOST_OFF = {torch.float64: 1e-8, torch.float32: 1e-3}


@dataclass
class LayerCall:
    """What one layer was called with; `hidden` is taken out of `args` and `kwargs`."""

    hidden: Tensor
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def again(self, block: nn.Module, hidden: Tensor, handlers: Handlers) -> Tensor:
        """Return the block's output for other hidden states, with these handlers in force."""
        kwargs = {**self.kwargs, STATE_KEY: handlers}
        if self.args:
            output = first_tensor(block(hidden, *self.args[1:], **kwargs))
        else:
            output = first_tensor(block(**{**kwargs, "hidden_states": hidden}))
        assert output is not None
        return output


@dataclass(frozen=True)
class Recorded:
    """The layers' calls, and the last layer's output `[N, T, D]`."""

    calls: list[LayerCall]
    output: Tensor


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Let no parameter ask for gradients, and each ask again as it did."""
    asking = [p for p in model.parameters() if p.requires_grad]
    try:
        for parameter in asking:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in asking:
            parameter.requires_grad_(True)


@torch.no_grad()
def record_layers(parts: Anatomy, input_ids: Tensor, mask: Tensor | None) -> Recorded:
    """Return what each layer is called with in one uncached pass; the seam must be open."""
    calls: list[LayerCall] = []
    last: list[Tensor] = []

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        hidden = args[0] if args else kwargs["hidden_states"]
        # a copy, since some layers go on in place
        calls.append(LayerCall(hidden.clone(), (None, *args[1:]) if args else (), dict(kwargs)))
        calls[-1].kwargs.pop("hidden_states", None)

    def after(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        found = first_tensor(output)
        assert found is not None
        last.append(found.clone())

    options: dict[str, Any] = {"use_cache": False}
    if mask is not None:
        options |= {"attention_mask": mask, "position_ids": position_ids(mask)}
    with ExitStack() as stack:
        for layer in parts.layers:
            stack.callback(layer.block.register_forward_pre_hook(before, with_kwargs=True).remove)
        stack.callback(parts.layers[-1].block.register_forward_hook(after).remove)
        parts.model.base_model(input_ids=input_ids, **options)
    return Recorded(calls, last[0])


def loss_gradient(parts: Anatomy, output: Tensor, input_ids: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return the loss of each row `[N]`, and the gradient of their sum by the last layer's output.

    Args:
        parts: Anatomy of the model.
        output: The last layer's output `[N, T, D]`.
        input_ids: `[N, T]`.
        weight: How much the cross-entropy of each token counts, `[N, T]`; position 0 counts nothing.
    """
    n_rows, n_tokens, d_model = output.shape
    gradient = torch.zeros_like(output)
    losses = torch.zeros(n_rows, dtype=torch.float64)
    step = max(_LEAST_POSITIONS, LOGITS_AT_ONCE // (parts.d_vocab * n_rows))
    for start in range(0, n_tokens - 1, step):
        here = slice(start, min(start + step, n_tokens - 1))
        after = slice(here.start + 1, here.stop + 1)
        if not bool(weight[:, after].any()):
            continue
        with torch.enable_grad():
            hidden = output[:, here].detach().requires_grad_()
            logits = unembed(parts, parts.final_norm(hidden).reshape(-1, d_model))
            surprise = nn.functional.cross_entropy(logits, input_ids[:, after].flatten(), reduction="none")
            loss = (widened(surprise) * weight[:, after].flatten()).view(n_rows, -1).sum(1)
            (gradient[:, here],) = torch.autograd.grad(loss.sum(), hidden)
        losses += loss.detach().double().cpu()
    return losses, gradient


def pull_back(
    parts: Anatomy,
    recorded: Recorded,
    gradient: Tensor,
    handler_of: Callable[[int], Handler],
    attached: Handlers,
    done: Callable[[int], None],
) -> None:
    """Run the layers again from last to first, each with its handler innermost, and pull the gradient through.

    Args:
        parts: Anatomy of the model; its parameters should not ask for gradients (`frozen`).
        recorded: What `record_layers` returned; the inputs are dropped as they are used.
        gradient: By the last layer's output, `[N, T, D]`.
        handler_of: The handler of a layer.
        attached: What is attached to the model besides.
        done: Called with each layer when it is finished.

    Raises:
        UnsupportedModel: A layer, run again, does not give what it gave.
    """
    expected = recorded.output
    for layer in range(parts.n_layers - 1, -1, -1):
        call = recorded.calls.pop()
        handlers = Handlers({layer: (handler_of(layer), *attached.by_layer.get(layer, ()))})
        with torch.enable_grad():
            hidden = call.hidden.detach().requires_grad_()
            # a copy, since some layers go on in place
            output = call.again(parts.layers[layer].block, hidden.clone(), handlers)
            _check_same(parts, layer, output.detach(), expected)
            (gradient,) = torch.autograd.grad(output, hidden, gradient.view_as(output))
        expected = call.hidden
        done(layer)


def _check_same(parts: Anatomy, layer: int, again: Tensor, expected: Tensor) -> None:
    off = float((again.view_as(expected) - expected).abs().max()) / max(1e-6, float(expected.abs().max()))
    if not off <= _MOST_OFF.get(expected.dtype, 0.1):
        raise UnsupportedModel(
            f"Layer {layer} of this {parts.model.config.model_type} model, run again by itself, is off by {off:.2g} of "
            "what it gave (its layers share more than the residual stream, or something changes it at random), so the "
            "gradient cannot be taken layer by layer."
        )
