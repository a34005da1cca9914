"""A single-head knockout sweep of one random Llama, done with plain hooks, with other tools, and with Chainwright.

1. One random model and its rows are saved to a folder.
2. Each way runs in a process of its own, which loads them, does the sweep once and saves `[N, L, H]` effects, the
   processor and wall seconds and the peak memory of the process. Ways take turns, `--repeats` times over.
3. One table: median seconds, ratios, memory, and the largest disagreement with plain hooks. Ratios are of processor
   seconds: on one thread they are the wall seconds of a quiet machine, and other work on it changes them less.
4. A second table says how well the estimates find a row's ten largest exact effects: in the model that is timed, in
   the same one as the library initialises it, and in the bundled trained reasoner on its own tasks.

A way that cannot run stands in the table with the reason.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

PLAIN, PLAIN_CUT, PLAIN_LAST = "plain hooks", "plain hooks, one position unembedded", "plain hooks, last position"
OTHERS = ("TransformerLens", "nnsight", "pyvene")
BASELINES = (PLAIN, PLAIN_CUT, *OTHERS)
EXACT, LAST, GRADIENT = "Chainwright exact", "Chainwright last position", "Chainwright gradient"
SHARES = (0.05, 0.25)
SCREENED = tuple(f"Chainwright screened {share}" for share in SHARES)
WAYS = (*BASELINES, PLAIN_LAST, EXACT, LAST, GRADIENT, *SCREENED)
# the fastest of the other tools, and of everything else
RIVALS = {"tool": OTHERS, "any": BASELINES}


def heads_of(model: Any) -> list[tuple[int, int]]:
    config = model.config
    return [(i, j) for i in range(config.num_hidden_layers) for j in range(config.num_attention_heads)]


def effects(model: Any, tokens: Tensor, baseline: Tensor, last_logits: Callable[[int, int], Tensor]) -> Tensor:
    """Return `[N, L, H]` from a function that gives the last position's logits without one head."""
    config = model.config
    out = torch.empty(len(tokens), config.num_hidden_layers, config.num_attention_heads)
    base = baseline.softmax(-1).gather(-1, tokens[:, None])[:, 0]
    for layer, head in heads_of(model):
        out[:, layer, head] = base - last_logits(layer, head).softmax(-1).gather(-1, tokens[:, None])[:, 0]
    return out


@torch.no_grad()
def plain(model: Any, ids: Tensor, tokens: Tensor, *, cut: bool = False, last: bool = False) -> Tensor:
    size = model.config.head_dim
    options = {"use_cache": False} | ({"logits_to_keep": 1} if cut else {})

    def without(layer: int, head: int) -> Tensor:
        def zero(module: Any, args: tuple[Tensor]) -> tuple[Tensor]:
            z = args[0].clone()
            z[:, -1 if last else slice(None), head * size : (head + 1) * size] = 0
            return (z,)

        handle = model.model.layers[layer].self_attn.o_proj.register_forward_pre_hook(zero)
        try:
            return model(ids, **options).logits[:, -1]
        finally:
            handle.remove()

    return effects(model, tokens, model(ids, **options).logits[:, -1], without)


@torch.no_grad()
def with_transformer_lens(model: Any, ids: Tensor, tokens: Tensor) -> Tensor:
    from transformer_lens.model_bridge.sources import build_bridge_from_module

    bridge = build_bridge_from_module(model, "LlamaForCausalLM", hf_config=model.config)

    def without(layer: int, head: int) -> Tensor:
        size = model.config.head_dim

        def zero(z: Tensor, hook: Any) -> Tensor:
            z = z.clone()
            if z.dim() == 4:
                z[:, :, head] = 0
            else:
                z[..., head * size : (head + 1) * size] = 0
            return z

        hooks = [(f"blocks.{layer}.attn.hook_z", zero)]
        return bridge.run_with_hooks(ids, fwd_hooks=hooks, return_type="logits")[:, -1]

    return effects(model, tokens, bridge(ids, return_type="logits")[:, -1], without)


@torch.no_grad()
def with_nnsight(model: Any, ids: Tensor, tokens: Tensor) -> Tensor:
    from nnsight import NNsight

    traced, size = NNsight(model), model.config.head_dim

    def without(layer: int, head: int) -> Tensor:
        with traced.trace(ids, use_cache=False):
            z = traced.model.layers[layer].self_attn.o_proj.input.clone()
            z[:, :, head * size : (head + 1) * size] = 0
            traced.model.layers[layer].self_attn.o_proj.input = z
            logits = traced.output.logits[:, -1].save()
        return logits

    return effects(model, tokens, model(ids, use_cache=False).logits[:, -1], without)


