"""Keys and values of a batch whose rows come and go: selected, padded in front, and joined, layer by layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache

from chainwright._errors import UnsupportedModel
from chainwright.models.anatomy import Anatomy
from chainwright.models.caches import is_appending


def new_cache(parts: Anatomy) -> Any:
    """Return an empty cache of the kind that `generate` makes for the model.

    Raises:
        UnsupportedModel: It holds more than keys and values, so that rows cannot come and go.
    """
    cache = DynamicCache(config=parts.model.config.get_text_config(decoder=True))
    if not is_appending(cache):
        kinds = ", ".join(sorted({type(layer).__name__ for layer in cache.layers}))
        raise UnsupportedModel(
            f"This {parts.model.config.model_type} model caches more than keys and values ({kinds}), so it cannot be "
            "served; decode with chainwright generate."
        )
    return cache


def has_windows(cache: Any) -> bool:
    """Return whether some layers keep the latest tokens alone."""
    return any(layer.is_sliding for layer in cache.layers)


def select(cache: Any, rows: Sequence[int], n_dropped: int) -> None:
    """Keep some rows, without their first `n_dropped` slots, which are padding in all of them."""
    for layer in _filled(cache):
        length = layer.get_seq_length() - n_dropped
        kept = min(length, layer.sliding_window - 1) if layer.is_sliding else length
        at = torch.tensor(list(rows), device=layer.keys.device)
        layer.keys, layer.values = (_tail(t, kept).index_select(0, at) for t in (layer.keys, layer.values))
        _set_length(layer, length)


def join(cache: Any, other: Any) -> None:
    """Put the rows of another cache behind those of `cache`, the shorter of both padded in front."""
    for layer, new in zip(cache.layers, other.layers, strict=True):
        if not layer.is_initialized:
            continue
        length = max(layer.get_seq_length(), new.get_seq_length())
        layer.keys, layer.values = (_joined(a, b) for a, b in ((layer.keys, new.keys), (layer.values, new.values)))
        _set_length(layer, length)


def _filled(cache: Any) -> list[Any]:
    """Return the layers that hold something; some models share those of other layers."""
    return [layer for layer in cache.layers if layer.is_initialized]


def _tail(t: Tensor, n: int) -> Tensor:
    return t[:, :, t.shape[2] - n :]


def _set_length(layer: Any, length: int) -> None:
    if layer.is_sliding:
        layer.cumulative_length = length


def _joined(a: Tensor, b: Tensor) -> Tensor:
    width = max(a.shape[2], b.shape[2])
    out = a.new_zeros(a.shape[0] + b.shape[0], a.shape[1], width, a.shape[3])
    out[: a.shape[0], :, width - a.shape[2] :] = a
    out[a.shape[0] :, :, width - b.shape[2] :] = b
    return out
