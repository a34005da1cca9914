"""The plain pass of a sweep: what every layer was called with, and what its heads gave.

What the single knockouts have in common is read here once: the arguments of each layer, the heads' outputs (for
knockouts at all positions) or the keys and values (for knockouts at the last one), and the logits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from chainwright.models.anatomy import Anatomy, Layer
from chainwright.models.capture import forward
from chainwright.models.seam import STATE_KEY, Attend, AttentionCall, Handlers, SeamHook, attach, widened

PER_TOKEN = ("hidden_states", "attention_mask", "position_ids", "position_embeddings", "cache_position")
# total variation between the model and its layers one by one that is still rounding; half precision allows more
_MOST_OFF = {torch.float32: 1e-3, torch.float64: 1e-3}
_MOST_OFF_HALF = 0.25
# rows whose lengths differ by less than this share go together
_SHORTEST = 0.9


class Contexts(NamedTuple):
    """Left-padded contexts `[N, T]`, their mask, and the tokens to track at the position after them `[N, K]`."""

    input_ids: Tensor
    mask: Tensor
    tracked: Tensor


class Found(NamedTuple):
    """Logits `[R, V]` at the last position, which (row, layer, head) each is for `[R, 3]`; head -1: none is out."""

    where: Tensor
    logits: Tensor


class Group(NamedTuple):
    """Rows of about one length, without the padding that they share, and their places among all rows."""

    rows: Tensor
    contexts: Contexts


@dataclass
class LayerCall:
    """What one layer was called with in the plain pass, and what its attention was given and gave.

    Attributes:
        args: Positional arguments; the hidden states, wherever they stand, are of the last position alone where keys
            and values were kept.
        z: Head outputs before the output projection `[N, T, H, d]`.
        attn_output: What the attention module returned.
        seen: The attention's call, where keys and values were to be kept.
        mid_readers: The linear modules that were given what the norm in front of the MLP returned.
        is_positionwise: Nothing that the layer was given is per position but what its attention alone reads, so
            that the rest of it can be run for the last position only.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    z: Tensor = field(default_factory=lambda: torch.empty(0))
    attn_output: Any = None
    seen: AttentionCall | None = None
    mid_readers: list[nn.Module] = field(default_factory=list)
    is_positionwise: bool = False

    @property
    def hidden(self) -> Tensor:
        """Return the layer's input."""
        hidden: Tensor = self.args[0] if self.args else self.kwargs["hidden_states"]
        return hidden


class Plain(NamedTuple):
    """The plain pass: each layer's call, and the logits at the last position `[N, V]`."""

    calls: list[LayerCall]
    logits: Tensor


def attached(parts: Anatomy) -> Handlers:
    """Return what is attached to the model from outside."""
    hooks = parts.model.base_model._forward_pre_hooks.values()
    return next((hook.handlers for hook in hooks if isinstance(hook, SeamHook)), Handlers({}))


def is_edited(parts: Anatomy) -> bool:
    """Say whether something is attached to the model from outside."""
    return bool(attached(parts).by_layer)


