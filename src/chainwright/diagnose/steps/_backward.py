"""The gradient of a loss, one layer at a time: memory for the inputs of all layers but the activations of only one.

1. One pass without gradients records each layer's arguments.
2. The loss and its gradient with respect to the last layer's output are computed for one range of positions at a time,
   so the logits of a long trace are never in memory together.
3. From the last layer to the first: rerun the layer with gradients, and pull the gradient through it, first through
   what follows the attention, for one range of positions at a time, then through the attention.

This is activation checkpointing with every layer as a segment. The model's own checkpointing is not used, since in
Transformers it only works in training mode.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from chainwright._errors import UnsupportedModel
from chainwright.models._probe import first_tensor, widened
from chainwright.models.anatomy import Anatomy, Layer
from chainwright.models.layer_halves import attention_output, attention_returning, called, has_halves, with_first
from chainwright.models.padding import position_ids
from chainwright.models.residual import unembed
from chainwright.models.seam import STATE_KEY, Handler, Handlers

LOGITS_AT_ONCE = 2**19
TOKENS_IN_REST = 2**8  # that run together through what follows a layer's attention
_LEAST_POSITIONS = 64  # each range costs one pass of one token besides its logits, so ranges are not too small
# how far the output of a rerun layer may be off, relative to the largest number: another kernel rounds differently
_MOST_OFF = {torch.float64: 1e-8, torch.float32: 1e-3}


@dataclass
class LayerCall:
    """The arguments of one layer's call; `hidden` is stored apart from `args` and `kwargs`."""

    hidden: Tensor
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def rerun(self, block: nn.Module, hidden: Tensor, handlers: Handlers) -> Tensor:
        """Return the block's output for new hidden states, with these handlers in force."""
        return states(called(block, hidden, self.args, {**self.kwargs, STATE_KEY: handlers}))


@dataclass(frozen=True)
class Recorded:
    """The layers' calls, and the last layer's output `[N, T, D]`."""

    calls: list[LayerCall]
    output: Tensor


