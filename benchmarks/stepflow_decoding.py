"""Decoding with StepFlow beside the same model without it: processor seconds a token at a long context.

A random Llama (8 layers, 8 heads, 2 for keys and values, d_model 512, float32, one thread) reads a prompt and writes
tokens, greedily, one row; all but 64 tokens of the prompt count as thinking, so that the bridge has work to do. Ways
take turns, and the least of each is shown: what else runs on the machine only adds.

    python benchmarks/stepflow_decoding.py                    # 2048 tokens of context, 64 new ones, 5 turns
"""

from __future__ import annotations

import argparse
import time
from contextlib import nullcontext
from typing import Any

import torch

from chainwright import Bridge, LiveSteps, Momentum, edit


class Words:
    """A tokenizer in which every id is a word, and one in eight ends a line."""

    all_special_ids = (0, 1, 2)

    def decode(self, ids: list[int], **options: Any) -> str:
        return "".join("\n" if i % 8 == 0 else f"word{i} " for i in ids)

    def convert_tokens_to_ids(self, token: str) -> None:
        return None

    def convert_ids_to_tokens(self, token_id: int) -> str:
        return f"word{token_id}"


N_QUESTION = 64
HOW = {"steps": LiveSteps(Words(), "plain"), "n_question": (N_QUESTION,)}  # type: ignore[arg-type]
BRIDGE, MOMENTUM = Bridge((0, 1), tau_max=0.15, **HOW), Momentum((6, 7), **HOW)
WAYS: dict[str, tuple[Any, ...]] = {
    "plain": (),
    "attached, idle": (Bridge((0, 1), tau_max=0.0, **HOW),),
    "bridge": (BRIDGE,),
    "momentum": (MOMENTUM,),
    "both": (BRIDGE, MOMENTUM),
}


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


def seconds_a_token(model: Any, prompt: torch.Tensor, edits: tuple[Any, ...], n_new: int) -> tuple[float, float, int]:
    """Return wall and processor seconds and sites a token after the first, the prefill left out."""
    options = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0, "attention_mask": torch.ones_like(prompt)}
    marks: list[tuple[float, float]] = []
    sites: list[int] = []
    with edit(model, *edits, strict=False) if edits else nullcontext([]) as counts:

        def mark(*_: object) -> None:
            sites.append(sum(one.n_sites for one in counts))
            marks.append((time.perf_counter(), time.process_time()))

        handle = model.register_forward_hook(mark)
        try:
            model.generate(prompt, max_new_tokens=n_new + 1, **options)
        finally:
            handle.remove()
    (wall, cpu), (wall_end, cpu_end) = marks[0], marks[-1]
    return (wall_end - wall) / n_new, (cpu_end - cpu) / n_new, sites[-1] - sites[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--context", type=int, default=2048)
    parser.add_argument("--new", type=int, default=64)
    parser.add_argument("--turns", type=int, default=5)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    model = make_model(asked.context + asked.new + 8)
    prompt = torch.randint(3, 4096, (1, asked.context), generator=torch.Generator().manual_seed(1))
    prompt[0, N_QUESTION::8] = 8  # lines
    took: dict[str, list[tuple[float, float, int]]] = {way: [] for way in WAYS}
    for _ in range(asked.turns):
        for way, edits in WAYS.items():
            took[way].append(seconds_a_token(model, prompt, edits, asked.new))
    plain = min(cpu for _, cpu, _ in took["plain"])
    print(f"{'way':16} {'ms a token':>10} {'CPU ms':>8} {'CPU x plain':>11} {'changed':>8}")
    for way, times in took.items():
        wall, cpu, _ = (min(column) for column in zip(*times, strict=True))
        changed = times[-1][2]
        print(f"{way:16} {1000 * wall:10.2f} {1000 * cpu:8.2f} {cpu / plain:11.3f} {changed:>8}")


if __name__ == "__main__":
    main()
