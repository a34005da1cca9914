"""The positive control of StepFlow: lock-in planted in each layer, and the bridge on that layer.

python benchmarks/lock_in_control.py            # 30 CLF problems with 8 hops, the bundled reasoner
"""

from __future__ import annotations

import argparse

import torch

from chainwright import StepFlow, generate, load_model, tasks
from chainwright.repair.stepflow.planted_lock_in import PlantedLockIn

LAYERS, STRENGTHS, TAUS = (1, 2, 3), (4.0, 8.0), (0.3, 0.6)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-n", type=int, default=30, help="problems")
    parser.add_argument("--layers", type=int, nargs="+", default=list(LAYERS))
    asked = parser.parse_args()
    torch.set_num_threads(1)
    model, tokenizer = load_model("reasoner")
    problems = tasks.sample("clf", 8, asked.n, 11, rendering="short")

    def right(repair: object) -> str:
        traces = generate(model, tokenizer, problems, repair=repair, progress=False)
        return f"{sum(trace.first_error is None for trace in traces) / len(traces):.2f}"

    print(f"nothing planted: {right(None)}")
    print("| planted in layer | lowered by | no repair | " + " | ".join(f"bridge there, {tau}" for tau in TAUS) + " |")
    for layer in asked.layers:
        for strength in STRENGTHS:
            ways = [StepFlow((), ()), *(StepFlow((layer,), (), tau) for tau in TAUS)]
            found = [right(PlantedLockIn(way, layer, strength)) for way in ways]
            print(f"| {layer} | {strength:g} | " + " | ".join(found) + " |", flush=True)
    print(f"planted in layer 2 by 8, bridge on layer 0, 0.3: {right(PlantedLockIn(StepFlow((0,), (), 0.3), 2, 8.0))}")


if __name__ == "__main__":
    main()
