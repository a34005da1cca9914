"""Running the model once more for many single-head knockouts, without repeating what they share.

The exact forms return the same numbers as one full forward pass a head:

- all positions: up to layer l nothing changes, and in layer l all heads but one do not, so that layer goes on from
  what the plain pass gave, and the layers after it follow with several variants side by side in the batch
  (`_sweep_layers`);
- last position: the prefix does not change at all, so its keys and values are computed once and are shared by all
  variants, of which each is one more query (`_sweep_last`).

Rows of about one length go together, without the padding that they share. Edits that are attached from outside stay
in force. As they may treat rows differently, the rows then keep their places: all together, one head silenced in all
of them at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from chainwright.diagnose._sweep_first import Sharing
from chainwright.diagnose._sweep_last import last_position
from chainwright.diagnose._sweep_layers import from_layer
from chainwright.diagnose._sweep_plain import Contexts, Group, groups, is_edited
from chainwright.models.anatomy import Anatomy
from chainwright.models.capture import Positions

# variants at once: a layer's tensors should stay in a processor's caches; a GPU wants large batches
BYTES_AT_ONCE = {"cpu": 2**23, "other": 2**30}
# what is kept of a plain pass
BYTES_KEPT = {"cpu": 2**28, "other": 2**33}

__all__ = ["Contexts", "Knocked", "knock_out_each"]


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


def knock_out_each(
    parts: Anatomy, contexts: Contexts, wanted: Tensor, positions: Positions, max_bytes: int | None = None
) -> Knocked:
    """Return the effect of silencing each wanted head alone.

    Args:
        parts: Anatomy of the model.
        contexts: What to run.
        wanted: Which heads to run for which row, bool `[N, L, H]`.
        positions: Where to silence them.
        max_bytes: How much memory the variants that run side by side may take, roughly, and how much is kept of the
            rows that go together; None chooses by device.

    Raises:
        UnsupportedModel: The layers, run one by one, do not give what the model gives.
    """
    n_rows, n_tracked = contexts.tracked.shape
    shape = (n_rows, parts.n_layers, parts.n_heads)
    dtype = torch.promote_types(parts.model.dtype, torch.float32)
    baseline = torch.full((n_rows, n_tracked), float("nan"), dtype=dtype)
    probs, argmax = torch.full((*shape, n_tracked), float("nan"), dtype=dtype), torch.full(shape, -1)
    wanted = wanted.cpu()
    at_once = max_bytes or BYTES_AT_ONCE[_kind(parts)]
    is_shared = positions == "last" and not is_edited(parts)
    run = last_position if is_shared else partial(from_layer, positions=positions, sharing=Sharing(parts))
    with torch.no_grad():
        for group in _grouped(parts, contexts, max_bytes):
            for where, logits in run(parts, group.contexts, wanted[group.rows], at_once):
                tracked = group.contexts.tracked[where[:, 0].to(contexts.tracked.device)]
                found = logits.softmax(-1).gather(-1, tracked).cpu()
                is_out = where[:, 2] >= 0
                at = torch.cat([group.rows[where[:, :1]], where[:, 1:]], dim=1)
                probs[tuple(at[is_out].T)] = found[is_out]
                argmax[tuple(at[is_out].T)] = logits.argmax(-1).cpu()[is_out]
                baseline[at[~is_out, 0]] = found[~is_out]
    return Knocked(baseline, probs, argmax)


def _kind(parts: Anatomy) -> str:
    return "cpu" if parts.model.device.type == "cpu" else "other"


def _grouped(parts: Anatomy, contexts: Contexts, max_bytes: int | None) -> Iterator[Group]:
    if is_edited(parts):
        yield Group(torch.arange(len(contexts.input_ids)), contexts)
        return
    # a layer's input, its heads' outputs and what its attention gave; or its keys and values, which are no more
    per_token = parts.n_layers * (2 * parts.d_model + parts.n_heads * parts.d_head) * parts.model.dtype.itemsize
    yield from groups(contexts, (max_bytes or BYTES_KEPT[_kind(parts)]) // per_token)
