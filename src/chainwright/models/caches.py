"""Which caches of keys and values can be shared between rows without copying them."""

from __future__ import annotations

from typing import Any

from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer


def is_appending(cache: Any) -> bool:
    """Return whether a cache holds keys and values only, and appends new ones without writing in place.

    Its tensors may then be views of another cache's: a step makes new tensors and leaves the shared ones alone. Caches
    of other kinds (static, quantised, of state-space layers) write in place or hold more.
    """
    kinds = (DynamicLayer, DynamicSlidingWindowLayer)
    return type(cache) is DynamicCache and all(type(layer) in kinds for layer in cache.layers)
