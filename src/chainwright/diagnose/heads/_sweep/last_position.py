"""Knockouts at the last position: the prefix does not change at all, so all variants share its keys and values.

1. One plain pass over rows of about equal length keeps each layer's keys and values, and its input at the last
   position.
2. The variants of a row stand side by side on the query axis of one attention call: each sees the shared prefix and,
   of the last position, its own key alone. The call goes through the model's own attention function, so scaling,
   softcaps, sinks, sliding windows and grouped heads follow; nothing of the prefix is copied for a variant.
3. A variant joins at its layer, from what the plain pass had there.

The unchanged variant is run too and compared with the model. Where a layer needs more than its last position, or the
comparison fails, every variant is one decode step over the prefix's cache instead.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from chainwright.diagnose.heads._sweep.baseline_pass import (
    Contexts,
    Found,
    LayerCall,
    Plain,
    attached,
    for_rows,
    most_off,
    record,
    total_variation,
)
from chainwright.edits import KnockOut, edit
from chainwright.models._probe import first_tensor
from chainwright.models.anatomy import Anatomy
from chainwright.models.padding import position_ids
from chainwright.models.residual import unembed
from chainwright.models.seam import STATE_KEY, Attend, AttentionCall, Handlers, attach, widened


class _Variants(NamedTuple):
    """The variants that run together, `C` for each of `N` rows, in the order of their layers.

    Attributes:
        layers: The layer of each column's knockout `[C]`.
        heads: The head that is out `[N, C]`; -1 for none.
    """

    layers: Tensor
    heads: Tensor


def last_position(
    parts: Anatomy, contexts: Contexts, wanted: Tensor, max_bytes: int, plain: Plain | None = None
) -> Iterator[Found]:
    """Yield the logits with each wanted head `[N, L, H]` silenced at the last position, and with none."""
    with attach(parts.model, Handlers({})):
        plain = plain or record(parts, contexts, attached(parts), keys=True)
        shared = None
        if all(call.is_positionwise for call in plain.calls):
            shared = _shared_prefix(parts, plain, wanted, max_bytes)
            first = next(shared)
            if total_variation(first.logits[first.where[:, 2] < 0], plain.logits) <= most_off(parts):
                yield Found(_unchanged(len(wanted)), plain.logits)
                yield _only_changed(first)
                yield from map(_only_changed, shared)
                return
    del plain, shared
    yield from _decoded(parts, contexts, wanted, max_bytes)


def _unchanged(n_rows: int) -> Tensor:
    return torch.tensor([[row, 0, -1] for row in range(n_rows)])


def _only_changed(found: Found) -> Found:
    changed = found.where[:, 2] >= 0
    return Found(found.where[changed], found.logits[changed.to(found.logits.device)])


def _shared_prefix(parts: Anatomy, plain: Plain, wanted: Tensor, max_bytes: int) -> Iterator[Found]:
    n_rows, n_tokens = len(wanted), _seen(plain.calls[0]).k.shape[2]
    every = _columns(wanted)
    # scores and mask of a column's queries, and about sixteen vectors of the residual stream's size
    per_column = n_rows * plain.logits.element_size() * (3 * parts.n_heads * n_tokens + 16 * parts.d_model)
    # each column also sees a column of keys, which should stay cheaper than the layer's products
    at_once = max(1, min(max_bytes // per_column, max(64, parts.d_model)))
    for start in range(0, len(every.layers), at_once):
        columns = slice(start, start + at_once)
        yield _run(parts, plain, _Variants(every.layers[columns], every.heads[:, columns]))


def _columns(wanted: Tensor) -> _Variants:
    """Return the wanted heads `[N, L, H]` layer by layer, after one column with none out; short rows repeat none."""
    n_rows, n_layers, _ = wanted.shape
    layers, heads = [torch.zeros(1, dtype=torch.long)], [torch.full((n_rows, 1), -1)]
    for layer in range(n_layers):
        n_most = int(wanted[:, layer].sum(-1).max())
        # the wanted heads first, in their order
        ranked = wanted[:, layer].int().argsort(dim=-1, descending=True, stable=True)[:, :n_most]
        layers.append(torch.full((n_most,), layer))
        heads.append(ranked.masked_fill(~wanted[:, layer].gather(-1, ranked), -1))
    return _Variants(torch.cat(layers), torch.cat(heads, dim=1))


def _run(parts: Anatomy, plain: Plain, variants: _Variants) -> Found:
    n_rows = len(variants.heads)
    first = int(variants.layers[0])
    hidden = plain.calls[first].hidden[:, :0]  # (row, column, model)
    for layer in range(first, parts.n_layers):
        n_new = int((variants.layers == layer).sum())
        hidden = torch.cat([hidden, plain.calls[layer].hidden.expand(-1, n_new, -1)], dim=1)
        hidden = _one_layer(parts, plain.calls[layer], variants, layer, hidden)
    logits = unembed(parts, parts.final_norm(hidden.flatten(0, 1)))
    rows = torch.arange(n_rows)[:, None].expand_as(variants.heads)
    where = torch.stack([rows, variants.layers.expand_as(variants.heads), variants.heads], dim=-1)
    return Found(where.flatten(0, 1), logits)


def _one_layer(parts: Anatomy, call: LayerCall, variants: _Variants, layer: int, hidden: Tensor) -> Tensor:
    n_rows, n_columns, d_model = hidden.shape
    (new,) = (variants.layers == layer).nonzero(as_tuple=True)
    rows, columns = (variants.heads[:, new] >= 0).nonzero(as_tuple=True)
    out = (rows, new[columns], variants.heads[rows, new[columns]])
    seen = _seen(call)

    def attend_together(own: AttentionCall, attend: Attend) -> Tensor:
        z = attend(_joined(seen, own, n_rows)).clone()  # (row, column, head, d_head)
        z[out] = 0
        return z.reshape(n_rows * n_columns, 1, *z.shape[2:])

    each = torch.arange(n_rows).repeat_interleave(n_columns)
    args, kwargs = for_rows(_cut(call), each, n_rows, hidden.reshape(n_rows * n_columns, 1, d_model))
    index = int(parts.layers[layer].attention.layer_idx)  # type: ignore[arg-type]
    kwargs[STATE_KEY] = Handlers({index: (attend_together,)})
    after = first_tensor(parts.layers[layer].block(*args, **kwargs))
    assert after is not None
    return after.reshape(n_rows, n_columns, d_model)


def _seen(call: LayerCall) -> AttentionCall:
    assert call.seen is not None
    return call.seen


def _cut(call: LayerCall) -> LayerCall:
    """Return the call with everything that is per position cut to the last one."""

    def last(value: Any, name: str) -> Any:
        if isinstance(value, tuple):
            return tuple(last(v, name) for v in value)
        if not isinstance(value, Tensor) or name == "hidden_states":
            return value
        if name == "position_embeddings" or value.dim() == 4:
            return value[..., -1:, :]
        return value[..., -1:] if name in ("position_ids", "cache_position") else value

    return LayerCall(call.args, {name: last(value, name) for name, value in call.kwargs.items()})


def _joined(seen: AttentionCall, own: AttentionCall, n_rows: int) -> AttentionCall:
    """Return one call in which a row's variants are queries beside each other, over one prefix and their own keys."""
    q, k, v = (t.reshape(n_rows, -1, *t.shape[1::2]).transpose(1, 2) for t in (own.q, own.k, own.v))
    n_columns = q.shape[2]
    keys = torch.cat([seen.k[:, :, :-1], k], dim=2)
    values = torch.cat([seen.v[:, :, :-1], v], dim=2)
    mask = q.new_full((n_rows, 1, n_columns, keys.shape[2]), torch.finfo(q.dtype).min)
    n_prefix = keys.shape[2] - n_columns
    mask[..., n_prefix:].diagonal(dim1=-2, dim2=-1).zero_()
    if seen.mask is None:
        mask[..., :n_prefix] = 0
    else:
        last = seen.mask[:, :, -1:, :n_prefix]
        # a mask may also be a bias of each head
        mask = mask.expand(-1, last.shape[1], -1, -1).clone()
        mask[..., :n_prefix] = last if last.dtype != torch.bool else mask[:, :, :1, :n_prefix].masked_fill(last, 0)
    return replace(own, q=q, k=keys, v=values, mask=mask)


def _decoded(parts: Anatomy, contexts: Contexts, wanted: Tensor, max_bytes: int) -> Iterator[Found]:
    ids, mask = contexts.input_ids, contexts.mask
    positions = position_ids(mask)
    for row in range(len(ids)):
        # a row at a time and without its padding: the prefix then needs no mask
        start = int((mask[row] == 0).sum())
        heads = torch.cat([torch.tensor([[0, -1]]), wanted[row].nonzero()])  # (layer, head), first none
        for chunk, logits in _decode_variants(parts, ids[row, start:], positions[row, start:], heads, max_bytes):
            yield Found(torch.cat([torch.full((len(chunk), 1), row), chunk], dim=1), logits)


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
