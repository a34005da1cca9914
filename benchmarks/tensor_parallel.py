"""A model in one process beside the same model in several ranks: what they find, and what it costs.

1. A random Llama with grouped heads is run in one process on one thread, and in N ranks (gloo, on this machine) of one
   thread each.
2. Each way times decoding (plain, with heads knocked out, with StepFlow's bridge), a capture, a sweep of single-head
   knockouts and a step map. The ways take turns, round after round; printed are medians of wall seconds, the ratio of
   one process to the ranks, and the largest difference of what they returned, relative to its largest number. The last
   line has the weights that one process and a rank hold.

    python benchmarks/tensor_parallel.py                    # two ranks
    python benchmarks/tensor_parallel.py --quick            # a tiny model and one round
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

SIZES = {
    "usual": {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 6, "vocab_size": 8192},
    "quick": {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "vocab_size": 61},
}
N_TOKENS = {"usual": 64, "quick": 24}
N_NEW = {"usual": 16, "quick": 4}


def save_model(folder: Path, size: str) -> None:
    """Save a random model."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        **SIZES[size], num_attention_heads=16, num_key_value_heads=4, eos_token_id=None, bos_token_id=None
    )
    LlamaForCausalLM(config).save_pretrained(folder)


def load(folder: str) -> Any:
    """Return the model, spread over the ranks if this process is one."""
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.distributed import DistributedConfig

    torch.set_num_threads(1)
    spread = {"distributed_config": DistributedConfig(tp_plan="auto")} if "RANK" in os.environ else {}
    return AutoModelForCausalLM.from_pretrained(folder, **spread).eval()


def works(model: Any, size: str) -> dict[str, Callable[[], Any]]:
    """Return what is timed, by name; each returns a tensor."""
    import torch

    from chainwright import KnockOut, capture, edit, knockout_effects, step_saliency
    from chainwright.edits import Bridge
    from chainwright.traces import LiveSteps, Span

    n_tokens, n_new = N_TOKENS[size], N_NEW[size]
    vocabulary = SIZES[size]["vocab_size"]
    ids = torch.randint(9, vocabulary, (2, n_tokens), generator=torch.Generator().manual_seed(1))
    ids[:, -1] = 6  # thinking begins

    def decode(*edits: Any) -> Any:
        with edit(model, *edits):
            out = model.generate(
                ids, max_new_tokens=n_new, do_sample=False, output_logits=True, return_dict_in_generate=True
            )
        return torch.stack(out.logits)

    class Words:
        all_special_ids = ()

        def decode(self, ids: list[int], **_: object) -> str:
            return " ".join(map(self.convert_ids_to_tokens, ids))

        def convert_tokens_to_ids(self, token: str) -> int | None:
            return {"</think>": 5, "<think>": 6}.get(token)

        def convert_ids_to_tokens(self, token_id: int) -> str:
            return {5: "</think>", 6: "<think>"}.get(token_id, f"w{token_id}")

    bridge = Bridge(range(SIZES[size]["num_hidden_layers"]), LiveSteps(Words(), "think"), 0.9)
    quarter = n_tokens // 4
    steps = [Span(i * quarter, (i + 1) * quarter) for i in range(4)]
    return {
        "decode": decode,
        "decode, 4 heads out": lambda: decode(KnockOut({(0, 1), (1, 9), (2, 14), (2, 3)})),
        "decode, bridge": lambda: decode(bridge),
        "capture z": lambda: capture(model, ids).z,
        "head sweep": lambda: knockout_effects(model, ids, torch.tensor([11, 12])).effect,
        "step map": lambda: step_saliency(model, (ids[0], steps)).map,
    }


