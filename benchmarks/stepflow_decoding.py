"""Decoding with StepFlow beside the same model without it: processor seconds a token at a long context.

A random Llama (8 layers, 8 heads, 2 for keys and values, d_model 512, float32, one thread) reads a prompt and writes
tokens, greedily, one row. Ways take turns, so that what else runs on the machine falls on both.

    python benchmarks/stepflow_decoding.py                    # 2048 tokens of context, 64 new ones, 5 turns
"""

from __future__ import annotations

import argparse
import statistics
import time
from contextlib import nullcontext
from typing import Any

import torch

from chainwright import StepFlow

WAYS = {
    "plain": None,
    "attached, idle": StepFlow((), ()),
    "bridge": StepFlow(None, (), 0.15),
    "momentum": StepFlow((), None),
    "both": StepFlow(None, None, 0.15),
}


class Words:
    """A tokenizer in which every id is a word, and one in eight ends a line."""

    all_special_ids = (0, 1, 2)

    def decode(self, ids: list[int], **options: Any) -> str:
        return "".join("\n" if i % 8 == 0 else f"word{i} " for i in ids)

    def convert_tokens_to_ids(self, token: str) -> None:
        return None

    def convert_ids_to_tokens(self, token_id: int) -> str:
        return f"word{token_id}"


def make_model(n_slots: int) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    config = AutoConfig.for_model(
        "llama",
        vocab_size=4096,
        hidden_size=512,
        intermediate_size=1536,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=2,
        max_position_embeddings=n_slots,
    )
    return AutoModelForCausalLM.from_config(config).eval()


def seconds_a_token(model: Any, prompt: torch.Tensor, repair: StepFlow | None, n_new: int) -> tuple[float, float]:
    """Return wall and processor seconds a token after the first, the prefill left out."""
    options = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0, "attention_mask": torch.ones_like(prompt)}
    marks: list[tuple[float, float]] = []
    handle = model.register_forward_hook(lambda *_: marks.append((time.perf_counter(), time.process_time())))
    try:
        with nullcontext() if repair is None else repair.attached(model):
            model.generate(prompt, max_new_tokens=n_new + 1, **options)
    finally:
        handle.remove()
    (wall, cpu), (wall_end, cpu_end) = marks[0], marks[-1]
    return (wall_end - wall) / n_new, (cpu_end - cpu) / n_new


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--context", type=int, default=2048)
    parser.add_argument("--new", type=int, default=64)
    parser.add_argument("--turns", type=int, default=5)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    model = make_model(asked.context + asked.new + 8)
    prompt = torch.randint(3, 4096, (1, asked.context), generator=torch.Generator().manual_seed(1))
    for repair in WAYS.values():
        if repair is not None:
            repair.tokenizer = Words()  # type: ignore[assignment]
    took: dict[str, list[tuple[float, float]]] = {way: [] for way in WAYS}
    for _ in range(asked.turns):
        for way, repair in WAYS.items():
            took[way].append(seconds_a_token(model, prompt, repair, asked.new))
    plain = statistics.median(cpu for _, cpu in took["plain"])
    print(f"{'way':16} {'ms a token':>10} {'CPU ms':>8} {'CPU x plain':>11} {'changed':>8}")
    for way, times in took.items():
        wall, cpu = (statistics.median(column) for column in zip(*times, strict=True))
        changed = "" if WAYS[way] is None else str(WAYS[way].cost.n_changed)
        print(f"{way:16} {1000 * wall:10.2f} {1000 * cpu:8.2f} {cpu / plain:11.3f} {changed:>8}")


if __name__ == "__main__":
    main()