def groups(contexts: Contexts, max_tokens: int) -> Iterator[Group]:
    """Yield rows of about equal length, longest first, at most `max_tokens` tokens together (or one row)."""
    lengths = contexts.mask.sum(-1).cpu()
    order = lengths.argsort(descending=True, stable=True).tolist()
    n_tokens = contexts.input_ids.shape[1]
    while order:
        longest = int(lengths[order[0]])
        n = max(1, max_tokens // longest)
        rows = [row for row in order[:n] if int(lengths[row]) >= _SHORTEST * longest]
        order = order[len(rows) :]
        at = torch.tensor(sorted(rows))
        own = at.to(contexts.input_ids.device)
        start = n_tokens - longest
        cut = Contexts(contexts.input_ids[own, start:], contexts.mask[own, start:], contexts.tracked[own])
        yield Group(at, cut)


def record(parts: Anatomy, contexts: Contexts, outside: Handlers, *, keys: bool = False) -> Plain:
    """Run the model once and keep each layer's call: with what its heads gave, or with keys and values.

    `outside` is what was attached before the sweep began, and is to be in force when a layer is run again.
    """
    calls: list[LayerCall] = []
    options: dict[int, dict[str, Any]] = {}

    def kept(hidden: Tensor) -> Tensor:
        # a copy, since some layers go on in place
        return (hidden[:, -1:] if keys else hidden).detach().clone()

    def read_call(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        own = {name: kept(value) for name, value in kwargs.items() if name == "hidden_states"}
        calls.append(LayerCall((*(kept(value) for value in args[:1]), *args[1:]), {**kwargs, **own}))

    def read_heads(call: AttentionCall, attend: Attend) -> Tensor:
        z = attend(call)
        options[call.layer] = call.options
        if keys:
            k, v = call.k.detach(), call.v.detach()
            calls[-1].seen = replace(call, q=call.q[:, :, :0].detach(), k=k, v=v)
        else:
            calls[-1].z = z.detach().clone()
        return z

    def read_output(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        calls[-1].attn_output = _detached(output)

    with ExitStack() as stack:
        stack.enter_context(attach(parts.model, Handlers({i: (read_heads,) for i in range(parts.n_layers)})))
        for layer in parts.layers:
            stack.callback(layer.block.register_forward_pre_hook(read_call, with_kwargs=True).remove)
            if not keys:
                # the first of the hooks, so that what others change is not taken for the module's own
                stack.callback(layer.attention.register_forward_hook(read_output, prepend=True).remove)
                stack.enter_context(_watching_readers(layer, calls))
        logits = forward(parts, contexts.input_ids, contexts.mask, last_only=True)
    for i, call in enumerate(calls):  # they were recorded with the readers among their handlers
        call.kwargs[STATE_KEY] = outside
        call.is_positionwise = not outside.by_layer and _is_positionwise(parts, i, call, options[i])
    return Plain(calls, widened(logits[:, -1]))


@contextmanager
def _watching_readers(layer: Layer, calls: list[LayerCall]) -> Iterator[None]:
    """Note in the current call which linear modules are given what the norm in front of the MLP returns."""
    linear = [m for m in layer.block.modules() if type(m) in (nn.Linear, Conv1D) and "forward" not in m.__dict__]
    if layer.mid_reader is None or is_hooked(layer.block, but=2):
        yield
        return
    normed: list[Tensor] = []

    def read_norm(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        normed[:] = [output] if isinstance(output, Tensor) else []

    def compare(module: nn.Module, args: tuple[Any, ...]) -> None:
        # the norm's output is held here, so that nothing else can have got its place in memory
        given = args[0] if args else None
        if normed and isinstance(given, Tensor) and _is_view(given, normed[0]):
            calls[-1].mid_readers.append(module)

    def forget(*_: Any) -> None:
        normed.clear()

    with ExitStack() as stack:
        stack.callback(layer.mid_reader.register_forward_hook(read_norm).remove)
        stack.callback(layer.block.register_forward_hook(forget).remove)
        for module in linear:
            stack.callback(module.register_forward_pre_hook(compare).remove)
        yield


def _detached(output: Any) -> Any:
    if isinstance(output, Tensor):
        return output.detach()
    return type(output)(_detached(one) for one in output) if type(output) in (tuple, list) else output


def _is_view(tensor: Tensor, of: Tensor) -> bool:
    return (
        tensor.data_ptr() == of.data_ptr()
        and tensor.numel() == of.numel()
        and tensor.shape[-1] == of.shape[-1]
        and tensor.is_contiguous() == of.is_contiguous()
    )


def is_hooked(block: nn.Module, but: int = 0) -> bool:
    """Say whether more hooks are on a layer than the given number, which are our own."""
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in block.modules()) > but


def _is_positionwise(parts: Anatomy, layer: int, call: LayerCall, options: dict[str, Any]) -> bool:
    extra = [*call.args[1:], *(value for name, value in call.kwargs.items() if name not in PER_TOKEN)]
    per_query = any(isinstance(value, Tensor) and value.dim() > 2 for value in options.values())
    return not (is_hooked(parts.layers[layer].block) or per_query or any(isinstance(value, Tensor) for value in extra))


@contextmanager
def returning(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Let a module return what `forward` does; hooks on it are still called."""
    before = module.__dict__.get("forward")  # there is one where weights are moved between devices
    module.forward = forward
    try:
        yield
    finally:
        if before is None:
            del module.forward
        else:
            module.forward = before


def total_variation(logits: Tensor, plain: Tensor) -> float:
    """Return how much probability stands elsewhere than in the plain pass, in the worst row."""
    return float((logits.softmax(-1) - plain.softmax(-1)).abs().sum(-1).max()) / 2


def most_off(parts: Anatomy) -> float:
    """Return how much probability rounding may move."""
    return _MOST_OFF.get(parts.model.dtype, _MOST_OFF_HALF)


def for_rows(
    call: LayerCall, rows: Tensor, n_rows: int, hidden: Tensor | None
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return a layer's arguments for the given rows of the batch, with new hidden states if there are some."""
    is_whole = len(rows) == n_rows and bool((rows == torch.arange(n_rows)).all())

    def pick(value: Any, name: str = "") -> Any:
        if isinstance(value, tuple):
            return tuple(pick(v) for v in value)
        per_row = isinstance(value, Tensor) and n_rows > 1 and len(value) == n_rows and not is_whole
        if per_row and (value.dim() > 2 or name in ("position_ids", "attention_mask")):
            return value[rows.to(value.device)]
        return value

    given = pick(call.hidden, "hidden_states") if hidden is None else hidden
    given = given.repeat(len(rows), 1, 1) if len(given) == 1 else given
    kwargs = {name: pick(value, name) for name, value in call.kwargs.items() if name != "hidden_states"}
    if call.args:
        return (given, *(pick(value) for value in call.args[1:])), kwargs
    return (), {**kwargs, "hidden_states": given}
