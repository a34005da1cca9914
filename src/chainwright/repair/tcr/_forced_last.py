"""Whole rows run once, and at many places again with heads ablated at the last position only: one step each.

The keys and values of a row's earlier tokens are those of the plain pass, whatever the last token does. So a place
takes one step of one token over the row's cache, in which the slots from that token on are masked. Where layers look at
a window of slots, or the caller has attached edits, this is not so, and `kept_cache` returns None.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from chainwright.edits import Head, KnockOut
from chainwright.edits.run import aside, current_run
from chainwright.models.anatomy import Anatomy
from chainwright.models.caches import with_cache
from chainwright.models.decoder import hidden_states
from chainwright.models.padding import position_ids
from chainwright.models.seam import attached_handlers, widened
from chainwright.repair.tcr._ablated_cache import new_cache
from chainwright.repair.tcr._knockout_switch import Switch

_BYTES_AT_ONCE = 2**28
_MOST_AT_ONCE = 64


class Place(NamedTuple):
    """A token of a padded row, and the heads that are ablated at it."""

    row: int
    column: int
    heads: Collection[Head]


def kept_cache(parts: Anatomy) -> Any | None:
    """Return an empty cache for the plain pass, or None where single steps over it would not equal whole passes.

    Raises:
        BadInput: The model caches more than keys and values.
    """
    run = current_run(parts)
    if attached_handlers(parts.model).by_layer or (run is not None and run.whole_owners):
        return None
    cache = new_cache(parts)
    return None if any(getattr(layer, "is_sliding", False) for layer in cache.layers) else cache


def cached_states(parts: Anatomy, ids: Tensor, mask: Tensor, cache: Any) -> Tensor:
    """Return what `final_states` does, with keys and values left in `cache`."""
    output = parts.decoder(
        input_ids=ids,
        attention_mask=mask,
        position_ids=position_ids(mask),
        use_cache=True,
        **with_cache(parts.decoder, cache),
    )
    hidden = hidden_states(output)
    assert hidden is not None  # it was found by what it returns
    return hidden


def ablated_last(
    parts: Anatomy, switch: Switch, ids: Tensor, mask: Tensor, cache: Any, places: Sequence[Place], scale: float
) -> Tensor:
    """Return the next-token logits `[places, V]` after each place's token, its heads scaled at that token.

    Args:
        parts: Anatomy of the model.
        switch: Its open knockout switch.
        ids: The padded rows, `[N, T]`.
        mask: Which of them are tokens.
        cache: The rows' keys and values; it is only read.
        places: Where, and which heads.
        scale: What the heads' outputs are multiplied by.
    """
    n_bytes = sum(t[0].numel() * t.element_size() for layer in cache.layers for t in (layer.keys, layer.values))
    at_once = max(1, min(_MOST_AT_ONCE, _BYTES_AT_ONCE // n_bytes))
    out = []
    for start in range(0, len(places), at_once):
        chunk = places[start : start + at_once]
        heads = KnockOut([set(place.heads) for place in chunk], positions="last", scale=scale)
        with aside(parts, [place.row for place in chunk]), switch.on(heads), torch.no_grad():
            out.append(_step(parts, ids, mask, cache, chunk))
    return torch.cat(out)


def _step(parts: Anatomy, ids: Tensor, mask: Tensor, cache: Any, places: Sequence[Place]) -> Tensor:
    rows = torch.tensor([place.row for place in places], device=ids.device)
    columns = torch.tensor([place.column for place in places], device=ids.device)
    n_slots = int(columns.max())
    prefix = copy.copy(cache)
    prefix.layers = [copy.copy(layer) for layer in cache.layers]
    for layer in prefix.layers:
        layer.keys, layer.values = (t[:, :, :n_slots][rows.to(t.device)] for t in (layer.keys, layer.values))
    is_before = torch.arange(n_slots, device=ids.device) < columns[:, None]
    shown = torch.cat([mask[rows, :n_slots] * is_before, mask.new_ones(len(rows), 1)], dim=1)
    logits = parts.model(
        input_ids=ids[rows, columns][:, None],
        attention_mask=shown,
        position_ids=position_ids(shown)[:, -1:],
        **with_cache(parts.model, prefix),
        use_cache=True,
        logits_to_keep=1,
    ).logits
    return widened(logits[:, -1])
