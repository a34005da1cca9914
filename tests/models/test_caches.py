"""Which caches may be shared between rows."""

import torch
from transformers import DynamicCache, StaticCache

from chainwright.models.caches import is_appending
from families import random_ids, tiny


@torch.no_grad()
def test_the_default_cache_appends_and_a_static_one_does_not() -> None:
    for family in ("llama", "mistral"):
        model = tiny(family)
        cache = model(input_ids=random_ids(1, 8), use_cache=True).past_key_values
        assert is_appending(cache)
        before = cache.layers[0].keys
        copy = before.clone()
        model(input_ids=random_ids(1, 1), past_key_values=cache)
        assert cache.layers[0].keys is not before and torch.equal(before, copy)
    assert not is_appending(StaticCache(config=tiny("llama").config, max_cache_len=16))
    assert not is_appending(None) and is_appending(DynamicCache())
