"""What decoding with TCR costs: beside the model alone, and beside running each prefix again without each head.

    python benchmarks/tcr_decoding.py [--repair NAME] [--batch 1] [-n 2] [--task parity --hops 40]
    python benchmarks/tcr_decoding.py --long 1024 [--batch 8]
    python benchmarks/tcr_decoding.py --model smollm2-hops [--task parity --hops 6]
    python benchmarks/tcr_decoding.py --floor

Every way decodes the same problems with the bundled reasoner, on one thread. They take turns at each batch; the least
processor time of each token over the turns counts, since what else runs on the machine only adds. "prefixes again"
decides the same tokens with one full pass a head at each flagged token; "never flagged" is a repair whose detector
flags nothing.

`--long` takes a random Llama (8 layers, 8 heads, d_model 512) instead, prompts of 128 random tokens, and that many new
tokens. Its repair flags one token in fifty, and silences 3 of 8 random heads there, each alone.

`--model` takes another model of hop tasks, and the published way for it: of eight random heads, three vote at the last
position where the entropy is above 0.3 nats. What heads are silenced does not matter for the cost.

`--floor` adds what is left without any bookkeeping: "bound alone" is a hook that asks how likely the likeliest token
is, and "bare passes" also reads each response once up to its last flagged token, in a batch with a row for each head.
Both decide nothing. The passes have all layers; a repair that shares those below a silenced head can do with less.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from itertools import pairwise
from random import Random
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor

from chainwright import TCR, generate, load_model, tasks
from chainwright.decode import run as decoding_run
from chainwright.edits import KnockOut
from chainwright.models.anatomy import anatomy
from chainwright.models.caches import returned_cache
from chainwright.models.capture import forward
from chainwright.models.padding import left_pad
from chainwright.repair import EntropyDetector, TCRConfig
from chainwright.repair.tcr import token_repair as correcting
from chainwright.repair.tcr.selector import RandomSelector

Decode = Callable[[TCR | None], list[list[int]]]
"""Decodes one batch with a repair or without; returns the tokens that were written."""


class PrefixesAgain:
    """Stands in for the cached runs: every pair is one full pass over its prefix."""

    def __init__(self, parts, switch, scale, max_bytes, cost, n_hooks):
        self.parts, self.switch, self.scale, self.cost = parts, switch, scale, cost

    def keep(self, rows: Collection[int]) -> None:
        """Nothing is kept."""

    def logits(self, pairs: Sequence, contexts: Sequence[Sequence[int]], cache: Any, rows: Sequence) -> Tensor:
        out = []
        for (_, head), ids in zip(pairs, contexts, strict=True):
            row, mask = left_pad([ids], 0, self.parts.model.device)
            with self.switch.on(KnockOut({head}, scale=self.scale)):
                out.append(forward(self.parts, row, mask, last_only=True)[0, -1])
            self.cost.n_extra_forwards += 1
            self.cost.n_extra_tokens += len(ids)
        return torch.stack(out)


class EveryFiftieth:
    """Flags one token in fifty, after looking at the entropy of all."""

    reads_hidden = False
    min_entropy = 0.0

    def flags(self, seen: correcting.Seen) -> Tensor:
        return torch.tensor([len(context) % 50 == 0 for context in seen.contexts])


class Clock(LogitsProcessor):
    """Notes the processor time at which each token is chosen."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self.times.append(time.process_time())
        return scores


CLOCK = Clock()


def with_clock() -> None:
    """Put the clock behind what `chainwright.generate` does with logits."""
    own = decoding_run.processors

    def processors(*args: Any) -> Any:
        made = own(*args)
        made.append(CLOCK)
        return made

    decoding_run.processors = processors


