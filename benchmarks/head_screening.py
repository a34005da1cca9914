"""Head sweeps of a pretrained model: how well estimates find the heads, and what `head_roles` takes.

Contexts are gold chains of a task, in the model's chat template and without the worked example, cut before a slot of
one kind: "right" where the model's likeliest token is the gold one, "wrong" where it is another.

    recall   measures all heads at some contexts (saved one by one, so that it resumes) and prints which share of the
             heads an estimate has to pick to have the ten largest effects among them
    roles    runs `head_roles` as it is and prints its processor seconds, next to the plan's

Processor seconds are those of one thread. Other work on the machine raises them too, so each run prints the speed of a
float32 matrix product before and after, in GFLOP per second; a quiet core of this kind does about 95.
"""

from __future__ import annotations

import argparse
import random
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from chainwright import head_roles, load_model, tasks
from chainwright.diagnose import RolesConfig, SlotContexts, plan_head_roles
from chainwright.diagnose.heads._sweep.baseline_pass import Contexts
from chainwright.diagnose.heads._sweep.run import knock_out_each
from chainwright.diagnose.heads._sweep.screening import estimate_each, highest_ranked
from chainwright.models.anatomy import anatomy, evaluating

SHARES = (0.05, 0.1, 0.2, 0.25, 0.3, 0.4, 0.5)
KINDS = {"parity": "state update", "objc": "local calculation", "llc": "concatenation"}
HOPS = {"parity": 7, "objc": 5, "llc": 5}
_FEW = 9  # with fewer contexts of a kind, several may come from one problem


def slots_of(model: Any, tokenizer: Any, task: str, hops: int, n_problems: int, seed: int) -> list[dict[str, Any]]:
    """Return each slot of the task's kind: its context, the likeliest token, the gold token and the hop."""
    found = []
    for index, problem in enumerate(tasks.sample(task, hops, n_problems, seed, rendering="natural")):
        question = problem.prompt.rpartition("Problem:\n")[2].replace("\nSolution:\n", "").strip()
        turn = [{"role": "user", "content": question}]
        start = tokenizer.apply_chat_template(turn, add_generation_prompt=True, tokenize=False)
        prompt = tokenizer(start, add_special_tokens=False)["input_ids"]
        chain = tokenizer(problem.chain, add_special_tokens=False, return_offsets_mapping=True)
        ids = torch.tensor(prompt + chain["input_ids"])
        with torch.no_grad():
            likeliest = model(input_ids=ids[None]).logits[0].argmax(-1)
        for slot in problem.slots:
            if slot.error_type != KINDS[task] or not slot.hop or slot.hop < 2:
                continue
            begins = [i for i, (a, b) in enumerate(chain["offset_mapping"]) if a <= slot.start < b]
            if begins:
                at = len(prompt) + begins[0]
                found.append(
                    {"problem": index, "ids": ids[:at], "likeliest": int(likeliest[at - 1]), "gold": int(ids[at]),
                     "hop": slot.hop}
                )  # fmt: skip
    return found


def sets_of(slots: list[dict[str, Any]], n: int, rng: random.Random) -> dict[str, list[dict[str, Any]]]:
    """Return up to n wrong and n right contexts in random order, if there are enough one per problem."""
    sets: dict[str, list[dict[str, Any]]] = {}
    for name, is_right in (("wrong", False), ("right", True)):
        own = [slot for slot in slots if (slot["likeliest"] == slot["gold"]) == is_right]
        rng.shuffle(own)
        firsts = {slot["problem"]: slot for slot in reversed(own)}
        sets[name] = [slot for slot in own if len(own) < _FEW or firsts[slot["problem"]] is slot][:n]
    return sets


def as_contexts(slots: list[dict[str, Any]]) -> SlotContexts:
    width = max(len(slot["ids"]) for slot in slots)
    ids, mask = (torch.zeros(len(slots), width, dtype=torch.long) for _ in range(2))
    for i, slot in enumerate(slots):
        ids[i, width - len(slot["ids"]) :], mask[i, width - len(slot["ids"]) :] = slot["ids"], 1
    tokens = (torch.tensor([slot[name] for slot in slots]) for name in ("likeliest", "gold"))
    return SlotContexts(ids, mask, *tokens, tuple(slot["hop"] for slot in slots))


