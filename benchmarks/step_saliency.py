"""Step maps of one long trace: eager attention with retained gradients beside Chainwright, time and peak memory.

1. Every (way, length) runs in a process of its own on the same random Llama (8 heads, d_model 256).
2. The process notes its peak memory before the work and after it; the difference is what the work took above the model.
3. One table: seconds, seconds of processor time, MiB above the model, the ratio of both, and the largest relative
   difference of the maps.

    python benchmarks/step_saliency.py                 # 1k to 16k tokens
    python benchmarks/step_saliency.py --quick         # 256 and 512
    python benchmarks/step_saliency.py --layers 2 --lengths 2048
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

EAGER, OURS = "eager + retain_grad", "Chainwright"
LENGTHS = (1024, 2048, 4096, 8192, 16384)
EAGER_AT_MOST = 4096  # beyond it the full matrices do not fit in 8 GB
TOKENS_A_STEP = 24


def make_model(n_layers: int) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    config = AutoConfig.for_model(
        "llama",
        vocab_size=4096,
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=n_layers,
        num_attention_heads=8,
        max_position_embeddings=max(LENGTHS),
    )
    return AutoModelForCausalLM.from_config(config).eval()


def make_trace(n_tokens: int) -> tuple[Tensor, list[tuple[int, int]]]:
    ids = torch.randint(3, 4096, (n_tokens,), generator=torch.Generator().manual_seed(n_tokens))
    return ids, [(i, min(i + TOKENS_A_STEP, n_tokens)) for i in range(0, n_tokens, TOKENS_A_STEP)]


def eager(model: Any, ids: Tensor, steps: list[tuple[int, int]]) -> Tensor:
    """Return the step maps, the way in which one writes them down: keep every weight and its gradient."""
    model.set_attn_implementation("eager")
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    embedded = model.get_input_embeddings()(ids[None]).requires_grad_()
    out = model(inputs_embeds=embedded, output_attentions=True, use_cache=False)
    for weights in out.attentions:
        weights.retain_grad()
    torch.nn.functional.cross_entropy(out.logits[0, :-1], ids[1:]).backward()
    of_token = torch.cat([torch.full((b - a,), i) for i, (a, b) in enumerate(steps)])
    chosen = torch.nn.functional.one_hot(of_token).float()
    chosen = chosen / chosen.sum(0)
    maps = []
    for weights in out.attentions:
        influence = (weights.detach() * weights.grad)[0].abs().mean(0)
        maps.append(chosen.T @ influence @ chosen)
    return torch.stack(maps)


def ours(model: Any, ids: Tensor, steps: list[tuple[int, int]]) -> Tensor:
    from chainwright import step_saliency

    return step_saliency(model, (ids, steps)).map


def run_one(way: str, n_tokens: int, folder: Path, threads: int, n_layers: int) -> None:
    torch.set_num_threads(threads)
    import chainwright.diagnose.steps.saliency  # noqa: F401  # imports are not part of the work

    model, (ids, steps) = make_model(n_layers), make_trace(n_tokens)
    run = {EAGER: eager, OURS: ours}[way]
    run(model, *make_trace(64))  # what is made once (kernels, the model's anatomy) is not part of it either
    before = peak_mib()
    wall, cpu = time.perf_counter(), time.process_time()
    maps = run(model, ids, steps)
    measured = {
        "seconds": time.perf_counter() - wall,
        "cpu_seconds": time.process_time() - cpu,
        "mib": peak_mib() - before,
    }
    save_file({"maps": maps.contiguous()}, folder / f"{way}-{n_tokens}.safetensors")
    (folder / f"{way}-{n_tokens}.json").write_text(json.dumps(measured))


def peak_mib() -> float:
    """Return the most memory that this process had; `ru_maxrss` would count its parent's, from before the exec."""
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def run_all(lengths: list[int], folder: Path, threads: int, n_layers: int = 4) -> list[dict[str, Any]]:
    rows = []
    for n_tokens in lengths:
        for way in (EAGER, OURS):
            if way == EAGER and n_tokens > EAGER_AT_MOST:
                continue
            command = [sys.executable, __file__, "--one", way, "--lengths", str(n_tokens), "--folder", str(folder)]
            subprocess.run([*command, "--threads", str(threads), "--layers", str(n_layers)], check=True)
            rows.append({"way": way, "n": n_tokens, **json.loads((folder / f"{way}-{n_tokens}.json").read_text())})
    return rows


def table(rows: list[dict[str, Any]], folder: Path) -> str:
    lines = [f"{'tokens':>6} {'way':20} {'seconds':>9} {'CPU s':>8} {'MiB':>8} {'time':>6} {'memory':>7} {'off':>8}"]
    plain = {row["n"]: row for row in rows if row["way"] == EAGER}
    for row in rows:
        text = f"{row['n']:>6} {row['way']:20} {row['seconds']:9.2f} {row['cpu_seconds']:8.2f} {row['mib']:8.0f}"
        if row["way"] == OURS and row["n"] in plain:
            base = plain[row["n"]]
            got, want = (load_file(folder / f"{way}-{row['n']}.safetensors")["maps"] for way in (OURS, EAGER))
            off = float((got - want).abs().max() / want.abs().max())
            text += f" {row['cpu_seconds'] / base['cpu_seconds']:6.2f} {row['mib'] / base['mib']:7.3f} {off:8.1e}"
        lines.append(text)
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", type=int, nargs="+", default=list(LENGTHS))
    parser.add_argument("--quick", action="store_true", help="256 and 512 tokens")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--one", choices=(EAGER, OURS), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.one:
        run_one(asked.one, asked.lengths[0], asked.folder, asked.threads, asked.layers)
        return
    with tempfile.TemporaryDirectory() as folder:
        lengths = [256, 512] if asked.quick else asked.lengths
        print(table(run_all(lengths, Path(folder), asked.threads, asked.layers), Path(folder)))


if __name__ == "__main__":
    main()