@torch.no_grad()
def record_layers(parts: Anatomy, input_ids: Tensor, mask: Tensor | None) -> Recorded:
    """Return each layer's arguments in one uncached pass; the seam must be open."""
    calls: list[LayerCall] = []
    last: list[Tensor] = []

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        hidden = args[0] if args else kwargs["hidden_states"]
        # a copy, since some layers add to the residual stream in place
        calls.append(LayerCall(hidden.clone(), (None, *args[1:]) if args else (), dict(kwargs)))
        calls[-1].kwargs.pop("hidden_states", None)

    def after(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        hidden = first_tensor(output)
        assert hidden is not None
        last.append(hidden.clone())

    options: dict[str, Any] = {"use_cache": False}
    if mask is not None:
        options |= {"attention_mask": mask, "position_ids": position_ids(mask)}
    with ExitStack() as stack:
        for layer in parts.layers:
            stack.callback(layer.block.register_forward_pre_hook(before, with_kwargs=True).remove)
        stack.callback(parts.layers[-1].block.register_forward_hook(after).remove)
        parts.decoder(input_ids=input_ids, **options)
    return Recorded(calls, last[0])


def loss_gradient(parts: Anatomy, output: Tensor, input_ids: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return the loss of each row `[N]`, and the gradient of their sum with respect to the last layer's output.

    Args:
        parts: Anatomy of the model.
        output: The last layer's output `[N, T, D]`.
        input_ids: `[N, T]`.
        weight: Weight of each token's cross-entropy, `[N, T]`; that of position 0 is ignored.
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
    """Rerun the layers from last to first, each with its handler innermost, and pull the gradient through them.

    Args:
        parts: Anatomy of the model; its parameters should not require gradients (see `models.anatomy.frozen`).
        recorded: The result of `record_layers`; each input is freed once it has been used.
        gradient: Gradient with respect to the last layer's output, `[N, T, D]`.
        handler_of: Returns the handler of a layer.
        attached: Handlers that the caller has attached to the model.
        done: Called with each layer when it is finished.

    Raises:
        UnsupportedModel: A rerun layer does not reproduce its output.
    """
    expected = recorded.output
    for layer in range(parts.n_layers - 1, -1, -1):
        call = recorded.calls.pop()
        handlers = Handlers({layer: (handler_of(layer), *attached.by_layer.get(layer, ()))})
        pulled = _pulled(parts.layers[layer], call, handlers, gradient, expected)
        _check_same(parts, layer, pulled.off, expected)
        gradient, expected = pulled.gradient, call.hidden
        done(layer)


class _Pulled(NamedTuple):
    """The gradient with respect to a layer's input, and the largest difference of its output from what it was."""

    gradient: Tensor
    off: float


def _pulled(layer: Layer, call: LayerCall, handlers: Handlers, gradient: Tensor, expected: Tensor) -> _Pulled:
    """Pull the gradient with respect to a layer's output through the layer."""
    with torch.enable_grad():
        hidden = call.hidden.detach().requires_grad_()
        if has_halves(layer, call.args, call.kwargs):
            attended = attention_output(layer, lambda: call.rerun(layer.block, hidden.clone(), handlers))
            own = first_tensor(attended)
            if own is not None and own.shape == hidden.shape == gradient.shape:
                return _pulled_in_halves(layer, call, attended, hidden, gradient, expected)
        # a copy, since some layers add to the residual stream in place
        output = call.rerun(layer.block, hidden.clone(), handlers)
        off = _difference(output.detach(), expected)
        (gradient,) = torch.autograd.grad(output, hidden, gradient.view_as(output))
    return _Pulled(gradient, off)


def _pulled_in_halves(
    layer: Layer, call: LayerCall, attended: Any, hidden: Tensor, gradient: Tensor, expected: Tensor
) -> _Pulled:
    """Do the same in two halves, the second for some positions at a time: its activations are most of the memory.

    Args:
        layer: The layer.
        call: Its recorded call.
        attended: What its attention module returned, with the graph back to `hidden`.
        hidden: The layer's input `[N, T, D]`.
        gradient: With respect to its output, `[N, T, D]`.
        expected: What its output was.
    """
    own, off = states(attended), 0.0
    to_hidden, to_own = torch.empty_like(gradient), torch.empty_like(gradient)
    n_positions = max(1, TOKENS_IN_REST // len(hidden))
    for start in range(0, hidden.shape[1], n_positions):
        here = slice(start, start + n_positions)
        given, read = (t[:, here].detach().requires_grad_() for t in (hidden, own))
        with attention_returning(layer, with_first(attended, read)):
            output = call.rerun(layer.block, given.clone(), Handlers({}))
        off = max(off, _difference(output.detach(), expected[:, here]))
        to_hidden[:, here], to_own[:, here] = torch.autograd.grad(output, (given, read), gradient[:, here])
    # the lowest layer's attention gives no gradient, since nothing below it needs one
    (through,) = torch.autograd.grad(own, hidden, to_own, allow_unused=True) if own.requires_grad else (None,)
    return _Pulled(to_hidden if through is None else to_hidden.add_(through), off)


def states(output: Any) -> Tensor:
    """Return the hidden states that a block or an attention module returned."""
    hidden = first_tensor(output)
    assert hidden is not None
    return hidden


def _difference(again: Tensor, expected: Tensor) -> float:
    return float((again.view_as(expected) - expected).abs().max())


def _check_same(parts: Anatomy, layer: int, difference: float, expected: Tensor) -> None:
    off = difference / max(1e-6, float(expected.abs().max()))
    if not off <= _MOST_OFF.get(expected.dtype, 0.1):
        raise UnsupportedModel(
            f"Layer {layer} of this {parts.model.config.model_type} model, rerun by itself, is off by a share of "
            f"{off:.2g} of its output (its layers share more than the residual stream, or it is random), so the "
            "gradient cannot be computed layer by layer."
        )
