"""What back attention costs while decoding: time to first token and time per token, compared with 1 + (L - s) / L.

1. One random Llama; a prompt is read (prefill) and tokens are decoded one by one with the model's cache.
2. The plain model and every source layer take turns; medians of processor seconds, which on one thread are the wall
   seconds of a quiet machine.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from chainwright.models.caches import returned_cache, with_cache
from chainwright.repair.back_attention.repair import D_BACK, BackAttention


@dataclass(frozen=True)
class CostSettings:
    """The random model, the prompt, and how often each way is measured."""

    layers: int = 8
    d_model: int = 512
    d_back: int = D_BACK
    rows: int = 1
    tokens: int = 256
    new: int = 16
    repeats: int = 3
    sources: Sequence[int] = (0, 2, 4, 6)


class Took(NamedTuple):
    """Processor seconds of the prefill, and of one token after it."""

    prefill: float
    token: float


def back_cost(settings: CostSettings) -> list[dict[str, Any]]:
    """Return a row for the plain model and each source layer: milliseconds, ratios to the plain model, the formula.

    Runs on one thread, and restores the number of threads.
    """
    with _one_thread():
        found = _measured(settings)
    plain = found[None]
    rows = []
    for source, took in found.items():
        formula = 1.0 if source is None else 1 + (settings.layers - source) / settings.layers
        ratio = took.token / plain.token
        rows.append(
            {
                "source": "none" if source is None else source,
                "prefill ms": 1000 * took.prefill,
                "prefill ratio": took.prefill / plain.prefill,
                "token ms": 1000 * took.token,
                "token ratio": ratio,
                "formula": formula,
                "token / formula": ratio / formula,
            }
        )
    return rows


def token_ratio(model: Any, repair: BackAttention, *, n_read: int, n_new: int, repeats: int) -> float:
    """Return the processor time of a decoded token with a repair, relative to the model alone.

    Medians over `repeats` turns, after a prompt of `n_read` random tokens; runs on one thread.
    """
    n_tokens = model.get_input_embeddings().num_embeddings
    ids = torch.randint(0, n_tokens, (1, n_read), generator=torch.Generator().manual_seed(0))
    plain, repaired = [], []
    with _one_thread():
        _decode(model, ids, 2, nullcontext())  # warm
        for _ in range(repeats):
            plain.append(_decode(model, ids, n_new, nullcontext()).token)
            repaired.append(_decode(model, ids, n_new, repair.attached(model)).token)
    return statistics.median(repaired) / statistics.median(plain)


def _measured(settings: CostSettings) -> dict[int | None, Took]:
    model = _random_model(settings)
    ids = torch.randint(0, 1000, (settings.rows, settings.tokens), generator=torch.Generator().manual_seed(0))
    ways: dict[int | None, Callable[[], AbstractContextManager[Any]]] = {None: nullcontext}
    for source in settings.sources:
        repair = BackAttention.new(model, source=source, targets="stack", d_back=settings.d_back)
        ways[source] = lambda repair=repair: repair.attached(model)  # type: ignore[misc]
    runs: dict[int | None, list[Took]] = {name: [] for name in ways}
    _decode(model, ids, 2, nullcontext())  # warm
    for _ in range(settings.repeats):
        for name, attached in ways.items():
            runs[name].append(_decode(model, ids, settings.new, attached()))
    return {
        name: Took(statistics.median(t.prefill for t in took), statistics.median(t.token for t in took))
        for name, took in runs.items()
    }


def _random_model(settings: CostSettings) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=1000,
        hidden_size=settings.d_model,
        intermediate_size=4 * settings.d_model,
        num_hidden_layers=settings.layers,
        num_attention_heads=8,
        num_key_value_heads=8,
        max_position_embeddings=4096,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return LlamaForCausalLM(config).eval()


@torch.no_grad()
def _decode(model: Any, ids: torch.Tensor, n_new: int, attached: AbstractContextManager[Any]) -> Took:
    with attached:
        start = time.process_time()
        out = model(ids, use_cache=True, logits_to_keep=1)
        first = time.process_time()
        for _ in range(n_new):
            token = out.logits[:, -1:].argmax(-1)
            out = model(token, **with_cache(model, returned_cache(out)), use_cache=True)
        end = time.process_time()
    return Took(first - start, (end - first) / n_new)


@contextmanager
def _one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