@torch.no_grad()
def with_pyvene(model: Any, ids: Tensor, tokens: Tensor) -> Tensor:
    import pyvene

    size = model.config.head_dim

    def without(layer: int, head: int) -> Tensor:
        def zero(base: Tensor, source: Any = None, subspaces: Any = None, **_: Any) -> Tensor:
            z = base.clone()
            z[..., head * size : (head + 1) * size] = 0
            return z

        component = f"model.layers[{layer}].self_attn.o_proj.input"
        edited = pyvene.IntervenableModel({"component": component, "intervention": zero}, model=model)
        # positions: every one
        where = {"base": [[list(range(ids.shape[1]))] * len(ids)]}
        _, output = edited({"input_ids": ids}, unit_locations=where)
        edited._cleanup_states()
        return output.logits[:, -1]

    return effects(model, tokens, model(ids, use_cache=False).logits[:, -1], without)


def with_chainwright(model: Any, ids: Tensor, tokens: Tensor, **options: Any) -> Tensor:
    from chainwright.diagnose import knockout_effects

    return knockout_effects(model, ids, tokens, **options).effect


RUN: dict[str, Callable[[Any, Tensor, Tensor], Tensor]] = {
    PLAIN: plain,
    PLAIN_CUT: partial(plain, cut=True),
    PLAIN_LAST: partial(plain, last=True),
    "TransformerLens": with_transformer_lens,
    "nnsight": with_nnsight,
    "pyvene": with_pyvene,
    EXACT: with_chainwright,
    LAST: partial(with_chainwright, positions="last"),
    GRADIENT: partial(with_chainwright, method="gradient"),
    **{f"Chainwright screened {share}": partial(with_chainwright, method="screened", share=share) for share in SHARES},
}


def make_case(folder: Path, *, quick: bool, is_sharp: bool = True) -> None:
    """Save the random model and its rows; a sharp one has wider weights than the library's, so that heads matter."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    size = {"n": 2, "t": 24, "d": 64, "l": 2, "h": 4, "v": 128} if quick else BENCH_SIZE
    config = LlamaConfig(
        vocab_size=size["v"],
        hidden_size=size["d"],
        intermediate_size=size["d"] * 8 // 3 // 16 * 16,
        num_hidden_layers=size["l"],
        num_attention_heads=size["h"],
        num_key_value_heads=size["h"],
        max_position_embeddings=512,
    )
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            if is_sharp and weight.dim() == 2:
                weight.normal_(0, weight.shape[1] ** -0.5)
        ids = torch.randint(3, size["v"], (size["n"], size["t"]))
        tokens = model(ids).logits[:, -1].argmax(-1)
    model.save_pretrained(folder / "model")
    save_file({"ids": ids, "tokens": tokens}, folder / "rows.safetensors")


BENCH_SIZE = {"n": 8, "t": 256, "d": 256, "l": 8, "h": 8, "v": 4096}


def run_one(way: str, folder: Path, threads: int) -> None:
    """Do one sweep and save what it found."""
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(threads)
    rows = load_file(folder / "rows.safetensors")
    load = partial(AutoModelForCausalLM.from_pretrained, folder / "model", dtype=torch.float32)
    # imports and kernels are warmed up on another copy; what a way has to find out about a model counts
    RUN[way](load().eval(), rows["ids"][:1, :8], rows["tokens"][:1])
    model = load().eval()
    started, used = time.perf_counter(), time.process_time()
    effect = RUN[way](model, rows["ids"], rows["tokens"])
    seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - used
    save_file({"effect": effect.detach().float().contiguous()}, folder / f"{way}.safetensors")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    (folder / f"{way}.json").write_text(json.dumps({"seconds": seconds, "cpu_seconds": cpu_seconds, "peak_mib": peak}))


def run_all(ways: Iterable[str], folder: Path, repeats: int, threads: int) -> dict[str, dict[str, Any]]:
    """Run every way in a process of its own, in turns."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": str(threads)}
    found: dict[str, dict[str, Any]] = {
        way: {"seconds": [], "cpu_seconds": [], "peak_mib": 0.0, "failed": None} for way in ways
    }
    for turn in range(repeats):
        for way, result in found.items():
            if result["failed"]:
                continue
            command = [sys.executable, __file__, "--one", way, "--folder", str(folder), "--threads", str(threads)]
            done = subprocess.run(command, env=environment, capture_output=True, text=True)
            if done.returncode:
                result["failed"] = (done.stderr.strip().splitlines() or ["no message"])[-1][:150]
                continue
            one = json.loads((folder / f"{way}.json").read_text())
            result["seconds"].append(one["seconds"])
            result["cpu_seconds"].append(one["cpu_seconds"])
            result["peak_mib"] = max(result["peak_mib"], one["peak_mib"])
            print(f"turn {turn + 1}, {way}: {one['cpu_seconds']:.2f} s", file=sys.stderr, flush=True)
    return found


def recall_at_10(effect: Tensor, exact: Tensor) -> float:
    """Return the mean share of a row's ten largest exact effects that are among its ten largest here."""
    k = min(10, exact[0].numel())
    tops, own = ([{*row.flatten().topk(k).indices.tolist()} for row in effects] for effects in (exact, effect))
    return statistics.mean(len(a & b) / k for a, b in zip(tops, own, strict=True))


