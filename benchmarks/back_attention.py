"""What back attention costs while decoding: time to first token and time a token, beside 1 + (L - s) / L.

1. One random Llama; a prompt is read (prefill) and tokens are decoded one by one with the model's cache.
2. The plain model and every source layer take turns, `--repeats` times over; medians of processor seconds, which on one
   thread are the wall seconds of a quiet machine.
3. One table: seconds, their ratio to the plain model's, what the formula says, and the ratio of both.

    python benchmarks/back_attention.py
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from chainwright import BackAttention


class Took(NamedTuple):
    """Processor seconds of the prefill, and of one token after it."""

    prefill: float
    token: float


def random_model(args: argparse.Namespace) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=1000,
        hidden_size=args.d_model,
        intermediate_size=4 * args.d_model,
        num_hidden_layers=args.layers,
        num_attention_heads=8,
        num_key_value_heads=8,
        max_position_embeddings=4096,
    )
    return LlamaForCausalLM(config).eval()


@torch.no_grad()
def decode(model: Any, ids: torch.Tensor, n_new: int, attached: AbstractContextManager[Any]) -> Took:
    with attached:
        start = time.process_time()
        out = model(ids, use_cache=True, logits_to_keep=1)
        first = time.process_time()
        for _ in range(n_new):
            token = out.logits[:, -1:].argmax(-1)
            out = model(token, past_key_values=out.past_key_values, use_cache=True)
        end = time.process_time()
    return Took(first - start, (end - first) / n_new)


def measure(args: argparse.Namespace) -> dict[int | None, Took]:
    model = random_model(args)
    ids = torch.randint(0, 1000, (args.rows, args.tokens))
    ways: dict[int | None, Callable[[], AbstractContextManager[Any]]] = {None: nullcontext}
    for source in args.sources:
        repair = BackAttention.new(model, source=source, d_back=args.d_back)
        ways[source] = lambda repair=repair: repair.attached(model)
    runs: dict[int | None, list[Took]] = {name: [] for name in ways}
    decode(model, ids, 2, nullcontext())  # warm
    for _ in range(args.repeats):
        for name, attached in ways.items():
            runs[name].append(decode(model, ids, args.new, attached()))
    return {
        name: Took(statistics.median(t.prefill for t in took), statistics.median(t.token for t in took))
        for name, took in runs.items()
    }


def table(found: dict[int | None, Took], n_layers: int) -> list[str]:
    plain = found[None]
    lines = ["| source | prefill ms | ratio | token ms | ratio | formula | token / formula |", "|" + "---|" * 7]
    for source, took in found.items():
        formula = 1.0 if source is None else 1 + (n_layers - source) / n_layers
        ratio = took.token / plain.token
        lines.append(
            f"| {'none' if source is None else source} | {1000 * took.prefill:.1f} "
            f"| {took.prefill / plain.prefill:.2f} | {1000 * took.token:.2f} | {ratio:.2f} | {formula:.2f} "
            f"| {ratio / formula:.2f} |"
        )
    return lines


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--d-model", type=int, default=512)
    parser.add_argument("--d-back", type=int, default=64)
    parser.add_argument("--rows", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--new", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--sources", type=int, nargs="+", default=[0, 2, 4, 6])
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    print("\n".join(table(measure(args), args.layers)))


if __name__ == "__main__":
    main()
