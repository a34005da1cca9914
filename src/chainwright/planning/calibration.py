"""Two times that only a small model can tell on a processor: starting one layer, and reading a text that is written."""

from __future__ import annotations

import torch
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache

from chainwright.models.caches import with_cache
from chainwright.models.load import load_tokenizer
from chainwright.planning.clock import Clock, usual_seconds
from chainwright.traces.live import LiveSteps

_N_LAYERS, _WIDTH = 8, 32


def layer_seconds(clock: Clock) -> float:
    """Return the seconds that one layer takes to start: a decoding step of a model too small to take any by itself."""
    config = AutoConfig.for_model(
        "llama",
        vocab_size=64,
        hidden_size=_WIDTH,
        intermediate_size=_WIDTH,
        num_hidden_layers=_N_LAYERS,
        num_attention_heads=4,
        max_position_embeddings=64,
    )
    model = AutoModelForCausalLM.from_config(config).eval()
    ids = torch.ones(1, 1, dtype=torch.long)

    def step() -> None:
        with torch.no_grad():
            model(input_ids=ids, **with_cache(model, DynamicCache(config=config)), use_cache=True)

    return usual_seconds(step, clock) / _N_LAYERS


def text_seconds(clock: Clock) -> float:
    """Return the seconds of reading one written token into segments and steps."""
    tokenizer = load_tokenizer("reasoner")
    ids = tokenizer("start 1 \n + 2 : 3 \n answer 3", add_special_tokens=False)["input_ids"] * 16
    how = LiveSteps(tokenizer)

    def read() -> None:
        row = how.row(1)
        for i in ids:
            row.extend([i])

    return usual_seconds(read, clock) / len(ids)
