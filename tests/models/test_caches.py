"""What models call their cache, and which caches may be shared between rows."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from transformers import DynamicCache, StaticCache

from chainwright.models.caches import is_appending, passed_cache, returned_cache, with_cache
from families import random_ids, tiny


@torch.no_grad()
def test_the_default_cache_appends_and_a_static_one_does_not() -> None:
    for family in ("llama", "mistral"):
        model = tiny(family)
        output = model(input_ids=random_ids(1, 8), use_cache=True)
        cache = returned_cache(output)
        assert is_appending(cache)
        before = cache.layers[0].keys
        copy = before.clone()
        model(input_ids=random_ids(1, 1), **with_cache(model, cache))
        assert cache.layers[0].keys is not before and torch.equal(before, copy)
    assert not is_appending(StaticCache(config=tiny("llama").config, max_cache_len=16))
    assert not is_appending(None) and is_appending(DynamicCache())


class OldName(nn.Module):
    def forward(self, input_ids: Any, past_key_values: Any = None) -> Any:
        return SimpleNamespace(past_key_values=past_key_values)


class NewName(nn.Module):
    def forward(self, input_ids: Any, cache: Any = None) -> Any:
        return SimpleNamespace(cache=cache)


@pytest.mark.parametrize(("model", "name"), [(OldName(), "past_key_values"), (NewName(), "cache")])
def test_a_cache_is_found_under_either_name(model: nn.Module, name: str) -> None:
    """Transformers renamed it in 5.24; models of other people have the name that they were written with."""
    cache = DynamicCache()
    argument = with_cache(model, cache)
    assert list(argument) == [name] and passed_cache(argument) is cache
    assert returned_cache(model(None, **argument)) is cache
    assert passed_cache({"input_ids": None}) is None and returned_cache(model(None)) is None