def speed() -> float:
    """Return the speed of a float32 product, GFLOP per processor second."""
    a, b, n = torch.ones(256, 576), torch.ones(576, 1536), 40
    torch.mm(a, b)
    started = time.process_time()
    for _ in range(n):
        torch.mm(a, b)
    return 2 * n * 256 * 576 * 1536 / (time.process_time() - started) / 1e9


def measure(model: Any, slot: dict[str, Any], *, is_halved: bool) -> dict[str, Tensor]:
    """Return losses of both tokens at one context: measured, and what they are estimated from."""
    parts, ids = anatomy(model), slot["ids"][None]
    tracked = torch.tensor([[slot["likeliest"], slot["gold"]]])
    contexts = Contexts(ids, torch.ones_like(ids), tracked)
    every = torch.ones(1, parts.n_layers, parts.n_heads, dtype=torch.bool)
    with evaluating(model):
        started = time.process_time()
        estimates = estimate_each(parts, contexts)
        between = time.process_time()
        swept = knock_out_each(parts, contexts, every, "all", is_halved=is_halved)
        seconds = torch.tensor([between - started, time.process_time() - between])
    return {
        "loss": swept.baseline[0] - swept.probs[0],
        "last": estimates.last[0],
        "slope": estimates.slope[0].contiguous(),
        "earlier": estimates.earlier[0].contiguous(),
        "seconds": seconds,
    }


def recall(options: argparse.Namespace) -> None:
    """Measure what is not measured yet, unless only the table is wanted, and print the table."""
    if not options.only_print:
        measure_missing(options)
    by_task: dict[str, dict[str, list[dict[str, Tensor]]]] = {}
    for path in sorted(options.folder.glob("*.safetensors")):
        task, name, _ = path.stem.split("-")
        by_task.setdefault(task, {}).setdefault(name, []).append(load_file(path))
    print_recall(by_task)


def measure_missing(options: argparse.Namespace) -> None:
    """Measure all heads at each context that has no file in the folder yet."""
    model, tokenizer = load_model(options.model)
    options.folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(0)
    tasks_asked = options.task.split(",")
    sets = {
        t: sets_of(slots_of(model, tokenizer, t, options.hops or HOPS[t], 12, options.seed), options.n, rng)
        for t in tasks_asked
    }
    for i in range(options.n):
        for task, name in [(t, name) for t in tasks_asked for name in sets[t]]:
            path = options.folder / f"{task}-{name}-{i}.safetensors"
            if i >= len(sets[task][name]) or path.exists():
                continue
            slot, before = sets[task][name][i], speed()
            save_file(measure(model, slot, is_halved=options.products == "bfloat16"), path)
            print(f"{path.name}: {len(slot['ids'])} tokens, {before:.0f} and {speed():.0f} GFLOP/s", flush=True)


def top(values: Tensor, n: int) -> set[int]:
    return set(values.flatten().abs().topk(n).indices.tolist())


def print_recall(by_task: dict[str, dict[str, list[dict[str, Tensor]]]]) -> None:
    """Print recall@10 by estimate and share: of single contexts, and of the mean effects that roles are made of."""
    ways = {
        "slope": lambda one: one["slope"],
        "last position": lambda one: one["last"],
        "sum": lambda one: one["last"] + one["earlier"],
        "larger": lambda one: torch.maximum(one["slope"].abs(), one["last"].abs()),
    }
    rows = [one for sets in by_task.values() for ones in sets.values() for one in ones]
    seconds = torch.stack([one["seconds"] for one in rows]).nanmean(0).tolist()
    print(f"{len(rows)} contexts; CPU s per context: estimates {seconds[0]:.1f}, all heads {seconds[1]:.1f}")
    flat = {name: torch.stack([way(one)[..., 0].flatten() for one in rows]) for name, way in ways.items()}
    exact = torch.stack([one["loss"][..., 0].flatten() for one in rows])
    for name in ("slope", "last position", "sum"):
        pairs = [torch.corrcoef(torch.stack([a, b]))[0, 1] for a, b in zip(flat[name], exact, strict=True)]
        print(f"correlation of {name} with the effects of a context: {float(torch.stack(pairs).mean()):.2f}")
    print(f"{'recall@10':24}" + "".join(f"{share:>7}" for share in SHARES))
    for name, estimate in flat.items():
        hits = [
            sum(len(top(e, 10) & top(s, round(share * e.numel()))) for e, s in zip(exact, estimate, strict=True))
            for share in SHARES
        ]
        print(f"{'a context, ' + name:24}" + "".join(f"{hit / (10 * len(rows)):7.2f}" for hit in hits))
    print_means(by_task)