class Way:
    """What a way took for each token of a batch, and what it decoded."""

    def __init__(
        self,
        repair: TCR | None,
        branches: type = correcting.Branches,
        around: Callable[[int], AbstractContextManager[None]] = lambda i: nullcontext(),
    ):
        self.repair, self.branches, self.around = repair, branches, around
        self.seconds: dict[int, list[float]] = {}
        self.written: dict[int, list[list[int]]] = {}
        self.n_flagged = self.n_extra = 0

    def run(self, i: int, decode: Decode) -> None:
        """Decode batch i."""
        own, correcting.Branches = correcting.Branches, self.branches
        try:
            CLOCK.times[:] = [time.process_time()]
            with self.around(i):
                written = decode(self.repair)
            times = [*CLOCK.times, time.process_time()]
        finally:
            correcting.Branches = own
        if i not in self.written and self.repair is not None:
            self.n_flagged += self.repair.cost.n_flagged
            self.n_extra += self.repair.cost.n_extra_tokens
        took = [end - start for start, end in pairwise(times)]
        self.seconds[i] = [min(both) for both in zip(took, self.seconds.get(i, took), strict=True)]
        self.written[i] = written

    @property
    def n_tokens(self) -> int:
        return sum(len(ids) for batch in self.written.values() for ids in batch)

    @property
    def seconds_a_token(self) -> float:
        return sum(map(sum, self.seconds.values())) / self.n_tokens


class Floor:
    """What is left of a repair without anything but the work itself.

    Attributes:
        flagged: For each batch, after how many tokens the repair flags one.
    """

    def __init__(self, model: Any, repair: TCR):
        self.model, self.n_heads = model, len(repair.heads)
        self.flagged: dict[int, set[int]] = {}
        self._batch = 0
        repair.on_decisions.append(lambda rows, seen, new: self._note(len(rows[0].ids)))

    def _note(self, n_tokens: int) -> None:
        self.flagged.setdefault(self._batch, set()).add(n_tokens)

    @contextmanager
    def watched(self, i: int) -> Iterator[None]:
        """Note where batch i is flagged."""
        self._batch = i
        yield

    @contextmanager
    def bound(self, i: int) -> Iterator[None]:
        """Ask after each pass how likely the likeliest token is."""
        with ExitStack() as stack:
            ask = self.model.register_forward_hook(lambda module, args, output: _likeliest(output.logits))
            stack.callback(ask.remove)
            yield

    @contextmanager
    def passes(self, i: int) -> Iterator[None]:
        """Also read the prefix of the last flagged token, once for each head, in a batch."""

        def after(module: Any, args: Any, output: Any) -> None:
            _likeliest(output.logits)
            n_tokens = returned_cache(output).get_seq_length()
            if n_tokens == max(self.flagged.get(i, ()), default=None):
                rows = torch.ones(self.n_heads, n_tokens, dtype=torch.long)
                self.model.base_model(rows, use_cache=False)

        with ExitStack() as stack:
            stack.callback(self.model.register_forward_hook(after).remove)
            yield


def _likeliest(logits: Tensor) -> None:
    float(torch.softmax(logits, -1).max())  # None, so that the hook leaves the output alone


def never_flagging(repair: TCR) -> TCR:
    """Return the same repair with a detector that flags nothing."""
    return TCR(repair.heads, RandomSelector(len(repair.heads)), EntropyDetector(1e9), end_ids=repair.end_ids)


def vote_of(model: Any) -> TCR:
    """Return a repair as published, with random heads."""
    parts = anatomy(model)
    every = [(i, head) for i in range(parts.n_layers) for head in range(parts.n_heads)]
    heads = Random(0).sample(every, min(8, len(every)))
    return TCR(heads, RandomSelector(len(heads)), EntropyDetector(0.3), config=TCRConfig(n_votes=3, positions="last"))


def task_batches(asked: argparse.Namespace) -> tuple[Any, TCR, list[Decode]]:
    """Return a model, its repair, and the decoding of some problems of each task."""
    model, tokenizer = load_model(asked.model, device="cpu")
    names = [asked.task] if asked.task else tasks.names()
    cells = [(task, asked.hops or tasks.usual_hops(task, "short")[-2]) for task in names]
    problems = [p for task, hops in cells for p in tasks.sample(task, hops, asked.n, 5)]

    def of_batch(batch: list[Any]) -> Decode:
        def decode(repair: TCR | None) -> list[list[int]]:
            traces = generate(model, tokenizer, batch, repair=repair, batch_size=len(batch), progress=False)
            return [trace.input_ids[trace.response_start :].tolist() for trace in traces]

        return decode

    batches = [problems[i : i + asked.batch] for i in range(0, len(problems), asked.batch)]
    name = asked.repair or ("tcr-reasoner" if asked.model == "reasoner" else None)
    repair = vote_of(model) if name is None else TCR.from_pretrained(name)
    return model, repair, [of_batch(batch) for batch in batches]


