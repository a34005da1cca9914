"""Running the model once more for many single-head knockouts, without repeating what they share.

The exact forms return the same numbers as one full forward pass a head:

- all positions: up to layer l nothing changes, and in layer l all heads but one do not, so that layer goes on from
  the stored z, and the layers after it follow with several variants side by side in the batch. Of the last layer
  only the last query, and what comes after it, is needed; only that position is unembedded;
- last position: the prefix does not change at all, so its cache is filled once, is shared by all variants, and every
  variant is one decode step.

Edits that are attached from outside stay in force. As they may treat rows differently, the rows then keep
their places: one head is silenced in all of them at a time.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from chainwright._errors import UnsupportedModel
from chainwright.edits import KnockOut, edit
from chainwright.models.anatomy import Anatomy, Layer, first_tensor
from chainwright.models.capture import Positions, forward, position_ids
from chainwright.models.residual import unembed
from chainwright.models.seam import STATE_KEY, Attend, AttentionCall, Handlers, SeamHook, attach, widened

# a layer's tensors should stay in a processor's caches; a GPU wants large batches
_BYTES_AT_ONCE = {"cpu": 2**24, "other": 2**30}
_PER_TOKEN = ("hidden_states", "attention_mask", "position_ids", "position_embeddings", "cache_position")
# total variation between the model and its layers one by one that is still rounding; half precision allows more
_MOST_OFF = {torch.float32: 1e-3, torch.float64: 1e-3}


class Knocked(NamedTuple):
    """What the last position says after each knockout.

    Attributes:
        baseline: Probability of the tracked tokens with every head in place `[N, K]`.
        probs: Probability of the tracked tokens `[N, L, H, K]`; NaN where a head was not run.
        argmax: The likeliest token `[N, L, H]`; -1 where a head was not run.
    """

    baseline: Tensor
    probs: Tensor
    argmax: Tensor


class Contexts(NamedTuple):
    """Left-padded contexts `[N, T]`, their mask, and the tokens to track at the position after them `[N, K]`."""

    input_ids: Tensor
    mask: Tensor
    tracked: Tensor


class _Found(NamedTuple):
    """Logits `[R, V]` at the last position, which (row, layer, head) each is for `[R, 3]`; head -1: none is out."""

    where: Tensor
    logits: Tensor


def knock_out_each(
    parts: Anatomy, contexts: Contexts, wanted: Tensor, positions: Positions, max_bytes: int | None = None
) -> Knocked:
    """Return the effect of silencing each wanted head alone.

    Args:
        parts: Anatomy of the model.
        contexts: What to run.
        wanted: Which heads to run for which row, bool `[N, L, H]`.
        positions: Where to silence them.
        max_bytes: How much memory the variants that run side by side may take, roughly; None chooses by device.

    Raises:
        UnsupportedModel: The layers, run one by one, do not give what the model gives.
    """
    n_rows, n_tracked = contexts.tracked.shape
    shape = (n_rows, parts.n_layers, parts.n_heads)
    dtype = torch.promote_types(parts.model.dtype, torch.float32)
    baseline = torch.full((n_rows, n_tracked), float("nan"), dtype=dtype)
    probs, argmax = torch.full((*shape, n_tracked), float("nan"), dtype=dtype), torch.full(shape, -1)
    is_cached = positions == "last" and contexts.input_ids.shape[1] > 1 and not _is_edited(parts)
    run = _last_position if is_cached else partial(_from_layer, positions=positions)
    kind = "cpu" if parts.model.device.type == "cpu" else "other"
    with torch.no_grad():
        for where, logits in run(parts, contexts, wanted.cpu(), max_bytes or _BYTES_AT_ONCE[kind]):
            tracked = contexts.tracked[where[:, 0].to(contexts.tracked.device)]
            found = logits.softmax(-1).gather(-1, tracked).cpu()
            is_out = where[:, 2] >= 0
            probs[tuple(where[is_out].T)] = found[is_out]
            argmax[tuple(where[is_out].T)] = logits.argmax(-1).cpu()[is_out]
            baseline[where[~is_out, 0]] = found[~is_out]
    return Knocked(baseline, probs, argmax)


def _attached(parts: Anatomy) -> Handlers:
    """Return what is attached to the model from outside."""
    hooks = parts.model.base_model._forward_pre_hooks.values()
    return next((hook.handlers for hook in hooks if isinstance(hook, SeamHook)), Handlers({}))


def _is_edited(parts: Anatomy) -> bool:
    return bool(_attached(parts).by_layer)


@dataclass
class _LayerCall:
    """What one layer was called with in the plain pass, and what its attention gave.

    Attributes:
        z: Head outputs before the output projection `[N, T, H, d]`.
        attn_output: What the attention module returned.
        is_positionwise: Nothing that the layer was given is per position but what its attention alone reads, so
            that the rest of it can be run for the last position only.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    z: Tensor = field(default_factory=lambda: torch.empty(0))
    attn_output: Any = None
    is_positionwise: bool = False


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