def print_means(by_task: dict[str, dict[str, list[dict[str, Tensor]]]]) -> None:
    """Print recall@10 of the three mean effects, with the heads that `head_roles` would measure."""
    for task, sets in by_task.items():
        if len(sets) < 2:
            continue
        stacked = {
            k: {name: torch.stack([one[k] for one in ones]) for name, ones in sets.items()}
            for k in ("loss", "last", "slope")
        }
        size = {name: torch.maximum(stacked["last"][name].abs(), stacked["slope"][name].abs()).mean(0) for name in sets}
        criteria = torch.stack([size["right"][..., 0], size["wrong"][..., 0], size["wrong"][..., 1]])
        mean = {name: torch.stack([one["loss"] for one in ones]).mean(0) for name, ones in sets.items()}
        effects = (mean["right"][..., 0], mean["wrong"][..., 0], mean["wrong"][..., 1])
        for name, effect in zip(("correct", "erroneous", "rectification"), effects, strict=True):
            line = []
            for share in SHARES:
                chosen = highest_ranked(criteria, round(share * effect.numel())).flatten()
                line.append(sum(bool(chosen[i]) for i in top(effect, 10)) / 10)
            print(f"{task + ', ' + name:24}" + "".join(f"{value:7.2f}" for value in line))


def roles(options: argparse.Namespace) -> None:
    """Run `head_roles` on the first task and print what it took."""
    model, tokenizer = load_model(options.model)
    task = options.task.split(",")[0]
    sets = sets_of(
        slots_of(model, tokenizer, task, options.hops or HOPS[task], 4 * options.n, options.seed),
        options.n,
        random.Random(0),
    )
    right, wrong = as_contexts(sets["right"]), as_contexts(sets["wrong"])
    lengths = [int(n) for contexts in (right, wrong) for n in contexts.attention_mask.sum(-1)]
    config = RolesConfig() if options.method == "auto" else RolesConfig(method=options.method)
    before = speed()
    plan = plan_head_roles(model, right, wrong, config=config)
    started, wall = time.process_time(), time.perf_counter()
    found = head_roles(model, right, wrong, config=config)
    used, wall = time.process_time() - started, time.perf_counter() - wall
    chosen = {name: found.config[name] for name in ("method", "measured", "products")}
    sizes = f"{min(lengths)} to {max(lengths)} tokens, {sum(lengths)} in all"
    print(f"{task}: {len(right)} + {len(wrong)} contexts of {sizes}; {chosen}")
    print(f"{used:.0f} CPU s on {options.threads} threads, {wall:.0f} s by the clock; planned {plan.seconds:.0f} s")
    print(f"{before:.0f} and {speed():.0f} GFLOP/s before and after")
    print(found.summary())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["recall", "roles"])
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--task", default="parity,objc", help=f"some of {', '.join(KINDS)}")
    parser.add_argument("--hops", type=int, help=f"by default {HOPS}")
    parser.add_argument("--seed", type=int, default=3, help="of the problems; screening was designed on those of 3")
    parser.add_argument("-n", type=int, default=3, help="contexts of each kind")
    parser.add_argument("--method", choices=["auto", "exact", "screened"], default="auto", help="of roles")
    parser.add_argument("--products", choices=["model", "bfloat16"], default="bfloat16", help="of recall")
    parser.add_argument("--folder", type=Path, default=Path("runs/head_screening"))
    parser.add_argument("--only-print", action="store_true", help="measure nothing more")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    recall(options) if options.what == "recall" else roles(options)


if __name__ == "__main__":
    main()
