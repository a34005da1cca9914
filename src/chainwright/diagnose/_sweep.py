"""Running the model once more for many single-head knockouts, without repeating what they share.

The exact forms return the same numbers as one full forward pass a head:

- all positions: up to layer l nothing changes, so layers l..L are run from the stored input of layer l, with the heads
  of that layer side by side in the batch, and only the last position is unembedded;
- last position: the prefix does not change at all, so its cache is filled once and every variant is one decode step.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from chainwright.edits import KnockOut, Touched, edit
from chainwright.models.anatomy import Anatomy, first_tensor
from chainwright.models.capture import Positions, forward, position_ids
from chainwright.models.residual import unembed
from chainwright.models.seam import STATE_KEY, Handlers, attach

_BYTES_AT_ONCE = 2**28


class Knocked(NamedTuple):
    """What the last position says after each knockout.

    Attributes:
        probs: Probability of the tracked tokens `[N, L, H, K]`; NaN where a head was not run.
        argmax: The likeliest token `[N, L, H]`; -1 where a head was not run.
    """

    probs: Tensor
    argmax: Tensor


class Contexts(NamedTuple):
    """Left-padded contexts and the tokens to track at the position after them, `[N, T]`, `[N, T]`, `[N, K]`."""

    input_ids: Tensor
    mask: Tensor
    tracked: Tensor


def knock_out_each(parts: Anatomy, contexts: Contexts, wanted: Tensor, positions: Positions) -> Knocked:
    """Return the effect of silencing each wanted head alone.

    Args:
        parts: Anatomy of the model.
        contexts: What to run.
        wanted: Which heads to run for which row, bool `[N, L, H]`.
        positions: Where to silence them.
    """
    n_rows, n_tracked = contexts.tracked.shape
    shape = (n_rows, parts.n_layers, parts.n_heads)
    found = Knocked(torch.full((*shape, n_tracked), float("nan")), torch.full(shape, -1))
    at_last_only = positions == "last" and contexts.input_ids.shape[1] > 1
    run = _last_position if at_last_only else _all_positions
    with torch.no_grad():
        for where, logits in run(parts, contexts, wanted.cpu()):
            tracked = contexts.tracked[where[:, 0].to(contexts.tracked.device)]
            found.probs[tuple(where.T)] = logits.softmax(-1).gather(-1, tracked).cpu()
            found.argmax[tuple(where.T)] = logits.argmax(-1).cpu()
    return found


@dataclass
class _LayerCall:
    """What one layer was called with in the plain pass."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


def _all_positions(parts: Anatomy, contexts: Contexts, wanted: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    calls = _record_calls(parts, contexts)
    per_row = contexts.input_ids.shape[1] * parts.d_model * 4 * 8
    at_once = max(1, _BYTES_AT_ONCE // per_row)
    with attach(parts.model, Handlers({})):
        for layer in range(parts.n_layers):
            pairs = wanted[:, layer].nonzero()  # (row, head)
            for chunk in pairs.split(at_once) if len(pairs) else ():
                hidden = _rerun(parts, calls, layer, chunk, len(contexts.input_ids))
                where = torch.stack([chunk[:, 0], torch.full_like(chunk[:, 0], layer), chunk[:, 1]], dim=1)
                yield where, unembed(parts, parts.final_norm(hidden[:, -1]))


def _record_calls(parts: Anatomy, contexts: Contexts) -> list[_LayerCall]:
    calls: list[_LayerCall] = []

    def record(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        calls.append(_LayerCall(args, kwargs))

    with ExitStack() as stack:
        stack.enter_context(attach(parts.model, Handlers({})))
        for layer in parts.layers:
            stack.callback(layer.block.register_forward_pre_hook(record, with_kwargs=True).remove)
        forward(parts, contexts.input_ids, contexts.mask, last_only=True)
    return calls


def _rerun(parts: Anatomy, calls: list[_LayerCall], layer: int, chunk: Tensor, n_rows: int) -> Tensor:
    """Return the last layer's output with `chunk`'s heads of `layer` silenced, one variant a row."""
    rows = chunk[:, 0]
    silence = KnockOut([{(layer, int(head))} for head in chunk[:, 1]])
    handlers = silence.handlers(parts, Touched())
    own = Handlers({at: (handler,) for at, handler in handlers.items()})
    hidden: Tensor | None = None
    for at in range(layer, parts.n_layers):
        args, kwargs = _for_rows(calls[at], rows, n_rows, hidden)
        inherited: Handlers = kwargs[STATE_KEY]
        kwargs[STATE_KEY] = inherited.joined(own) if at == layer else inherited
        hidden = first_tensor(parts.layers[at].block(*args, **kwargs))
    assert hidden is not None
    return hidden


def _for_rows(
    call: _LayerCall, rows: Tensor, n_rows: int, hidden: Tensor | None
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return a layer's arguments for the given rows of the batch, the hidden states replaced if there are new ones."""

    def pick(value: Any, name: str = "") -> Any:
        if isinstance(value, tuple):
            return tuple(pick(v) for v in value)
        per_row = isinstance(value, Tensor) and n_rows > 1 and len(value) == n_rows
        if per_row and (value.dim() > 2 or name == "position_ids"):
            return value[rows.to(value.device)]
        return value

    args = tuple(pick(value) for value in call.args)
    kwargs = {name: pick(value, name) for name, value in call.kwargs.items()}
    if args:
        first = args[0] if hidden is None else hidden
        return (_as_rows(first, len(rows)), *args[1:]), kwargs
    given = kwargs["hidden_states"] if hidden is None else hidden
    return args, {**kwargs, "hidden_states": _as_rows(given, len(rows))}


def _as_rows(hidden: Tensor, n: int) -> Tensor:
    return hidden.expand(n, -1, -1) if len(hidden) == 1 else hidden


def _last_position(parts: Anatomy, contexts: Contexts, wanted: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    ids, mask = contexts.input_ids, contexts.mask
    positions = position_ids(mask)
    for row in range(len(ids)):
        # a row at a time and without its padding: the prefix is then free of masks, and rows differ in length anyway
        start = int((mask[row] == 0).sum())
        yield from _decode_variants(parts, ids[row, start:], positions[row, start:], wanted[row], row)


def _decode_variants(
    parts: Anatomy, ids: Tensor, positions: Tensor, wanted: Tensor, row: int
) -> Iterator[tuple[Tensor, Tensor]]:
    heads = wanted.nonzero()  # (layer, head)
    if not len(heads):
        return
    prefix = None
    if len(ids) > 1:
        output = parts.model(input_ids=ids[None, :-1], position_ids=positions[None, :-1], use_cache=True, logits_to_keep=1)
        prefix = output.past_key_values
    per_variant = len(ids) * parts.n_layers * parts.n_kv_heads * parts.d_head * 4 * 4
    for chunk in heads.split(max(1, _BYTES_AT_ONCE // per_variant)):
        n = len(chunk)
        cache = copy.deepcopy(prefix)
        if cache is not None:
            cache.batch_repeat_interleave(n)
        with edit(parts.model, KnockOut([{(int(layer), int(head))} for layer, head in chunk])):
            logits = parts.model(
                input_ids=ids[None, -1:].expand(n, 1),
                position_ids=positions[None, -1:].expand(n, 1),
                past_key_values=cache,
                use_cache=cache is not None,
            ).logits
        where = torch.cat([torch.full((n, 1), row), chunk], dim=1)
        yield where, logits[:, -1].float()
