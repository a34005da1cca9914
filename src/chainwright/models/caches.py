"""Caches of keys and values: what a model calls them, and which can be shared between rows without copying them.

Transformers calls a model's cache `cache` from release 5.24 on, and `past_key_values` before. A model of someone's own
may have the old name under the new release, so its own signature decides.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import transformers
from packaging.version import Version
from torch import nn
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

_OLD, _NEW = "past_key_values", "cache"
_USUAL = _OLD if Version(transformers.__version__) < Version("5.24.dev0") else _NEW


def passed_cache(arguments: Mapping[str, Any]) -> Any:
    """Return the cache among the named arguments of a forward pass, or None."""
    cache = arguments.get(_NEW)
    return arguments.get(_OLD) if cache is None else cache


def returned_cache(output: Any) -> Any:
    """Return the cache in what a model returned, or None."""
    cache = getattr(output, _NEW, None)
    return getattr(output, _OLD, None) if cache is None else cache


def with_cache(model: nn.Module, cache: Any) -> dict[str, Any]:
    """Return the argument, by its name, that hands a model its cache."""
    return {_name_for(type(model).forward): cache}


@lru_cache
def _name_for(forward: Callable[..., Any]) -> str:
    taken = inspect.signature(forward).parameters
    return next((name for name in (_NEW, _OLD) if name in taken), _USUAL)


def is_appending(cache: Any) -> bool:
    """Return whether a cache holds keys and values only, and appends new ones without writing in place.

    Its tensors may then be views of another cache's: a step makes new tensors and leaves the shared ones alone. Caches
    of other kinds (static, quantised, of state-space layers) write in place or hold more.
    """
    kinds = (DynamicLayer, DynamicSlidingWindowLayer)
    return type(cache) is DynamicCache and all(type(layer) in kinds for layer in cache.layers)
