"""Logit flow: time and peak memory by number of tokens and layers, beside what the formula says.

1. Every case runs in a process of its own on a random Llama (d_model 1024, 16 heads of 64, 8 key/value heads, MLP 4096,
   vocabulary 32,000, float32).
2. The process notes its peak memory before the work and after it; the difference is what the work took above the model.
3. Beside it stand the formula's parts: what the pass keeps, what tracing adds, and what one chunk of the lens takes.

    python benchmarks/logit_flow.py               # 2 and 4 layers, 64 to 2048 tokens
    python benchmarks/logit_flow.py --quick
    python benchmarks/logit_flow.py --device cuda --size 7b   # 32 layers, d_model 4096, MLP 11008, bfloat16
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

SIZES: dict[str, dict[str, Any]] = {
    "small": {
        "vocab_size": 32_000, "hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 16,
        "num_key_value_heads": 8, "head_dim": 64, "dtype": "float32",
    },
    "7b": {
        "vocab_size": 32_000, "hidden_size": 4096, "intermediate_size": 11_008, "num_attention_heads": 32,
        "num_key_value_heads": 32, "head_dim": 128, "dtype": "bfloat16",
    },
    "tiny": {
        "vocab_size": 500, "hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 16, "dtype": "float32",
    },
}  # fmt: skip
MIB = 2**20


def make_model(size: str, n_layers: int, device: str) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    shape = dict(SIZES[size])
    dtype = getattr(torch, shape.pop("dtype"))
    config = AutoConfig.for_model(
        "llama", **shape, num_hidden_layers=n_layers, max_position_embeddings=8192, tie_word_embeddings=True
    )
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
    return model.requires_grad_(False)


def formula(size: str, n_layers: int, n_tokens: int) -> dict[str, float]:
    """Return the MiB that the pass, the tracing and the lens take, as the page of the method says."""
    s = SIZES[size]
    d, heads, groups, head = (
        s[k] for k in ("hidden_size", "num_attention_heads", "num_key_value_heads", "head_dim")
    )  # fmt: skip
    number = {"float32": 4, "bfloat16": 2}[s["dtype"]]
    rows = max(1, min(2**26 // s["vocab_size"], 4096))
    return {
        "pass": number * n_layers * n_tokens * (5 * d + (2 * heads + 2 * groups) * head) / MIB,
        "tracing": number * n_layers * n_tokens * 2 * d / MIB,
        # logits and log-probabilities in float32, and the logits as the model gives them where they are rounded
        "lens": rows * s["vocab_size"] * (2 * 4 + (number if number < 4 else 0)) / MIB,
    }


def run_one(size: str, n_layers: int, n_tokens: int, device: str, threads: int) -> dict[str, float]:
    torch.set_num_threads(threads)
    from chainwright import logit_flow
    from chainwright.models import anatomy
    from chainwright.models.writers import feed_forwards

    model = make_model(size, n_layers, device)
    ids = torch.randint(3, SIZES[size]["vocab_size"], (n_tokens,), generator=torch.Generator().manual_seed(n_tokens))
    ids = ids.to(device)
    feed_forwards(anatomy(model))  # what is made once (the model's anatomy, kernels) is not part of it
    before = peak_mib(device)
    wall, cpu = time.perf_counter(), time.process_time()
    logit_flow(model, ids, 7)
    return {
        "seconds": time.perf_counter() - wall,
        "cpu_seconds": time.process_time() - cpu,
        "mib": peak_mib(device) - before,
        "model_mib": sum(p.numel() * p.element_size() for p in model.parameters()) / MIB,
    }


def peak_mib(device: str) -> float:
    """Return the most memory that this process had, on a GPU the most since the last call."""
    if device != "cpu":
        torch.cuda.synchronize()
        most = torch.cuda.max_memory_allocated() / MIB
        torch.cuda.reset_peak_memory_stats()
        return most
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def run_all(size: str, layers: list[int], lengths: list[int], device: str, threads: int) -> list[dict[str, Any]]:
    rows = []
    for n_layers in layers:
        for n_tokens in lengths:
            command = [sys.executable, __file__, "--one", "--size", size, "--device", device]
            command += ["--layers", str(n_layers), "--lengths", str(n_tokens), "--threads", str(threads)]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            found = json.loads(done.stdout.splitlines()[-1])
            rows.append({"layers": n_layers, "tokens": n_tokens, **found, **formula(size, n_layers, n_tokens)})
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    names = ("layers", "tokens", "seconds", "cpu s", "model MiB", "above it", "formula", "pass", "tracing", "lens")
    lines = [" ".join(f"{name:>9}" for name in names)]
    for row in rows:
        said = row["pass"] + row["tracing"] + row["lens"]
        numbers = [row["seconds"], row["cpu_seconds"], row["model_mib"], row["mib"], said]
        cells = [f"{value:9.1f}" for value in (*numbers, row["pass"], row["tracing"], row["lens"])]
        lines.append(" ".join([f"{row['layers']:9d}", f"{row['tokens']:9d}", *cells]))
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=sorted(SIZES), default="small")
    parser.add_argument("--layers", type=int, nargs="+", default=None)
    parser.add_argument("--lengths", type=int, nargs="+", default=None)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="a tiny model, to see that it runs")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    size = "tiny" if asked.quick else asked.size
    layers = asked.layers or ([32] if size == "7b" else [2, 4])
    lengths = asked.lengths or ([16, 32] if size == "tiny" else [64, 512, 2048])
    if asked.one:
        print(json.dumps(run_one(size, layers[0], lengths[0], asked.device, asked.threads)))
        return
    print(table(run_all(size, layers, lengths, asked.device, asked.threads)))


if __name__ == "__main__":
    main()
