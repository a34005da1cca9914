"""One small repair of every kind for the tiny models, and how they are run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import ExitStack
from random import Random

import torch
from torch import Tensor
from transformers import PreTrainedModel

from chainwright.decode.run import in_order
from chainwright.edits import BackHead
from chainwright.repair import TCR, BackAttention, DoLa, EntropyDetector, RemoveAndResample, Repair, StepFlow, TCRConfig
from chainwright.repair.tcr.token_repair import Seen
from families import left_padded, random_ids
from step_runs import Words

HEADS = [(0, 1), (1, 0), (1, 3), (2, 2), (2, 0)]
LENGTHS = (11, 8, 3, 5)
N_NEW = 14


class Lines(Words):
    """Every third token ends a line, so that the momentum has steps in whatever the tiny models write."""

    def decode(self, ids: list[int], **kwargs: object) -> str:
        return "".join("\n" if i > 8 and i % 3 == 0 else super(Lines, self).decode([i]) for i in ids)


class ByLastToken:
    """Ranks the heads by the last token."""

    reads_hidden = False

    def ranked(self, ids: Sequence[int]) -> list[int]:
        return Random(ids[-1]).sample(range(len(HEADS)), len(HEADS))

    def scores(self, seen: Seen) -> Tensor:
        out = torch.full((len(seen.contexts), len(HEADS) + 1), -math.inf)
        for row, ids in enumerate(seen.contexts):
            for place, k in enumerate(self.ranked(ids)):
                out[row, k] = 10.0 - place
        return out

    def heads(self, ids: Sequence[int]) -> list[tuple[int, int]]:
        return [HEADS[k] for k in self.ranked(ids)[:3]]


def tau_of(model: PreTrainedModel) -> float:
    """Return an entropy that about half of the tokens exceed."""
    with torch.no_grad():
        logits = model(input_ids=random_ids(4, 16, seed=5)).logits
    return float(torch.special.entr(logits.softmax(-1)).sum(-1).median())


def back_attention(model: PreTrainedModel) -> BackAttention:
    """Return a back attention that changes what is written."""
    torch.manual_seed(0)
    heads = [BackHead(48, 0, (1, 3), d_back=8), BackHead(48, 2, (3,), d_back=8)]
    for head in heads:
        torch.nn.init.normal_(head.o.weight, std=0.3)
    return BackAttention(heads)


def stepflow() -> StepFlow:
    return StepFlow((0, 1), (2,), 0.6, 1.5, style="think", min_chars=1, tokenizer=Lines())


def tcr(model: PreTrainedModel, **config: object) -> TCR:
    return TCR(HEADS, ByLastToken(), EntropyDetector(tau_of(model)), config=TCRConfig(**config))


KINDS = {
    "stepflow": lambda model: stepflow(),
    "back-attention": back_attention,
    "tcr": tcr,
    "tcr last": lambda model: tcr(model, positions="last"),
    "remove": lambda model: RemoveAndResample(EntropyDetector(tau_of(model))),
    "dola": lambda model: DoLa(3),
    "stepflow and tcr": lambda model: [stepflow(), tcr(model)],
}


def prompts() -> list[Tensor]:
    """Return prompts of unequal lengths that end in `<think>`, with lines so that the momentum has steps."""
    rows = [random_ids(1, n, seed=n)[0].clamp(min=9) for n in LENGTHS]
    return [torch.cat([row, torch.tensor([6])]) for row in rows]


def run(
    model: PreTrainedModel, repair: Repair | Sequence[Repair] | None, end: int | None = None, *, n_calls: int = 1
) -> list[list[int]]:
    """Return what greedy decoding writes with a repair, by plain `generate`; `end` goes into the generation config."""
    model.generation_config.eos_token_id = end
    new = decoded(model, repair, n_calls=n_calls)[0].tolist()
    return [row[: row.index(end) + 1] if end in row else row for row in new]


def decoded(
    model: PreTrainedModel, repair: Repair | Sequence[Repair] | None, *, n_calls: int = 1
) -> tuple[Tensor, Tensor]:
    """Return what was written, `[rows, N_NEW]`, and the logits that it was chosen by."""
    ids, mask = left_padded(prompts())
    model.generation_config.pad_token_id = 0
    options = {"max_new_tokens": N_NEW, "do_sample": False, "return_dict_in_generate": True, "output_logits": True}
    with ExitStack() as stack:
        for each in in_order(repair):
            stack.enter_context(each.attached(model))
        for _ in range(n_calls):
            out = model.generate(ids, attention_mask=mask, **options)
    return out.sequences[:, ids.shape[1] :], torch.stack(out.logits, dim=1)
