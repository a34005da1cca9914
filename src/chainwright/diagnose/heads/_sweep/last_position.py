"""Knockouts at the last position: the prefix does not change, so all variants share its keys and values.

1. One baseline pass over rows of similar length records each layer's keys and values, and its input at the last
   position.
2. The variants of a row lie side by side on the query axis of one attention call. Each sees the shared prefix and, at
   the last position, only its own key. The call uses the model's own attention function, so scaling, softcaps, sinks,
   sliding windows and grouped heads are included; the prefix is not copied per variant.
3. A variant joins at its layer, with the hidden state that the baseline pass had there.

An unedited variant is run too and compared with the model. Where a layer needs more than its last position, or the
comparison fails, every variant becomes one decoding step over the prefix's cache instead.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from chainwright.diagnose.heads._sweep.baseline_pass import (
    BaselinePass,
    Contexts,
    LayerCall,
    VariantLogits,
    for_rows,
    record,
    rounding_tolerance,
    total_variation,
)
from chainwright.edits import KnockOut, edit
from chainwright.models._probe import first_tensor
from chainwright.models.anatomy import Anatomy
from chainwright.models.caches import is_appending, returned_cache, with_cache
from chainwright.models.padding import position_ids
from chainwright.models.residual import unembed
from chainwright.models.seam import STATE_KEY, Attend, AttentionCall, Handlers, attach, attached_handlers, widened


class _Variants(NamedTuple):
    """The variants that run together, C columns for each of N rows, in the order of their layers.

    Attributes:
        layers: The layer of each column's knockout `[C]`.
        heads: The head that is silenced `[N, C]`; -1 for none.
    """

    layers: Tensor
    heads: Tensor


def last_position(
    parts: Anatomy, contexts: Contexts, wanted: Tensor, max_bytes: int, plain: BaselinePass | None = None
) -> Iterator[VariantLogits]:
    """Yield the logits with each wanted head `[N, L, H]` silenced at the last position, and with none silenced."""
    with attach(parts.model, Handlers({})):
        plain = plain or record(parts, contexts, attached_handlers(parts.model), keys=True)
        shared = None
        if all(call.is_positionwise for call in plain.calls):
            shared = _shared_prefix(parts, plain, wanted, max_bytes)
            # the first chunk holds the unedited variant: it must reproduce the model before the others are trusted
            first = next(shared)
            if total_variation(first.logits[first.where[:, 2] < 0], plain.logits) <= rounding_tolerance(parts):
                yield VariantLogits(_unchanged(len(wanted)), plain.logits)
                yield _only_changed(first)
                yield from map(_only_changed, shared)
                return
    del plain, shared  # the fallback needs none of it, and its caches need the memory
    yield from _decoded(parts, contexts, wanted, max_bytes)


def _unchanged(n_rows: int) -> Tensor:
    return torch.tensor([[row, 0, -1] for row in range(n_rows)])


def _only_changed(variants: VariantLogits) -> VariantLogits:
    changed = variants.where[:, 2] >= 0
    return VariantLogits(variants.where[changed], variants.logits[changed.to(variants.logits.device)])


def _shared_prefix(parts: Anatomy, plain: BaselinePass, wanted: Tensor, max_bytes: int) -> Iterator[VariantLogits]:
    n_rows, n_tokens = len(wanted), _attn_call(plain.calls[0]).k.shape[2]
    every = _columns(wanted)
    # per column: its queries' scores and mask, and about sixteen vectors of the residual stream's size
    per_column = n_rows * plain.logits.element_size() * (3 * parts.n_heads * n_tokens + 16 * parts.d_model)
    # each column adds a key that all other columns mask out; beyond d_model of them that waste outweighs the gain
    at_once = max(1, min(max_bytes // per_column, max(64, parts.d_model)))
    for start in range(0, len(every.layers), at_once):
        columns = slice(start, start + at_once)
        yield _run(parts, plain, _Variants(every.layers[columns], every.heads[:, columns]))


def _columns(wanted: Tensor) -> _Variants:
    """Return the wanted heads `[N, L, H]` as columns, layer by layer, after one column without a knockout.

    Rows with fewer wanted heads in a layer than others are filled up with -1, which silences nothing.
    """
    n_rows, n_layers, _ = wanted.shape
    layers, heads = [torch.zeros(1, dtype=torch.long)], [torch.full((n_rows, 1), -1)]
    for layer in range(n_layers):
        n_most = int(wanted[:, layer].sum(-1).max())
        # a stable sort puts the wanted heads first and keeps their order
        ranked = wanted[:, layer].int().argsort(dim=-1, descending=True, stable=True)[:, :n_most]
        layers.append(torch.full((n_most,), layer))
        heads.append(ranked.masked_fill(~wanted[:, layer].gather(-1, ranked), -1))
    return _Variants(torch.cat(layers), torch.cat(heads, dim=1))


def _run(parts: Anatomy, plain: BaselinePass, variants: _Variants) -> VariantLogits:
    n_rows = len(variants.heads)
    first = int(variants.layers[0])
    hidden = plain.calls[first].hidden[:, :0]  # (row, column, model)
    for layer in range(first, parts.n_layers):
        # before its knockout a variant equals the baseline pass, so it enters at its own layer and skips those below
        n_new = int((variants.layers == layer).sum())
        hidden = torch.cat([hidden, plain.calls[layer].hidden.expand(-1, n_new, -1)], dim=1)
        hidden = _one_layer(parts, plain.calls[layer], variants, layer, hidden)
    logits = unembed(parts, parts.final_norm(hidden.flatten(0, 1)))
    rows = torch.arange(n_rows)[:, None].expand_as(variants.heads)
    where = torch.stack([rows, variants.layers.expand_as(variants.heads), variants.heads], dim=-1)
    return VariantLogits(where.flatten(0, 1), logits)


def _one_layer(parts: Anatomy, call: LayerCall, variants: _Variants, layer: int, hidden: Tensor) -> Tensor:
    n_rows, n_columns, d_model = hidden.shape
    (new,) = (variants.layers == layer).nonzero(as_tuple=True)
    rows, columns = (variants.heads[:, new] >= 0).nonzero(as_tuple=True)
    silenced = (rows, new[columns], variants.heads[rows, new[columns]])
    recorded = _attn_call(call)

    def attend_together(own: AttentionCall, attend: Attend) -> Tensor:
        z = attend(_joined(recorded, own, n_rows)).clone()  # (row, column, head, d_head)
        z[silenced] = 0
        return z.reshape(n_rows * n_columns, 1, *z.shape[2:])

    # outside the attention the layer is position by position, so each variant is a row of one token
    each = torch.arange(n_rows).repeat_interleave(n_columns)
    args, kwargs = for_rows(_cut(call), each, n_rows, hidden.reshape(n_rows * n_columns, 1, d_model))
    index = int(parts.layers[layer].attention.layer_idx)  # type: ignore[arg-type]
    kwargs[STATE_KEY] = Handlers({index: (attend_together,)})
    after = first_tensor(parts.layers[layer].block(*args, **kwargs))
    assert after is not None
    return after.reshape(n_rows, n_columns, d_model)


def _attn_call(call: LayerCall) -> AttentionCall:
    assert call.attn_call is not None
    return call.attn_call


def _cut(call: LayerCall) -> LayerCall:
    """Return the call with every argument that is per position cut to the last position."""

    def last(value: Any, name: str) -> Any:
        if isinstance(value, tuple):
            return tuple(last(v, name) for v in value)
        if not isinstance(value, Tensor) or name == "hidden_states":
            return value
        if name == "position_embeddings" or value.dim() == 4:
            return value[..., -1:, :]
        return value[..., -1:] if name in ("position_ids", "cache_position") else value

    return LayerCall(call.args, {name: last(value, name) for name, value in call.kwargs.items()})


def _joined(recorded: AttentionCall, own: AttentionCall, n_rows: int) -> AttentionCall:
    """Return one call with a row's variants as its queries, over the shared prefix and each variant's own key."""
    q, k, v = (t.reshape(n_rows, -1, *t.shape[1::2]).transpose(1, 2) for t in (own.q, own.k, own.v))
    n_columns = q.shape[2]
    # the last recorded key is that of the unedited last position, which each variant replaces by its own
    keys = torch.cat([recorded.k[:, :, :-1], k], dim=2)
    values = torch.cat([recorded.v[:, :, :-1], v], dim=2)
    mask = q.new_full((n_rows, 1, n_columns, keys.shape[2]), torch.finfo(q.dtype).min)
    n_prefix = keys.shape[2] - n_columns
    mask[..., n_prefix:].diagonal(dim1=-2, dim2=-1).zero_()
    if recorded.mask is None:
        mask[..., :n_prefix] = 0
    else:
        last = recorded.mask[:, :, -1:, :n_prefix]
        # a mask may also carry a bias per head, so it is widened to as many heads as the recorded one has
        mask = mask.expand(-1, last.shape[1], -1, -1).clone()
        mask[..., :n_prefix] = last if last.dtype != torch.bool else mask[:, :, :1, :n_prefix].masked_fill(last, 0)
    return replace(own, q=q, k=keys, v=values, mask=mask)


def _decoded(parts: Anatomy, contexts: Contexts, wanted: Tensor, max_bytes: int) -> Iterator[VariantLogits]:
    ids, mask = contexts.input_ids, contexts.mask
    positions = position_ids(mask)
    for row in range(len(ids)):
        # one row at a time, without its padding, so the prefix needs no mask
        start = int((mask[row] == 0).sum())
        heads = torch.cat([torch.tensor([[0, -1]]), wanted[row].nonzero()])  # (layer, head), first none
        for chunk, logits in _decode_variants(parts, ids[row, start:], positions[row, start:], heads, max_bytes):
            yield VariantLogits(torch.cat([torch.full((len(chunk), 1), row), chunk], dim=1), logits)


def _decode_variants(
    parts: Anatomy, ids: Tensor, positions: Tensor, heads: Tensor, max_bytes: int
) -> Iterator[tuple[Tensor, Tensor]]:
    prefix = None
    if len(ids) > 1:
        output = parts.model(
            input_ids=ids[None, :-1], position_ids=positions[None, :-1], use_cache=True, logits_to_keep=1
        )
        prefix = returned_cache(output)
    # keys and values of one layer; a shared cache is copied one layer at a time, when a step appends to it
    per_variant = len(ids) * parts.n_kv_heads * parts.d_head * parts.model.dtype.itemsize * 2
    at_once = max(1, max_bytes // (per_variant * (1 if is_appending(prefix) else parts.n_layers)))
    for start in range(0, len(heads), at_once):
        chunk = heads[start : start + at_once]
        n = len(chunk)
        cache = _for_variants(prefix, n)
        out = KnockOut([{(int(layer), int(head))} if head >= 0 else set() for layer, head in chunk])
        with edit(parts.model, out, strict=False):
            logits = parts.model(
                input_ids=ids[None, -1:].expand(n, 1),
                position_ids=positions[None, -1:].expand(n, 1),
                **with_cache(parts.model, cache),
                use_cache=cache is not None,
            ).logits
        yield chunk, widened(logits[:, -1])


def _for_variants(prefix: Any, n: int) -> Any:
    """Return a cache of `n` rows with the same prefix, without copying it where the kind of cache allows that."""
    if prefix is None:
        return None
    if not is_appending(prefix):
        cache = copy.deepcopy(prefix)
        cache.batch_repeat_interleave(n)
        return cache
    cache = copy.copy(prefix)
    cache.layers = [copy.copy(layer) for layer in prefix.layers]
    for layer in cache.layers:
        layer.keys, layer.values = (t.expand(n, -1, -1, -1) for t in (layer.keys, layer.values))
    return cache
