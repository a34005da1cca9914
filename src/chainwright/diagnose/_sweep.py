"""Running the model once more for many single-head knockouts, without repeating what they share.

The exact forms return the same numbers as one full forward pass a head:

- all positions: up to layer l nothing changes, so layers l..L are run from the stored input of layer l, with
  the heads of that layer side by side in the batch, and only the last position is unembedded;
- last position: the prefix does not change at all, so its cache is filled once and every variant is one
  decode step.

Edits that are attached from outside stay in force. As they may treat rows differently, the rows then keep
their places: one head is silenced in all of them at a time.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from chainwright._errors import UnsupportedModel
from chainwright.edits import KnockOut, Touched, edit
from chainwright.models.anatomy import Anatomy, first_tensor
from chainwright.models.capture import Positions, forward, position_ids
from chainwright.models.residual import unembed
from chainwright.models.seam import STATE_KEY, Handlers, SeamHook, attach, widened

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
    """Left-padded contexts `[N, T]`, their mask, and the tokens to track at the position after them `[N, K]`."""

    input_ids: Tensor
    mask: Tensor
    tracked: Tensor


class _Found(NamedTuple):
    """Logits `[R, V]` at the last position, and which (row, layer, head) each is for, `[R, 3]`."""

    where: Tensor
    logits: Tensor


def knock_out_each(parts: Anatomy, contexts: Contexts, wanted: Tensor, positions: Positions) -> Knocked:
    """Return the effect of silencing each wanted head alone.

    Args:
        parts: Anatomy of the model.
        contexts: What to run.
        wanted: Which heads to run for which row, bool `[N, L, H]`.
        positions: Where to silence them.

    Raises:
        UnsupportedModel: The layers, run one by one, do not give what the model gives.
    """
    n_rows, n_tracked = contexts.tracked.shape
    shape = (n_rows, parts.n_layers, parts.n_heads)
    dtype = torch.promote_types(parts.model.dtype, torch.float32)
    probs, argmax = torch.full((*shape, n_tracked), float("nan"), dtype=dtype), torch.full(shape, -1)
    is_cached = positions == "last" and contexts.input_ids.shape[1] > 1 and not _is_edited(parts)
    run = _last_position if is_cached else partial(_from_layer, positions=positions)
    with torch.no_grad():
        for where, logits in run(parts, contexts, wanted.cpu()):
            tracked = contexts.tracked[where[:, 0].to(contexts.tracked.device)]
            probs[tuple(where.T)] = logits.softmax(-1).gather(-1, tracked).cpu()
            argmax[tuple(where.T)] = logits.argmax(-1).cpu()
    return Knocked(probs, argmax)


def _is_edited(parts: Anatomy) -> bool:
    """Say whether something is attached to the model from outside."""
    hooks = parts.model.base_model._forward_pre_hooks.values()
    return any(isinstance(hook, SeamHook) and hook.handlers.by_layer for hook in hooks)


@dataclass
class _LayerCall:
    """What one layer was called with in the plain pass."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


class _Plain(NamedTuple):
    """The plain pass: each layer's call, and the logits at the last position `[N, V]`."""

    calls: list[_LayerCall]
    logits: Tensor


class _Variants(NamedTuple):
    """Which rows to run again from a layer on, and what to silence there.

    Attributes:
        pairs: (row, head) `[R, 2]`; head -1 silences nothing.
        n_rows: Rows of the plain pass.
    """

    layer: int
    pairs: Tensor
    positions: Positions
    n_rows: int


