"""Decoding with StepFlow beside the same model without it: processor seconds a token at a long context.

A random Llama reads a prompt and then tokens one by one with a growing cache: text of the bundled tasks, one row,
float32, one thread. All but 64 tokens of the prompt count as thinking, so that the bridge has work to do at every token
and the momentum at every step. Three ways change nothing: StepFlow at strength 0, StepFlow on a text that it reads as
one without thinking, and a knockout without heads. Each way has modules and a cache of its own over the same weights.
At every token all ways take turns in random order, three of them without anything attached; the same tokens are
decoded several times. What counts is the median, over all of these steps, of a way's processor time divided by the mean
of the three, with its 95% interval from the ranks: other programs make single steps slower by a tenth, and the least
time of a token differs by a hundredth between ways that do the same.

    python benchmarks/stepflow_decoding.py                          # 8 layers, d_model 512, 2048 tokens of context
    python benchmarks/stepflow_decoding.py --layers 16 --width 1024 --turns 2
    python benchmarks/stepflow_decoding.py --model smollm2 --turns 2 # a real model, in its own tokens
    python benchmarks/stepflow_decoding.py --model smollm2 --turns 40 --only both # narrower intervals in the same time
"""

from __future__ import annotations

import argparse
import copy
import math
import statistics
import time
from collections.abc import Sequence
from contextlib import ExitStack
from random import Random
from typing import Any

import torch
from transformers import DynamicCache

from chainwright import KnockOut, StepFlow, edit, load_model, tasks
from chainwright.edits import Edit
from chainwright.models.load import load_tokenizer

N_QUESTION = 64
PLAIN = ("plain", "plain again", "plain once more")


def ways(n_layers: int, tokenizer: Any) -> dict[str, Edit | StepFlow | None]:
    """Return what each way decodes with."""
    quarter = max(1, n_layers // 4)
    low, high = range(quarter), range(n_layers - quarter, n_layers)
    plain: dict[str, Any] = {"style": "plain", "tokenizer": tokenizer}
    return {
        **dict.fromkeys(PLAIN),
        "strength 0": StepFlow(tau_max=0.0, alpha=0.0, **plain),
        "no thinking": StepFlow(style="think", tokenizer=tokenizer),
        "no head": KnockOut(()),
        "one head": KnockOut({(0, 0)}),
        "bridge": StepFlow(low, (), **plain),
        "momentum": StepFlow((), high, **plain),
        "both": StepFlow(low, high, **plain),
    }


def make_model(n_layers: int, width: int, n_slots: int) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    config = AutoConfig.for_model(
        "llama",
        vocab_size=4096,
        hidden_size=width,
        intermediate_size=3 * width,
        num_hidden_layers=n_layers,
        num_attention_heads=width // 64,
        num_key_value_heads=width // 256,
        max_position_embeddings=n_slots,
    )
    return AutoModelForCausalLM.from_config(config).eval()


def text_ids(tokenizer: Any, n_tokens: int) -> list[int]:
    """Return tokens of the tasks' chains in English."""
    ids: list[int] = []
    while len(ids) < n_tokens:
        for problem in (tasks.sample(task, 6, 1, seed=len(ids), rendering="natural")[0] for task in tasks.names()):
            ids += tokenizer(problem.chain + "\n")["input_ids"]
    return ids[:n_tokens]


class Way:
    """A model with what it decodes with, and its cache; `seconds` has those of each step."""

    def __init__(self, model: Any, means: Edit | StepFlow | None, stack: ExitStack):
        self.model = copy.deepcopy(model, {id(p): p for p in model.parameters()})
        self.cache = DynamicCache(config=self.model.config)
        self.seconds: list[float] = []
        if isinstance(means, StepFlow):
            stack.enter_context(means.attached(self.model))
        elif means is not None:
            stack.enter_context(edit(self.model, means, strict=False))

    def read(self, ids: Sequence[int]) -> None:
        """Read the prompt: first the question, then the thinking so far."""
        self._forward(ids[:N_QUESTION])
        # all logits: a pass that keeps the last ones alone would read more of the prompt
        self._forward(ids[N_QUESTION:], n_logits=0)

    def step(self, token_id: int) -> None:
        """Decode one token and keep its time."""
        start = time.process_time()
        self._forward([token_id])
        self.seconds.append(time.process_time() - start)

    def _forward(self, ids: Sequence[int], n_logits: int = 1) -> None:
        with torch.no_grad():
            self.model(
                input_ids=torch.tensor([list(ids)]), past_key_values=self.cache, use_cache=True, logits_to_keep=n_logits
            )


def in_turns(all_ways: Sequence[Way], new: Sequence[int], n_turns: int) -> None:
    """Decode the same tokens several times, the ways one after the other at each token."""
    random, order = Random(0), list(all_ways)
    for _ in range(n_turns):
        for token_id in new:
            random.shuffle(order)
            for way in order:
                way.step(token_id)
        for way in all_ways:
            way.cache.crop(-len(new))


def median(values: Sequence[float]) -> tuple[float, float, float]:
    """Return the median and the borders of its 95% interval."""
    ordered, n = sorted(values), len(values)
    reach = round(0.98 * math.sqrt(n))
    return statistics.median(ordered), ordered[max(0, n // 2 - reach)], ordered[min(n - 1, n // 2 + reach)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a model instead of a random one, such as smollm2")
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--context", type=int, default=2048)
    parser.add_argument("--new", type=int, default=48)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--only", nargs="+", metavar="WAY", help="These ways and the plain ones alone.")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    if asked.model:
        model, tokenizer = load_model(asked.model)
        asked.layers, asked.width = model.config.num_hidden_layers, model.config.hidden_size
    else:
        tokenizer = load_tokenizer("reasoner")
        model = make_model(asked.layers, asked.width, asked.context + asked.new + 8)
    ids = text_ids(tokenizer, asked.context + asked.new)
    with ExitStack() as stack:
        every = ways(asked.layers, tokenizer)
        names = [*PLAIN, *asked.only] if asked.only else list(every)
        if unknown := [name for name in names if name not in every]:
            parser.error(f"--only: there is no way {unknown[0]!r}; the ways are {', '.join(every)}")
        made = {name: Way(model, every[name], stack) for name in names}
        for way in made.values():
            way.read(ids[: asked.context])
        in_turns(list(made.values()), ids[asked.context :], asked.turns)
    plain = [statistics.mean(step) for step in zip(*(made[name].seconds for name in PLAIN), strict=True)]
    sizes = f"{asked.layers} layers, d_model {asked.width}"
    print(f"{asked.model or 'random'}: {sizes}, {asked.context} tokens and {asked.new} new, {asked.turns} turns")
    print(f"{'way':16} {'CPU ms/token':>14} {'x plain':>8} {'95% interval':>16}")
    for name, way in made.items():
        ratio, low, high = median([took / beside for took, beside in zip(way.seconds, plain, strict=True)])
        print(f"{name:16} {1000 * statistics.median(way.seconds):14.2f} {ratio:8.3f} {low:8.3f} to {high:.3f}")


if __name__ == "__main__":
    main()
