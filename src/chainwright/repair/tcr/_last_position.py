"""What a model predicts when one head is ablated at the last position only: one more decode step over the plain cache.

The step that has just run put the last token's keys and values behind the others; they are dropped, since without the
head they differ in the layers above it. The plain cache itself is only read.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from chainwright._config import Positions
from chainwright.edits import KnockOut
from chainwright.edits.run import aside
from chainwright.models.anatomy import Anatomy
from chainwright.models.caches import with_cache
from chainwright.models.capture import forward
from chainwright.models.padding import left_pad, position_ids
from chainwright.models.seam import widened
from chainwright.repair.run import Cost
from chainwright.repair.tcr._ablated_cache import Pair
from chainwright.repair.tcr._knockout_switch import Switch

_PAIRS_AT_ONCE = 32


def whole_prefix_logits(
    parts: Anatomy,
    switch: Switch,
    pairs: Sequence[Pair],
    contexts: Sequence[Sequence[int]],
    positions: Positions,
    scale: float,
    cost: Cost | None = None,
) -> Tensor:
    """Return the next-token logits `[len(pairs), V]` without each head, every context run from its first token.

    Edits that act on whole rows act in these passes as they do in the run.

    Args:
        parts: Anatomy of the model.
        switch: Its open knockout switch.
        pairs: Rows of the run that is being followed, if one is, and a head each.
        contexts: The tokens of each pair's row, or the first of them.
        positions: Where the head is scaled.
        scale: What the head's output is multiplied by.
        cost: Where the passes are counted.
    """
    out = []
    for start in range(0, len(pairs), _PAIRS_AT_ONCE):
        here = slice(start, start + _PAIRS_AT_ONCE)
        ids, mask = left_pad(contexts[here], 0, parts.device)
        heads = KnockOut([{head} for _, head in pairs[here]], positions=positions, scale=scale)
        with aside(parts, [row for row, _ in pairs[here]]), switch.on(heads), torch.no_grad():
            out.append(widened(forward(parts, ids, mask, last_only=True)[:, -1]))
        if cost is not None:
            cost.n_extra_forwards += 1
            cost.n_extra_tokens += ids.numel()
    return torch.cat(out)


def windows_before(cache: Any) -> dict[int, Any]:
    """Return the sliding layers of a cache as they are before a step, which drops what leaves the window."""
    if cache is None:
        return {}
    layers = enumerate(cache.layers)
    return {i: copy.copy(layer) for i, layer in layers if layer.is_sliding and layer.get_seq_length() > 0}


def last_position_logits(
    parts: Anatomy,
    switch: Switch,
    pairs: Sequence[Pair],
    contexts: Sequence[Sequence[int]],
    cache: Any,
    windows: dict[int, Any],
    scale: float,
    cost: Cost,
) -> Tensor:
    """Return the next-token logits `[len(pairs), V]` of each (row, head), the head scaled at the last position.

    Args:
        parts: Anatomy of the model.
        switch: Its open knockout switch.
        pairs: Rows of `cache`, and a head each.
        contexts: The tokens of each pair's row.
        cache: The plain cache after the last token.
        windows: Its sliding layers before that token.
        scale: What the head's output is multiplied by.
        cost: Where the passes are counted.
    """
    heads = KnockOut([{head} for _, head in pairs], positions="last", scale=scale)
    has_prefix = cache.get_seq_length() > 1 and all(
        i in windows for i, layer in enumerate(cache.layers) if layer.is_sliding
    )
    if not has_prefix:
        return whole_prefix_logits(parts, switch, pairs, contexts, "last", scale, cost)
    cost.n_extra_forwards += 1
    cost.n_extra_tokens += len(pairs)
    with aside(parts, [row for row, _ in pairs]), switch.on(heads), torch.no_grad():
        rows = torch.tensor([row for row, _ in pairs], device=parts.device)
        return _step(parts, rows, contexts, _prefix(cache, windows, rows))


def _step(parts: Anatomy, rows: Tensor, contexts: Sequence[Sequence[int]], prefix: Any) -> Tensor:
    device, n_slots = parts.device, prefix.get_seq_length() + 1
    _, mask = left_pad([ids for ids in contexts], 0, device)
    wide = torch.zeros(len(rows), n_slots, dtype=torch.long, device=device)
    wide[:, n_slots - mask.shape[1] :] = mask
    last = torch.tensor([[ids[-1]] for ids in contexts], device=device)
    logits = parts.model(
        input_ids=last,
        attention_mask=wide,
        position_ids=position_ids(wide)[:, -1:],
        **with_cache(parts.model, prefix),
        use_cache=True,
        logits_to_keep=1,
    ).logits
    return widened(logits[:, -1])


def _prefix(cache: Any, windows: dict[int, Any], rows: Tensor) -> Any:
    """Return a cache of the given rows without the last token."""
    prefix = copy.copy(cache)
    prefix.layers = [copy.copy(windows.get(i, layer)) for i, layer in enumerate(cache.layers)]
    for i, layer in enumerate(prefix.layers):
        end = None if i in windows else -1
        layer.keys, layer.values = (t[rows, :, :end] for t in (layer.keys, layer.values))
    return prefix
