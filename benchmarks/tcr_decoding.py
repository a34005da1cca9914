"""What decoding with TCR costs: beside the model alone, and beside running each prefix again without each head.

    python benchmarks/tcr_decoding.py [--repair NAME] [--batch 1] [-n 2] [--task parity --hops 40]

Every way decodes the same problems with the bundled reasoner, on one thread, in turns; the table gives the median CPU
time of the turns. "prefixes again" decides the same tokens with one full pass a head at each flagged token.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence

import torch
from torch import Tensor

from chainwright import TCR, generate, load_model, tasks
from chainwright._choices import REASONER_HOPS
from chainwright.decode import left_pad
from chainwright.edits import KnockOut
from chainwright.models.capture import forward
from chainwright.repair import correcting


class PrefixesAgain:
    """Stands in for the cached runs: every pair is one full pass over its prefix."""

    def __init__(self, parts, switch, scale, max_bytes, cost):
        self.parts, self.switch, self.scale, self.cost = parts, switch, scale, cost

    def forget(self, rows: set[int] | None = None) -> None:
        """Nothing is kept."""

    def logits(self, pairs: Sequence, contexts: Sequence[Sequence[int]]) -> Tensor:
        out = []
        for (_, head), ids in zip(pairs, contexts, strict=True):
            row, mask = left_pad([ids], 0, self.parts.model.device)
            with self.switch.on(KnockOut({head}, scale=self.scale)):
                out.append(forward(self.parts, row, mask, last_only=True)[0, -1])
            self.cost.n_extra_forwards += 1
            self.cost.n_extra_tokens += len(ids)
        return torch.stack(out)


def decode(model, tokenizer, problems, repair, batch: int) -> tuple[float, list]:
    start = time.process_time()
    traces = generate(model, tokenizer, problems, repair=repair, batch_size=batch, progress=False)
    return time.process_time() - start, traces


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--repair", default="tcr-reasoner")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("-n", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--task", help="Only this task; left out: all seven.")
    parser.add_argument("--hops", type=int, help="Hops of its problems; left out: the last but one of the usual.")
    options = parser.parse_args()
    torch.set_num_threads(1)
    model, tokenizer = load_model("reasoner", device="cpu")
    repair = TCR.from_pretrained(options.repair)
    names = [options.task] if options.task else tasks.names()
    cells = [(task, options.hops or REASONER_HOPS[task][-2]) for task in names]
    problems = [p for task, hops in cells for p in tasks.sample(task, hops, options.n, 5)]
    plain, cached, again = [], [], []
    for _ in range(options.repeats):
        plain.append(decode(model, tokenizer, problems, None, options.batch)[0])
        seconds, mended = decode(model, tokenizer, problems, repair, options.batch)
        cached.append(seconds)
        cost = repair.cost
        own, correcting.Branches = correcting.Branches, PrefixesAgain
        try:
            seconds, naive = decode(model, tokenizer, problems, repair, options.batch)
        finally:
            correcting.Branches = own
        again.append(seconds)
        assert naive == mended, "both ways must decide the same tokens"
    n = cost.n_tokens
    print(f"{len(problems)} problems, batch {options.batch}, {n} tokens, {cost.flag_rate:.2%} flagged")
    print(f"{'way':24}{'ms a token':>12}{'x plain':>10}{'extra tokens':>14}")
    rows = (("model alone", plain, 0), ("TCR", cached, cost.n_extra_tokens))
    for name, times, extra in (*rows, ("prefixes again", again, repair.cost.n_extra_tokens)):
        middle = statistics.median(times)
        print(f"{name:24}{1000 * middle / n:12.2f}{middle / statistics.median(plain):10.2f}{extra:14d}")
    added = [statistics.median(times) - statistics.median(plain) for times in (cached, again)]
    print(f"What is added to the model alone: {added[1] / max(added[0], 1e-9):.1f} times less with cached runs")


if __name__ == "__main__":
    main()