def _from_layer(
    parts: Anatomy, contexts: Contexts, wanted: Tensor, max_bytes: int, positions: Positions
) -> Iterator[_Found]:
    n_rows, n_tokens = contexts.input_ids.shape
    # a block holds about eight tensors of the residual stream's size at its widest point
    at_once = max(1, max_bytes // (n_tokens * parts.d_model * parts.model.dtype.itemsize * 8))
    with attach(parts.model, Handlers({})):
        plain = _record(parts, contexts)
        yield _Found(torch.tensor([[row, 0, -1] for row in range(n_rows)]), plain.logits)
        _check_replay(parts, plain, n_rows)
        for layer in range(parts.n_layers):
            chunks = list(_chunks(wanted[:, layer], at_once, in_rows=_is_edited(parts)))
            if not chunks:
                continue
            hidden = torch.cat([_rerun(parts, plain.calls, _Variants(layer, c, positions, n_rows)) for c in chunks])
            pairs = torch.cat(chunks)
            where = torch.stack([pairs[:, 0], torch.full_like(pairs[:, 0], layer), pairs[:, 1]], dim=1)
            asked = wanted[tuple(where.T)]
            yield from _unembedded(parts, where[asked], hidden[asked.to(hidden.device)])


def _unembedded(parts: Anatomy, where: Tensor, hidden: Tensor) -> Iterator[_Found]:
    step = max(1, 2**25 // parts.d_vocab)
    for start in range(0, len(where), step):
        rows = slice(start, start + step)
        yield _Found(where[rows], unembed(parts, parts.final_norm(hidden[rows])))


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
    options: dict[int, dict[str, Any]] = {}

    def record(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        # copies of the hidden states, since some layers go on in place
        own = {name: value.clone() for name, value in kwargs.items() if name == "hidden_states"}
        calls.append(_LayerCall((*(value.clone() for value in args[:1]), *args[1:]), {**kwargs, **own}))

    def read_heads(call: AttentionCall, attend: Attend) -> Tensor:
        z = attend(call)
        calls[-1].z, options[call.layer] = z.clone(), call.options
        return z

    def read_output(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        calls[-1].attn_output = output

    with ExitStack() as stack:
        stack.enter_context(attach(parts.model, Handlers({i: (read_heads,) for i in range(parts.n_layers)})))
        for layer in parts.layers:
            stack.callback(layer.block.register_forward_pre_hook(record, with_kwargs=True).remove)
            # the first of the hooks, so that what others change is not taken for the module's own
            stack.callback(layer.attention.register_forward_hook(read_output, prepend=True).remove)
        logits = forward(parts, contexts.input_ids, contexts.mask, last_only=True)
    for call in calls:  # they were recorded with the readers among their handlers
        call.kwargs[STATE_KEY] = _attached(parts)
    last = calls[-1]
    last.is_positionwise = _is_positionwise(parts, last, options[parts.n_layers - 1])
    return _Plain(calls, widened(logits[:, -1]))


def _is_positionwise(parts: Anatomy, call: _LayerCall, options: dict[str, Any]) -> bool:
    extra = [*call.args[1:], *(value for name, value in call.kwargs.items() if name not in _PER_TOKEN)]
    hooked = any(m._forward_hooks or m._forward_pre_hooks for m in parts.layers[-1].block.modules())
    per_query = any(isinstance(value, Tensor) and value.dim() > 2 for value in options.values())
    return not (_is_edited(parts) or hooked or per_query or any(isinstance(value, Tensor) for value in extra))


def _check_replay(parts: Anatomy, plain: _Plain, n_rows: int) -> None:
    """Check on the first row that the layers called one by one do what the model did."""
    n_rerun = n_rows if _is_edited(parts) else 1
    every = torch.stack([torch.arange(n_rerun), torch.full((n_rerun,), -1)], dim=1)
    for layer in {0, parts.n_layers // 2, parts.n_layers - 1}:
        hidden = _rerun(parts, plain.calls, _Variants(layer, every, "all", n_rows))
        again = unembed(parts, parts.final_norm(hidden[:1]))[0].softmax(-1)
        off = float((again - plain.logits[0].softmax(-1)).abs().sum()) / 2
        if not off <= _MOST_OFF.get(parts.model.dtype, 0.25):
            raise UnsupportedModel(
                f"The layers of this {parts.model.config.model_type} model, called one by one, move {off:.3g} of the "
                "probability that the whole model gives, so single knockouts cannot share what they have in common; "
                "use method='gradient'."
            )


def _rerun(parts: Anatomy, calls: list[_LayerCall], variants: _Variants) -> Tensor:
    """Return the last layer's output at the last position `[R, D]` with each variant's head silenced."""
    layer, (rows, heads) = variants.layer, variants.pairs.T
    z = calls[layer].z[rows.to(calls[layer].z.device)]
    (silenced,) = (heads >= 0).nonzero(as_tuple=True)
    if variants.positions == "all":
        z[silenced, :, heads[silenced]] = 0
    else:
        z[silenced, -1, heads[silenced]] = 0
    hidden: Tensor | None = None
    last = parts.n_layers - 1
    for at in range(layer, parts.n_layers):
        args, kwargs = _for_rows(calls[at], rows, variants.n_rows, hidden)
        only_last = at == last and calls[at].is_positionwise
        with ExitStack() as stack:
            if only_last:
                z = z[:, -1:] if at == layer else _last_query(parts.layers[at], args, kwargs)
                args, kwargs = _at_last_position(args, kwargs)
            if only_last or at == layer:
                stack.enter_context(_attention_gives(parts.layers[at], calls[at], z))
            hidden = first_tensor(parts.layers[at].block(*args, **kwargs))
    assert hidden is not None
    return hidden[:, -1].clone()


@contextmanager
def _attention_gives(layer: Layer, call: _LayerCall, z: Tensor) -> Iterator[None]:
    """Let the layer's attention module, instead of attending, return the projection of `z`."""
    recorded = first_tensor(call.attn_output)
    assert recorded is not None
    out = layer.out_proj(z.flatten(-2)).reshape(-1, *((z.shape[1],) if recorded.dim() > 2 else ()), recorded.shape[-1])
    output = call.attn_output
    given = out if isinstance(output, Tensor) else type(output)((out, *output[1:]))
    before = layer.attention.__dict__.get("forward")  # there is one where weights are moved between devices
    layer.attention.forward = lambda *args, **kwargs: given
    try:
        yield
    finally:
        if before is None:
            del layer.attention.forward
        else:
            layer.attention.forward = before


class _Enough(Exception):
    """Leaves a layer with z of the last query, `[R, 1, H, d]`."""

    def __init__(self, z: Tensor):
        super().__init__()
        self.z = z


def _last_query(layer: Layer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """Return what the heads of a layer put out at the last position, `[R, 1, H, d]`, and run nothing else of it."""

    def attend_once(call: AttentionCall, attend: Attend) -> Tensor:
        mask = call.mask if call.mask is None else call.mask[:, :, -1:]
        raise _Enough(attend(replace(call, q=call.q[:, :, -1:], mask=mask)))

    handlers = Handlers({int(layer.attention.layer_idx): (attend_once,)})  # type: ignore[arg-type]
    try:
        layer.block(*args, **{**kwargs, STATE_KEY: handlers})
    except _Enough as enough:
        return enough.z
    raise AssertionError("the layer did not call the seam")


def _at_last_position(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if args:
        return (args[0][:, -1:], *args[1:]), kwargs
    return args, {**kwargs, "hidden_states": kwargs["hidden_states"][:, -1:]}


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


def _last_position(parts: Anatomy, contexts: Contexts, wanted: Tensor, max_bytes: int) -> Iterator[_Found]:
    ids, mask = contexts.input_ids, contexts.mask
    positions = position_ids(mask)
    for row in range(len(ids)):
        # a row at a time and without its padding: the prefix then needs no mask
        start = int((mask[row] == 0).sum())
        heads = torch.cat([torch.tensor([[0, -1]]), wanted[row].nonzero()])  # (layer, head), first none
        for chunk, logits in _decode_variants(parts, ids[row, start:], positions[row, start:], heads, max_bytes):
            yield _Found(torch.cat([torch.full((len(chunk), 1), row), chunk], dim=1), logits)


def _decode_variants(
    parts: Anatomy, ids: Tensor, positions: Tensor, heads: Tensor, max_bytes: int
) -> Iterator[tuple[Tensor, Tensor]]:
    prefix = None
    if len(ids) > 1:
        output = parts.model(
            input_ids=ids[None, :-1], position_ids=positions[None, :-1], use_cache=True, logits_to_keep=1
        )
        prefix = output.past_key_values
    # keys and values of one layer
    per_variant = len(ids) * parts.n_kv_heads * parts.d_head * parts.model.dtype.itemsize * 2
    at_once = max(1, max_bytes // (per_variant * (1 if _is_plain(prefix) else parts.n_layers)))
    for start in range(0, len(heads), at_once):
        chunk = heads[start : start + at_once]
        n = len(chunk)
        cache = _for_variants(prefix, n)
        out = KnockOut([{(int(layer), int(head))} if head >= 0 else set() for layer, head in chunk])
        with edit(parts.model, out, strict=False):
            logits = parts.model(
                input_ids=ids[None, -1:].expand(n, 1),
                position_ids=positions[None, -1:].expand(n, 1),
                past_key_values=cache,
                use_cache=cache is not None,
            ).logits
        yield chunk, widened(logits[:, -1])


def _is_plain(prefix: Any) -> bool:
    """Say whether a cache holds keys and values only, and puts new ones behind them without writing in place."""
    kinds = (DynamicLayer, DynamicSlidingWindowLayer)
    return type(prefix) is DynamicCache and all(type(layer) in kinds for layer in prefix.layers)


def _for_variants(prefix: Any, n: int) -> Any:
    """Return a cache of `n` rows that all read the same prefix, where the kind of cache allows it without copies."""
    if prefix is None:
        return None
    if not _is_plain(prefix):
        cache = copy.deepcopy(prefix)
        cache.batch_repeat_interleave(n)
        return cache
    cache = copy.copy(prefix)
    cache.layers = [copy.copy(layer) for layer in prefix.layers]
    for layer in cache.layers:
        layer.keys, layer.values = (t.expand(n, -1, -1, -1) for t in (layer.keys, layer.values))
    return cache
