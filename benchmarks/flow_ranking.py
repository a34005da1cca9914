"""Value neurons of the logit flow: ranked by upper bounds, beside measuring every neuron with the whole vocabulary.

1. Both ways rank all attention and FFN neurons at the last position of some prompts, in one process on one thread, and
   must name the same neurons.
2. Printed are the processor seconds of each way, how many neurons were measured with the whole vocabulary, and the
   largest difference of an importance; then the processor seconds of all of `logit_flow`, with the ranking each way.

    python benchmarks/flow_ranking.py                  # SmolLM2-135M: chainwright models fetch smollm2
    python benchmarks/flow_ranking.py --model world --prompt "vupi mother" --target fine
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

PROMPTS = (
    ("The capital of France is", " Paris"),
    ("The Colosseum is in the city of", " Rome"),
    ("If you heat ice, it turns into", " water"),
)


class Timed(NamedTuple):
    cpu_seconds: float
    value: Any


def timed(work: Callable[[], Any]) -> Timed:
    start = time.process_time()
    value = work()
    return Timed(time.process_time() - start, value)


class Case:
    """One prompt, read once."""

    def __init__(self, model: Any, ids: Tensor, token: int, n_neurons: int):
        from chainwright.diagnose.flow._read_pass import read_pass
        from chainwright.diagnose.flow._trace_back import Tracer
        from chainwright.diagnose.flow._value_neurons import Lens
        from chainwright.models import anatomy
        from chainwright.models.writers import feed_forwards

        self.parts, self.n_neurons = anatomy(model), n_neurons
        self.ffs = feed_forwards(self.parts)
        self.reads = read_pass(self.parts, self.ffs, ids)
        self.lens = Lens(self.parts, token, "final", self.reads[-1].post[-1], None)
        self.tracer = Tracer(self.parts, self.ffs, self.reads, 12, 2)

    def bounded(self) -> tuple[list[Tensor], int]:
        """Return the importance of the best neurons of each kind, and how many were measured in full."""
        from chainwright.diagnose.flow._value_neurons import Values

        counts: list[int] = []

        class Counting(Values):
            def _opened(self, sources: Any, bounds: Any, chosen: Tensor) -> Any:
                counts.append(len(chosen))
                return super()._opened(sources, bounds, chosen)

        rows = Counting(self.ffs, self.reads, self.lens, self.tracer, self.n_neurons).measure()
        return [named(part.where, part.importance) for part in rows], sum(counts)

    def in_full(self) -> tuple[list[Tensor], int]:
        """Return the same by measuring every neuron, in chunks."""
        from chainwright.models.writers import attn_writes, mlp_writes

        best, total = [], 0
        for kind in (0, 1):
            where, gains = [], []
            for i, read in enumerate(self.reads):
                if kind == 0:
                    z, stream = read.z[-1], read.pre[-1]
                    groups = [(z.numel(), lambda k, i=i, z=z: attn_writes(self.parts.layers[i], z, k))]
                else:
                    run, stream = self.tracer.neurons_at(i, len(read.z) - 1), read.mid[-1]
                    groups = [
                        (len(g.activation), lambda k, i=i, g=g, run=run: mlp_writes(self.ffs[i], g, run.out, k))
                        for g in run.groups
                    ]
                base = self.lens(stream[None])
                for number, (size, writes) in enumerate(groups):
                    for index in torch.arange(size).split(self.lens.step):
                        gains.append(self.lens(stream + writes(index)) - base)
                        where += [(i, number, int(k)) for k in index]
            gain = torch.cat(gains)
            total += len(gain)
            top = gain.topk(min(self.n_neurons, len(gain)))
            width = self.reads[0].z.shape[2]
            places = [where[k] for k in top.indices.tolist()]
            # an attention neuron's group is its head
            places = [(i, *divmod(k, width)) if kind == 0 else (i, g, k) for i, g, k in places]
            rows = torch.tensor([[len(self.reads[0].z) - 1, i, kind, g, k] for i, g, k in places])
            best.append(named(rows, top.values))
        return best, total


def named(where: Tensor, importance: Tensor) -> dict[tuple[int, ...], float]:
    return {tuple(row): gain for row, gain in zip(where.tolist(), importance.tolist(), strict=True)}


def same(a: dict[tuple[int, ...], float], b: dict[tuple[int, ...], float]) -> tuple[int, float]:
    """Return how many neurons are in one ranking only, and the largest difference of those in both."""
    return len(a.keys() ^ b.keys()), max(abs(a[k] - b[k]) for k in a.keys() & b.keys())


def compare(model: Any, tokenizer: Any, prompt: str, target: str, n_neurons: int) -> dict[str, Any]:
    from chainwright import logit_flow
    from chainwright.diagnose.flow.prompts import flow_prompt
    from chainwright.models.anatomy import evaluating
    from chainwright.models.seam import Handlers, attach

    asked = flow_prompt(tokenizer, prompt, target, span="first")
    with torch.no_grad(), evaluating(model), attach(model, Handlers({})):
        case = Case(model, asked.input_ids[None], asked.target_ids[0], n_neurons)
        few = timed(case.bounded)
        full = timed(case.in_full)
    whole = timed(lambda: logit_flow(model, asked.input_ids, asked.target_ids[0], n_neurons=n_neurons))
    pairs = [same(a, b) for a, b in zip(few.value[0], full.value[0], strict=True)]
    return {
        "prompt": prompt,
        "neurons": full.value[1],
        "measured": few.value[1],
        "full s": full.cpu_seconds,
        "bounds s": few.cpu_seconds,
        "ratio": full.cpu_seconds / few.cpu_seconds,
        "differ": sum(n for n, _ in pairs),
        "off": max(off for _, off in pairs),
        "flow s": whole.cpu_seconds,
        "flow, in full s": whole.cpu_seconds - few.cpu_seconds + full.cpu_seconds,
    }


def table(rows: list[dict[str, Any]]) -> str:
    names = ("neurons", "measured", "full s", "bounds s", "ratio", "differ", "off", "flow s", "flow, in full s")
    width = max(len(row["prompt"]) for row in rows)
    lines = [" ".join([f"{'prompt':<{width}}", *(f"{name:>{max(8, len(name))}}" for name in names)])]
    for row in rows:
        cells = [
            f"{row[name]:>{max(8, len(name))}d}"
            if isinstance(row[name], int)
            else f"{row[name]:>{max(8, len(name))}{'.1e' if name == 'off' else '.2f'}}"
            for name in names
        ]
        lines.append(" ".join([f"{row['prompt']:<{width}}", *cells]))
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--prompt", default=None)
    parser.add_argument("--target", default=None)
    parser.add_argument("--n-neurons", type=int, default=300)
    parser.add_argument("--threads", type=int, default=1)
    asked = parser.parse_args()
    if (asked.prompt is None) != (asked.target is None):
        parser.error("--prompt and --target belong together")
    torch.set_num_threads(asked.threads)
    from chainwright import load_model

    model, tokenizer = load_model(asked.model)
    prompts = PROMPTS if asked.prompt is None else ((asked.prompt, asked.target),)
    print(table([compare(model, tokenizer, *each, asked.n_neurons) for each in prompts]), flush=True)


if __name__ == "__main__":
    main()
