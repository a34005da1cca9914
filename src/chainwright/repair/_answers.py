"""Training a few parameters beside a frozen model on questions and their answers.

1. Prompt and answer are tokenised one after the other; the loss is the mean over the answer's tokens, all of them.
2. Where a problem says what its first hop leads to, the loss at the first relation also asks for that, so that what the
   model knew of single hops stays.
3. Every batch is a pure function of (seed, step).
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch
from rich.progress import Progress
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from chainwright._errors import BadInput
from chainwright.models.anatomy import anatomy, evaluating
from chainwright.models.seam import widened
from chainwright.tasks.base import Problem

_SLOW = 0.25


@dataclass(frozen=True)
class AnswerTraining:
    """How parameters are trained on answers.

    Attributes:
        n_steps, batch_size, lr, weight_decay, clip, n_warmup, decay_share: The optimisation, by AdamW.
        first_hop_weight: Weight of the loss on the first hop's answer; 0 leaves it out.
        seed: Decides the batches.
    """

    n_steps: int = 300
    batch_size: int = 128
    lr: float = 4e-3
    weight_decay: float = 0.0
    clip: float = 1.0
    n_warmup: int = 20
    decay_share: float = 0.5
    first_hop_weight: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what could not be trained."""
        for name in ("n_steps", "batch_size", "lr", "clip"):
            if getattr(self, name) <= 0:
                raise BadInput(f"Setting {name} must be above 0; got {getattr(self, name)}.")
        if self.first_hop_weight < 0:
            raise BadInput(f"Setting first_hop_weight must be at least 0; got {self.first_hop_weight}.")


class Row(NamedTuple):
    """One question: its tokens with the answer, the answer's length, and (position, token) of the first hop or None."""

    ids: list[int]
    n_answer: int
    first_hop: tuple[int, int] | None


def rows_of(tokenizer: PreTrainedTokenizerBase, problems: Sequence[Problem]) -> list[Row]:
    """Return the rows of some problems.

    Raises:
        BadInput: No problems, an answer without tokens, or prompts that give their answers away.
    """
    if not problems:
        raise BadInput("There is nothing to train on: the list of problems is empty.")
    given_away = [p for p in problems if _holds(p.prompt, p.answer)]
    if 2 * len(given_away) > len(problems) or any(p.prompt.rstrip().endswith(p.answer) for p in given_away):
        example = given_away[0]
        raise BadInput(
            f"{len(given_away)} of {len(problems)} prompts hold their answer, such as {example.prompt!r} with "
            f"{example.answer!r}; the prompt must end where the answer is to begin."
        )
    return [_row(tokenizer, problem) for problem in problems]


def _holds(prompt: str, answer: str) -> bool:
    return re.search(rf"(?<![\w-]){re.escape(answer)}(?!\w)", prompt) is not None


def _row(tokenizer: PreTrainedTokenizerBase, problem: Problem) -> Row:
    gap = "" if problem.prompt[-1:].isspace() else " "
    prompt = list(tokenizer(problem.prompt)["input_ids"])
    answer = list(tokenizer(gap + problem.answer, add_special_tokens=False)["input_ids"])
    if not prompt or not answer:
        raise BadInput(f"The question {problem.prompt!r} or its answer {problem.answer!r} has no tokens.")
    return Row([*prompt, *answer], len(answer), _first_hop(tokenizer, problem))


def _first_hop(tokenizer: PreTrainedTokenizerBase, problem: Problem) -> tuple[int, int] | None:
    """Return the position of the first relation's last token, and the first token of what it leads to."""
    if problem.hops < 2 or not {"r1", "e2"} <= problem.facts.keys():
        return None
    found = re.search(rf"(?<!\w){re.escape(problem.facts['r1'])}(?!\w)", problem.prompt)
    if found is None:
        return None
    position = len(tokenizer(problem.prompt[: found.end()])["input_ids"]) - 1
    (token, *_) = tokenizer(" " + problem.facts["e2"], add_special_tokens=False)["input_ids"]
    return position, int(token)


def train(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    parameters: Iterable[nn.Parameter],
    problems: Sequence[Problem],
    config: AnswerTraining,
    *,
    slow: Iterable[nn.Parameter] = (),
    progress: bool = False,
) -> list[float]:
    """Train parameters that the model's forward pass uses now on the answers; return the loss of each step.

    The model's own parameters keep their values and get no gradients. Those in `slow` learn at a quarter of the rate:
    what writes to the residual stream, where embeddings are small, would else drown it in its first steps.
    """
    rows = rows_of(tokenizer, problems)
    slow = list(slow)
    trained = [*(p for p in parameters if not any(p is s for s in slow)), *slow]
    groups = [{"params": trained[: len(trained) - len(slow)], "share": 1.0}, {"params": slow, "share": _SLOW}]
    optimizer = torch.optim.AdamW(groups, lr=config.lr, weight_decay=config.weight_decay)
    losses = []
    inner = anatomy(model).model
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
    with evaluating(inner), _frozen(inner, trained), torch.enable_grad(), Progress(disable=not progress) as bar:
        shown = bar.add_task("fitting", total=config.n_steps)
        for step in range(config.n_steps):
            for group in optimizer.param_groups:
                group["lr"] = group["share"] * _rate(config, step)
            drawn = random.Random(f"{config.seed}/{step}").choices(rows, k=config.batch_size)
            loss = _loss(inner, drawn, pad, config.first_hop_weight)
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(trained, config.clip)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            losses.append(float(loss.detach()))
            bar.advance(shown)
    return losses


def _rate(config: AnswerTraining, step: int) -> float:
    warm = min(1.0, (step + 1) / max(1, config.n_warmup))
    decay = min(1.0, (config.n_steps - step) / max(1.0, config.decay_share * config.n_steps))
    return config.lr * min(warm, decay)


@contextmanager
def _frozen(model: nn.Module, trained: Sequence[nn.Parameter]) -> Iterator[None]:
    kept = {id(p) for p in trained}
    frozen = [p for p in model.parameters() if p.requires_grad and id(p) not in kept]
    try:
        for parameter in frozen:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(True)


def _loss(model: nn.Module, rows: Sequence[Row], pad: int, first_hop_weight: float) -> Tensor:
    width = max(len(row.ids) for row in rows)
    device = next(model.parameters()).device
    ids = torch.tensor([[pad] * (width - len(row.ids)) + row.ids for row in rows], device=device)
    mask = torch.tensor([[0] * (width - len(row.ids)) + [1] * len(row.ids) for row in rows], device=device)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    out = model(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False)
    log_probs = widened(out.logits).log_softmax(-1)
    answers = [
        (i, width - row.n_answer - 1 + k, row.ids[len(row.ids) - row.n_answer + k])
        for i, row in enumerate(rows)
        for k in range(row.n_answer)
    ]
    loss = -_picked(log_probs, answers).mean()
    hops = [
        (i, width - len(row.ids) + row.first_hop[0], row.first_hop[1])
        for i, row in enumerate(rows)
        if row.first_hop is not None
    ]
    if hops and first_hop_weight:
        loss = loss - first_hop_weight * _picked(log_probs, hops).mean()
    return loss


def _picked(log_probs: Tensor, places: Sequence[tuple[int, int, int]]) -> Tensor:
    """Return the log-probabilities at (row, position, token)."""
    row, position, token = torch.tensor(places, device=log_probs.device).T
    return log_probs[row, position, token]


__all__ = ["AnswerTraining", "Row", "rows_of", "train"]
