"""One training step of LoRA on a pretrained model: PEFT on whole rows against that of `chainwright train smollm2-hops`.

Both ways take the same batch: problems of one task and hop count, loss on the chains alone, logits only where the loss
is, weights in bfloat16. Each way is repeated, and its least processor seconds count. Prints chain tokens per processor
second and the loss of both, which differ by rounding.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import PreTrainedModel

from chainwright import load_model, tasks
from chainwright.lab.chains import Row, chain_loss
from chainwright.lab.lora import Adapter
from chainwright.lab.smollm2 import chat_row

RANK, ALPHA = 16, 32
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def whole_rows(model: PreTrainedModel, rows: Sequence[Row]) -> Tensor:
    """Return the mean loss of the chains' tokens from one pass over padded rows."""
    width = max(len(row.prompt) + len(row.chain) for row in rows)
    ids, mask = (torch.zeros(len(rows), width, dtype=torch.long) for _ in range(2))
    for i, row in enumerate(rows):
        n_tokens = len(row.prompt) + len(row.chain)
        ids[i, :n_tokens], mask[i, :n_tokens] = torch.tensor([*row.prompt, *row.chain]), 1
    hidden = model.model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
    before = torch.cat([hidden[i, len(r.prompt) - 1 : len(r.prompt) + len(r.chain) - 1] for i, r in enumerate(rows)])
    labels = torch.tensor([token for row in rows for token in row.chain])
    return torch.nn.functional.cross_entropy(model.lm_head(before).float(), labels)


def step(loss_of: Callable[[], Tensor]) -> tuple[float, float]:
    """Return the processor seconds of a forward and a backward pass, and the loss."""
    started = time.process_time()
    loss = loss_of()
    loss.backward()
    return time.process_time() - started, float(loss.detach())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--task", default="parity")
    parser.add_argument("--hops", type=int, default=4)
    parser.add_argument("-n", type=int, default=8, help="problems per step")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    ours, tokenizer = load_model(options.model, dtype=torch.bfloat16)
    base = load_model(options.model, dtype=torch.bfloat16).model
    peft = get_peft_model(base, LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=TARGETS)).base_model.model
    Adapter(ours, rank=RANK, alpha=ALPHA, seed=0)
    problems = tasks.sample(options.task, options.hops, options.n, seed=2**40, rendering="natural", n_demonstrations=0)
    rows = [chat_row(tokenizer, problem) for problem in problems]
    ways = {"PEFT, whole rows": lambda: whole_rows(peft, rows), "chainwright": lambda: chain_loss(ours, rows).loss}
    n_chain = sum(len(row.chain) for row in rows)
    taken = {name: [step(way) for _ in range(options.repeats)] for name, way in ways.items()}
    n_all = n_chain + sum(len(row.prompt) for row in rows)
    print(f"{options.task}, {options.hops} hops: {options.n} rows, {n_chain} chain tokens of {n_all}")
    print(f"{'way':20}{'CPU s':>8}{'chain tokens per CPU s':>25}{'loss':>9}")
    for name, runs in taken.items():
        seconds = min(run[0] for run in runs)
        print(f"{name:20}{seconds:8.2f}{n_chain / seconds:25.0f}{runs[0][1]:9.4f}")


if __name__ == "__main__":
    main()