def worker(folder: str, size: str, out: str) -> None:
    """Run all works once whenever a line is read, until the input ends; write seconds and results."""
    import torch

    model = load(folder)
    each = works(model, size)
    is_first = int(os.environ.get("RANK", 0)) == 0
    for i, line in enumerate(sys.stdin):
        seconds, results = {}, {}
        for name, work in each.items():
            start = time.perf_counter()
            results[name] = work().detach().float()
            seconds[name] = time.perf_counter() - start
        if is_first:
            torch.save(results, Path(out) / f"{line.strip()}-{i}.pt")
            print(json.dumps({**seconds, "MiB": held(model)}), flush=True)


def held(model: Any) -> float:
    """Return the MiB of weights in this process."""
    from chainwright.models.sharding import is_spread

    own = (weight.to_local() if is_spread(weight) else weight for weight in model.parameters())
    return sum(weight.numel() * weight.element_size() for weight in own) / 2**20


def started(folder: Path, size: str, n_ranks: int) -> list[subprocess.Popen[str]]:
    """Start the ranks, or one plain process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    group = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(n_ranks)}
    command = [sys.executable, __file__, "--worker", str(folder), "--size", size]
    found = []
    for rank in range(n_ranks):
        own = {**group, "RANK": str(rank), "LOCAL_RANK": str(rank)} if n_ranks > 1 else {}
        found.append(
            subprocess.Popen(
                command,
                env={**os.environ, "OMP_NUM_THREADS": "1", **own},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL if rank else None,
                text=True,
            )
        )
    return found


class Measured(NamedTuple):
    """A row per work (seconds either way, their ratio, the largest difference), and the MiB that each way holds."""

    rows: list[dict[str, Any]]
    mib: dict[str, float]


def measure(size: str, n_ranks: int, n_rounds: int) -> Measured:
    """Run both ways by turns."""
    import torch

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_model(folder, size)
        ways = {"one": started(folder, size, 1), "ranks": started(folder, size, n_ranks)}
        seconds: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
        for i in range(n_rounds + 1):  # the first round finds the models' parts
            for way, processes in ways.items():
                for process in processes:
                    assert process.stdin is not None
                    process.stdin.write(f"{way}\n")
                    process.stdin.flush()
                assert processes[0].stdout is not None
                line = processes[0].stdout.readline()
                assert line, f"{way} ended early"
                seconds[way] += [json.loads(line)] if i else []
        results = {way: torch.load(folder / f"{way}-{n_rounds}.pt") for way in ways}
        for processes in ways.values():
            for process in processes:
                process.communicate()
    mib = {way: each[-1]["MiB"] for way, each in seconds.items()}
    return Measured([_row(name, seconds, results) for name in results["one"]], mib)


def _row(name: str, seconds: dict[str, list[dict[str, float]]], results: dict[str, Any]) -> dict[str, Any]:
    one, ranks = (statistics.median(each[name] for each in seconds[way]) for way in ("one", "ranks"))
    want, got = results["one"][name], results["ranks"][name]
    off = float((want - got).abs().max() / want.abs().max())
    return {"work": name, "one s": one, "ranks s": ranks, "x one": one / ranks, "differs": off}


def table(found: Measured) -> str:
    """Return what was measured as text."""
    lines = [f"{'work':22}{'one s':>8}{'ranks s':>9}{'x one':>7}{'differs':>10}"]
    for row in found.rows:
        numbers = f"{row['one s']:8.3f}{row['ranks s']:9.3f}{row['x one']:7.2f}{row['differs']:10.1e}"
        lines.append(f"{row['work']:22}{numbers}")
    lines.append(f"weights held, MiB: {found.mib['one']:.1f} in one process, {found.mib['ranks']:.1f} in a rank")
    return "\n".join(lines)


def main() -> None:
    """Run the benchmark and print its table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--size", default="usual", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        worker(args.worker, args.size, args.worker)
        os._exit(0)  # gloo's threads may still run
    size = "quick" if args.quick else "usual"
    print(table(measure(size, args.ranks, 1 if args.quick else args.rounds)))


if __name__ == "__main__":
    main()
