"""What a row's next token would be without each of several heads, in one pass whose batch grows from layer to layer.

Up to and in the layer of a silenced head, keys and values are those of the row itself, and so is what goes into that
layer. So the pass begins with the row alone and the main run's cache. At each layer the variants whose heads are in it
join as copies of the row, which is dropped when the last has joined; they attend once together. In the last layer only
the last query is needed: the block is left after its attention, and run again for that position.

Families differ in what their decoders do around the layers, so a model's first pass of this kind is compared with a
plain one (`repair.tcr._ablated_cache`).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from chainwright.edits import Head
from chainwright.models._probe import first_tensor
from chainwright.models.anatomy import Anatomy, Layer
from chainwright.models.caches import with_cache
from chainwright.models.layer_halves import (
    at_positions,
    attention_output,
    attention_returning,
    called,
    has_halves,
    returning,
    with_first,
)
from chainwright.models.seam import Attend, AttentionCall, Handler, Handlers, attached_handlers


class Variant(NamedTuple):
    """A silenced head, and the cache layers above its own that are known already, by index."""

    head: Head
    known: Mapping[int, Any]


class Grown(NamedTuple):
    """Next-token logits of each variant `[V, d_vocab]`, and its cache layers above its own."""

    logits: Tensor
    layers: list[dict[int, Any]]


def can_grow(parts: Anatomy) -> bool:
    """Return whether nothing attached to the model could mind another number of rows."""
    compiled = [getattr(m, "_compiled_call_impl", None) for m in (parts.model, parts.decoder)]
    return not attached_handlers(parts.model).by_layer and not any(compiled)


def grown_pass(
    parts: Anatomy,
    attached: Callable[[Handlers], AbstractContextManager[None]],
    ids: Sequence[int],
    n_known: int,
    variants: Sequence[Variant],
    own: Any,
    scale: float,
    n_hooks: int = 0,
) -> Grown:
    """Return what follows `ids` without each variant's head.

    Args:
        parts: Anatomy of the model.
        attached: Returns a context in which handlers are attached.
        ids: All tokens of the row.
        n_known: How many of them every variant's keys cover.
        variants: The variants, in the order of their layers.
        own: A cache of the model's usual kind, whose layers hold the row's own keys and values of those tokens.
        scale: What the heads' outputs are multiplied by.
        n_hooks: How many of the hooks on the last layer do nothing in such a pass.
    """
    growing = _Growing(parts, variants, scale, n_hooks)
    cache = growing.joined(own, n_known)
    with ExitStack() as stack:
        stack.enter_context(attached(growing.handlers()))
        for index, layer in enumerate(parts.layers):
            stack.enter_context(returning(layer.block, partial(growing.run, index, layer.block.forward)))
        output = parts.model(
            input_ids=torch.tensor([list(ids[n_known:])], device=parts.device),
            attention_mask=torch.ones(1, len(ids), dtype=torch.long, device=parts.device),
            position_ids=torch.arange(n_known, len(ids), device=parts.device)[None],
            **with_cache(parts.model, cache),
            use_cache=True,
            logits_to_keep=1,
        )
    return Grown(output.logits[:, -1], [growing.layers_of(cache, i) for i in range(len(variants))])


class _Growing:
    """The batch of such a pass: the row itself first, as long as a variant has yet to join, then those that joined."""

    def __init__(self, parts: Anatomy, variants: Sequence[Variant], scale: float, n_hooks: int):
        self.parts, self.variants, self.scale, self.n_hooks = parts, variants, scale, n_hooks
        self.layers = [variant.head[0] for variant in variants]
        self.last = parts.n_layers - 1

    def n_joined(self, layer: int) -> int:
        """Return how many variants run in a layer."""
        return sum(at <= layer for at in self.layers)

    def has_row(self, layer: int) -> bool:
        """Return whether the row itself runs in a layer."""
        return self.layers[-1] > layer

    def joined(self, own: Any, n_known: int) -> Any:
        """Return a cache with the keys of every layer's batch."""
        if n_known == 0:
            return own
        cache = copy.copy(own)
        cache.layers = [copy.copy(layer) for layer in own.layers]
        for index, layer in enumerate(cache.layers):
            # what is known of a variant's own layer, from a plain pass, is what the row has there
            some = [variant.known.get(index, own.layers[index]) for variant in self.variants[: self.n_joined(index)]]
            some = [own.layers[index], *some] if self.has_row(index) else some
            layer.keys = torch.cat([one.keys[:, :, :n_known] for one in some])
            layer.values = torch.cat([one.values[:, :, :n_known] for one in some])
        return cache

    def layers_of(self, cache: Any, i: int) -> dict[int, Any]:
        """Return a variant's cache layers above its own, in memory of their own."""
        above = range(self.layers[i] + 1, self.parts.n_layers)
        return {index: cut_layer(cache.layers[index], i + self.has_row(index), slice(None)) for index in above}

    def handlers(self) -> Handlers:
        """Return handlers that silence each variant's head in its own layer, and attend no more than is needed."""
        by_layer: dict[int, tuple[Handler, ...]] = {self.last: (_attend_last,)}
        for layer in set(self.layers):
            n_new = self.n_joined(layer) - self.n_joined(layer - 1)
            by_layer[layer] = (*by_layer.get(layer, ()), partial(_attend_once, n_new, has_row=self.has_row(layer)))
            rows = [i + self.has_row(layer) for i, at in enumerate(self.layers) if at == layer]
            heads = [variant.head[1] for variant in self.variants if variant.head[0] == layer]
            by_layer[layer] = (*by_layer.get(layer, ()), partial(_scaled, rows, heads, self.scale))
        return Handlers(by_layer)

    def run(self, index: int, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Run a layer for its batch."""
        hidden: Tensor = args[0] if args else kwargs["hidden_states"]
        n_before = self.n_joined(index - 1) + self.has_row(index - 1) if index else 1
        n_new = self.n_joined(index) - self.n_joined(index - 1)
        assert len(hidden) == n_before
        if n_new:
            old = hidden if self.has_row(index) else hidden[1:]
            hidden = torch.cat([old, hidden[:1].expand(n_new, -1, -1)])
        if index == self.last and hidden.shape[1] > 1:
            layer = self.parts.layers[index]
            if has_halves(layer, args, kwargs, self.n_hooks):
                return _at_last_position(layer, forward, hidden, args, kwargs)
        return called(forward, hidden, args, kwargs)


def _at_last_position(
    layer: Layer, forward: Callable[..., Any], hidden: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """Return a layer's output at the last position, at every position: some decoders check the length."""
    attended = attention_output(layer, lambda: called(forward, hidden, args, kwargs))
    whole = first_tensor(attended)
    if whole is None or whole.shape[:2] != hidden.shape[:2]:
        with attention_returning(layer, attended):
            return called(forward, hidden, args, kwargs)
    with attention_returning(layer, at_positions(attended, slice(-1, None))):
        output = called(forward, hidden[:, -1:], args, kwargs)
    last = first_tensor(output)
    assert last is not None
    return with_first(output, last.expand(-1, hidden.shape[1], -1))


def cut_layer(layer: Any, row: int, slots: slice) -> Any:
    """Return some slots of one row of a cache layer, in memory of their own."""
    one = copy.copy(layer)
    one.keys, one.values = (t[row : row + 1, :, slots].clone() for t in (layer.keys, layer.values))
    return one


def _attend_last(call: AttentionCall, attend: Attend) -> Tensor:
    """Return z of the last query at every position; that of the others is not needed."""
    n_queries = call.q.shape[2]
    if n_queries == 1 or any(isinstance(option, Tensor) and option.dim() > 2 for option in call.options.values()):
        return attend(call)
    mask = None if call.mask is None else call.mask[:, :, -1:]
    return attend(replace(call, q=call.q[:, :, -1:], mask=mask)).expand(-1, n_queries, -1, -1)


def _attend_once(n_new: int, call: AttentionCall, attend: Attend, *, has_row: bool) -> Tensor:
    """Return z of all rows, the last `n_new` of which are the row itself (the first, if it is there) once more."""
    n_rows = len(call.q)
    n_unlike = n_rows - n_new + (not has_row)
    if n_unlike == n_rows or any(isinstance(option, Tensor) for option in call.options.values()):
        return attend(call)
    mask = call.mask if call.mask is None or len(call.mask) < n_rows else call.mask[:n_unlike]
    z = attend(replace(call, q=call.q[:n_unlike], k=call.k[:n_unlike], v=call.v[:n_unlike], mask=mask))
    own = z[:1] if has_row else z[-1:]
    return torch.cat([z, own.expand(n_rows - n_unlike, -1, -1, -1)])


def _scaled(rows: list[int], heads: list[int], scale: float, call: AttentionCall, attend: Attend) -> Tensor:
    z = attend(call).clone()  # (batch, query, head, d_head)
    z[rows, :, heads] = scale * z[rows, :, heads] if scale else 0.0
    return z