def decoding(model: Any, prompt: Tensor, n_new: int) -> Decode:
    """Return the decoding of `n_new` tokens after a prompt `[N, T]`."""
    options = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0, "max_new_tokens": n_new}

    def decode(repair: TCR | None) -> list[list[int]]:
        with nullcontext() if repair is None else repair.attached(model):
            out = model.generate(prompt, attention_mask=torch.ones_like(prompt), logits_processor=[CLOCK], **options)
        return out[:, prompt.shape[1] :].tolist()

    return decode


def long_batches(n_new: int, n_rows: int) -> tuple[Any, TCR, list[Decode]]:
    """Return a random model, a repair of it, and the decoding of one batch of long responses."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 8, "num_attention_heads": 8}
    config = AutoConfig.for_model(
        "llama", vocab_size=4096, num_key_value_heads=2, **sizes, max_position_embeddings=8192
    )
    model = AutoModelForCausalLM.from_config(config).eval()
    decode = decoding(model, torch.randint(3, 4096, (n_rows, 128)), n_new)
    heads = Random(0).sample([(layer, head) for layer in range(8) for head in range(8)], 8)
    config = TCRConfig(n_votes=3, max_bytes=2**33)
    repair = TCR(heads, RandomSelector(8), EveryFiftieth(), config=config)
    return model, repair, [decode]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="reasoner")
    parser.add_argument("--repair", help="A repair of the model (default: the reasoner's, or a vote of random heads).")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("-n", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--task", help="Only this task (default: all seven).")
    parser.add_argument("--hops", type=int, help="Hops of its problems (default: the last but one of the usual).")
    parser.add_argument("--long", type=int, metavar="N", help="Decode N tokens with a random model instead.")
    parser.add_argument("--floor", action="store_true", help="Also measure bare hooks and passes (batch of 1).")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    with_clock()
    model, repair, batches = long_batches(asked.long, asked.batch) if asked.long else task_batches(asked)
    plain, idle, cached = Way(None), Way(never_flagging(repair)), Way(repair)
    rows = {"model alone": plain, "never flagged": idle, "TCR": cached}
    if repair.positions == "all":  # at the last position alone no run has a prefix of its own
        rows["prefixes again"] = Way(repair, PrefixesAgain)
    if asked.floor:
        floor = Floor(model, repair)
        cached.around = floor.watched
        rows |= {"bound alone": Way(None, around=floor.bound), "bare passes": Way(None, around=floor.passes)}
    for _ in range(asked.repeats):
        for i, decode in enumerate(batches):
            for way in rows.values():
                way.run(i, decode)
    again = rows.get("prefixes again", cached)
    assert again.written == cached.written, "both ways must decide the same tokens"
    assert idle.written == plain.written, "without a flag nothing may change"
    print(f"{len(batches)} batches of {asked.batch}, {cached.n_tokens} tokens, ", end="")
    print(f"{cached.n_flagged / cached.n_tokens:.2%} flagged, {len(repair.heads)} heads")
    print(f"{'way':24}{'ms/token':>12}{'x plain':>10}{'extra tokens':>14}")
    for name, way in rows.items():
        took = way.seconds_a_token
        print(f"{name:24}{1000 * took:12.2f}{took / plain.seconds_a_token:10.2f}{way.n_extra:14d}")
    if again is not cached:
        print_added(plain, cached, again)


def print_added(plain: Way, cached: Way, again: Way) -> None:
    """Print how much less cached runs add."""
    added = [way.seconds_a_token - plain.seconds_a_token for way in (cached, again)]
    print(f"What is added to the model alone: {added[1] / max(added[0], 1e-9):.1f} times less with cached runs")


if __name__ == "__main__":
    main()