def _from_layer(parts: Anatomy, contexts: Contexts, wanted: Tensor, positions: Positions) -> Iterator[_Found]:
    n_rows, n_tokens = contexts.input_ids.shape
    at_once = max(1, _BYTES_AT_ONCE // (n_tokens * parts.d_model * 4 * 8))
    with attach(parts.model, Handlers({})):
        plain = _record(parts, contexts)
        _check_replay(parts, plain, n_rows)
        for layer in range(parts.n_layers):
            for chunk in _chunks(wanted[:, layer], at_once, in_rows=_is_edited(parts)):
                hidden = _rerun(parts, plain.calls, _Variants(layer, chunk, positions, n_rows))
                logits = unembed(parts, parts.final_norm(hidden[:, -1]))
                where = torch.stack([chunk[:, 0], torch.full_like(chunk[:, 0], layer), chunk[:, 1]], dim=1)
                asked = wanted[tuple(where.T)]
                yield _Found(where[asked], logits[asked.to(logits.device)])


def _chunks(wanted: Tensor, at_once: int, *, in_rows: bool) -> Iterator[Tensor]:
    """Yield (row, head) pairs `[R, 2]` that cover `wanted` `[N, H]`; `in_rows`: each row once, in order."""
    if not in_rows:
        pairs = wanted.nonzero()
        yield from (pairs[i : i + at_once] for i in range(0, len(pairs), at_once))
        return
    rows = torch.arange(len(wanted))
    for head in wanted.any(0).nonzero()[:, 0]:
        yield torch.stack([rows, head.expand_as(rows)], dim=1)


def _record(parts: Anatomy, contexts: Contexts) -> _Plain:
    calls: list[_LayerCall] = []

    def record(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        # copies of the hidden states, since some layers go on in place
        own = {name: value.clone() for name, value in kwargs.items() if name == "hidden_states"}
        calls.append(_LayerCall((*(value.clone() for value in args[:1]), *args[1:]), {**kwargs, **own}))

    with ExitStack() as stack:
        for layer in parts.layers:
            stack.callback(layer.block.register_forward_pre_hook(record, with_kwargs=True).remove)
        logits = forward(parts, contexts.input_ids, contexts.mask, last_only=True)
    return _Plain(calls, widened(logits[:, -1]))


def _check_replay(parts: Anatomy, plain: _Plain, n_rows: int) -> None:
    """Check on the first row that the layers called one by one do what the model did."""
    n_rerun = n_rows if _is_edited(parts) else 1
    every = torch.stack([torch.arange(n_rerun), torch.full((n_rerun,), -1)], dim=1)
    hidden = _rerun(parts, plain.calls, _Variants(0, every, "all", n_rows))
    again = unembed(parts, parts.final_norm(hidden[:, -1]))[0].log_softmax(-1)
    off = (again - plain.logits[0].log_softmax(-1)).abs().max()
    room = 1e-2 if parts.model.dtype in (torch.float32, torch.float64) else 0.5
    if not float(off) <= room:
        raise UnsupportedModel(
            f"The layers of this {parts.model.config.model_type} model, called one by one, differ from the whole by "
            f"{float(off):.3g} nats, so single knockouts cannot share what they have in common; use "
            "method='gradient', or positions='last'."
        )


def _rerun(parts: Anatomy, calls: list[_LayerCall], variants: _Variants) -> Tensor:
    """Return the last layer's output with each variant's head silenced, one variant a row."""
    layer, rows = variants.layer, variants.pairs[:, 0]
    heads = [{(layer, int(head))} if head >= 0 else set() for head in variants.pairs[:, 1]]
    handlers = KnockOut(heads, variants.positions).handlers(parts, Touched())
    own = Handlers({at: (handler,) for at, handler in handlers.items()})
    hidden: Tensor | None = None
    for at in range(layer, parts.n_layers):
        args, kwargs = _for_rows(calls[at], rows, variants.n_rows, hidden)
        inherited: Handlers = kwargs[STATE_KEY]
        kwargs[STATE_KEY] = inherited.joined(own) if at == layer else inherited
        hidden = first_tensor(parts.layers[at].block(*args, **kwargs))
    assert hidden is not None
    return hidden


def _for_rows(
    call: _LayerCall, rows: Tensor, n_rows: int, hidden: Tensor | None
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return a layer's arguments for the given rows of the batch, with new hidden states if there are some."""

    def pick(value: Any, name: str = "") -> Any:
        if isinstance(value, tuple):
            return tuple(pick(v) for v in value)
        per_row = isinstance(value, Tensor) and n_rows > 1 and len(value) == n_rows
        if per_row and (value.dim() > 2 or name in ("position_ids", "attention_mask")):
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
    return hidden.repeat(n, 1, 1) if len(hidden) == 1 else hidden


def _last_position(parts: Anatomy, contexts: Contexts, wanted: Tensor) -> Iterator[_Found]:
    ids, mask = contexts.input_ids, contexts.mask
    positions = position_ids(mask)
    for row in range(len(ids)):
        # a row at a time and without its padding: the prefix then needs no mask
        start = int((mask[row] == 0).sum())
        yield from _decode_variants(parts, ids[row, start:], positions[row, start:], wanted[row], row)


def _decode_variants(parts: Anatomy, ids: Tensor, positions: Tensor, wanted: Tensor, row: int) -> Iterator[_Found]:
    heads = wanted.nonzero()  # (layer, head)
    if not len(heads):
        return
    prefix = None
    if len(ids) > 1:
        output = parts.model(
            input_ids=ids[None, :-1], position_ids=positions[None, :-1], use_cache=True, logits_to_keep=1
        )
        prefix = output.past_key_values
    per_variant = len(ids) * parts.n_layers * parts.n_kv_heads * parts.d_head * 4 * 4
    at_once = max(1, _BYTES_AT_ONCE // per_variant)
    for start in range(0, len(heads), at_once):
        chunk = heads[start : start + at_once]
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
        yield _Found(torch.cat([torch.full((n, 1), row), chunk], dim=1), widened(logits[:, -1]))