def table(found: dict[str, dict[str, Any]], folder: Path) -> str:
    """Return the table as text."""
    load = lambda way: load_file(folder / f"{way}.safetensors")["effect"]  # noqa: E731
    wall = {way: statistics.median(r["seconds"]) for way, r in found.items() if r["seconds"]}
    cpu = {way: statistics.median(r["cpu_seconds"]) for way, r in found.items() if r["seconds"]}
    fastest = {of: min((cpu[way] for way in ways if way in cpu), default=float("nan")) for of, ways in RIVALS.items()}
    lines = [f"{'way':38}{'CPU s':>8}{'wall s':>8}{'x plain':>9}{'x tool':>8}{'x any':>8}{'MiB':>7}{'disagrees':>11}"]
    for way, result in found.items():
        if way not in cpu:
            lines.append(f"{way:38} cannot run: {result['failed']}")
            continue
        is_last = way in (PLAIN_LAST, LAST)
        reference = PLAIN_LAST if is_last else PLAIN
        off = "-" if way == reference else f"{float((load(way) - load(reference)).abs().max()):.1e}"
        others = f"{'':16}" if is_last else f"{fastest['tool'] / cpu[way]:8.2f}{fastest['any'] / cpu[way]:8.2f}"
        ratios = f"{cpu[reference] / cpu[way]:9.2f}{others}"
        lines.append(f"{way:38}{cpu[way]:8.2f}{wall[way]:8.2f}{ratios}{result['peak_mib']:7.0f}{off:>11}")
    largest = float(load(PLAIN).abs().max()) if PLAIN in cpu else float("nan")
    return "\n".join([*lines, f"largest effect: {largest:.1e}"])


def recall_table(folder: Path, *, quick: bool) -> str:
    """Return how well the estimates find the ten largest effects, in three models."""
    from transformers import AutoModelForCausalLM

    cases: dict[str, tuple[Any, Tensor, Tensor, Tensor]] = {}
    for name, is_sharp in (("random, wider weights", True), ("random, library's weights", False)):
        make_case(folder, quick=quick, is_sharp=is_sharp)
        rows = load_file(folder / "rows.safetensors")
        model = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32).eval()
        cases[name] = (model, rows["ids"], rows["tokens"], torch.ones_like(rows["ids"]))
    cases["trained reasoner"] = reasoner_case(1 if quick else 6)
    lines = [f"{'model':28}{'estimate':>16}{'a row':>8}{'mean row':>10}{'CPU s':>8}{'x exact':>9}"]
    for name, (model, ids, tokens, mask) in cases.items():
        exact, exact_s = timed(model, ids, tokens, attention_mask=mask)
        for way, options in ESTIMATES.items():
            own, own_s = timed(model, ids, tokens, attention_mask=mask, **options)
            mean = recall_at_10(own.mean(0, keepdim=True), exact.mean(0, keepdim=True))
            recalls = f"{recall_at_10(own, exact):8.2f}{mean:10.2f}"
            lines.append(f"{name:28}{way:>16}{recalls}{own_s:8.2f}{exact_s / own_s:9.2f}")
    return "\n".join(lines)


ESTIMATES: dict[str, dict[str, Any]] = {
    "gradient": {"method": "gradient"},
    **{f"screened {share}": {"method": "screened", "share": share} for share in (0.05, 0.1, 0.25, 0.5)},
}


def timed(model: Any, ids: Tensor, tokens: Tensor, **options: Any) -> tuple[Tensor, float]:
    """Return effects and the processor seconds that they took."""
    used = time.process_time()
    effect = with_chainwright(model, ids, tokens, **options)
    return effect, time.process_time() - used


def reasoner_case(n_each: int) -> tuple[Any, Tensor, Tensor, Tensor]:
    """Return the reasoner, contexts that end before a slot's value amid its chains, and what it wrote."""
    from chainwright import generate, load_model, tasks

    model, tokenizer = load_model("reasoner")
    rows, tokens = [], []
    for task in ("clf", "llc", "parity"):
        for trace in generate(model, tokenizer, tasks.sample(task, hops=8, n=n_each, seed=1), progress=False):
            slots = [slot for slot in trace.slots if slot.end > slot.start]
            if slots:
                start = slots[len(slots) // 2].start
                rows.append(trace.input_ids[:start])
                tokens.append(int(trace.input_ids[start]))
    width = max(len(row) for row in rows)
    ids, mask = (torch.zeros(len(rows), width, dtype=torch.long) for _ in range(2))
    for i, row in enumerate(rows):
        ids[i, width - len(row) :], mask[i, width - len(row) :] = row, 1
    return model, ids, torch.tensor(tokens), mask


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="tiny sizes: shows that it runs, times mean nothing")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1, help="on shared cores more threads wait for each other")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--one", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.one:
        run_one(given.one, given.folder, given.threads)
        return
    with tempfile.TemporaryDirectory() as name:
        make_case(Path(name), quick=given.quick)
        print(table(run_all(given.ways, Path(name), given.repeats, given.threads), Path(name)), flush=True)
        torch.set_num_threads(given.threads)
        print("\n" + recall_table(Path(name), quick=given.quick))


if __name__ == "__main__":
    main()
