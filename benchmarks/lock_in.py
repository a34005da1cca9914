"""Is there lock-in by nature? Attention on the question where chains fail, against partners that are right there.

python benchmarks/lock_in.py                                            # the reasoner, seven tasks, 100 problems each
python benchmarks/lock_in.py --model compass --cells compass:14 compass:17 compass:20
"""

from __future__ import annotations

import argparse

import torch

from chainwright import BadInput, generate, load_model, tasks
from chainwright.diagnose import bridge_mass, compare_bridges
from chainwright.repair import choose_layers

CELLS = ("parity:12", "mdm:3", "llc:9", "clf:13", "moas:12", "nums:9", "objc:10")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="reasoner")
    parser.add_argument("--cells", nargs="+", default=list(CELLS), help="task:hops")
    parser.add_argument("-n", type=int, default=100, help="problems a cell")
    parser.add_argument("--seed", type=int, default=100)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    model, tokenizer = load_model(asked.model)
    print("| task, hops | question, response | pairs | layer | right | wrong | difference | 95% | p | chosen |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for cell in asked.cells:
        task, _, hops = cell.partition(":")
        problems = tasks.sample(task, int(hops), asked.n, asked.seed, rendering="short")
        traces = generate(model, tokenizer, problems, progress=False)
        n_question = sum(trace.question.end for trace in traces) / len(traces)
        n_response = sum(len(trace) - trace.question.end for trace in traces) / len(traces)
        name, lengths = f"{tasks.title(task)} {hops}", f"{n_question:.0f}, {n_response:.0f}"
        try:
            groups = compare_bridges(traces, [bridge_mass(model, trace) for trace in traces])
        except BadInput:
            print(f"| {name} | {lengths} | 0 | | | | | | | |", flush=True)
            continue
        chosen = choose_layers(groups).bridge
        for row in groups.rows:
            if row["segment"] != "thinking":
                continue
            print(
                f"| {name} | {lengths} | {row['n']} | {row['layer']} | {row['right']:.3f} | {row['wrong']:.3f} | "
                f"{row['difference']:+.3f} | {row['low']:+.3f} to {row['high']:+.3f} | {row['p']:.2g} | "
                f"{'yes' if row['layer'] in chosen else ''} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
