"""Training a few parameters beside a frozen model on questions and their answers.

1. Prompt and answer are tokenised one after the other; the loss is the mean over the answer's tokens, all of them.
2. Where a problem says what its first hop leads to, the loss at the first relation also asks for that, so that what the
   model knew of single hops stays.
3. Every batch is a pure function of (seed, step).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from random import Random
from typing import NamedTuple, TypeVar

import torch
from pydantic import Field
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from chainwright._config import Config
from chainwright._errors import BadInput
from chainwright._progress import progress_bar
from chainwright.models.anatomy import anatomy, evaluating, frozen
from chainwright.models.capture import forward
from chainwright.models.decoder import causal_lm
from chainwright.models.padding import left_pad
from chainwright.models.placement import input_device
from chainwright.models.seam import widened
from chainwright.tasks.base import Problem

_N_ASKED = 256
T = TypeVar("T")


class AnswerTraining(Config):
    """How parameters are trained on answers, by AdamW."""

    n_steps: int = Field(default=300, ge=1, description="Optimizer steps.")
    batch_size: int = Field(default=256, ge=1, description="Rows per step.")
    lr: float = Field(default=2e-3, gt=0, description="Highest learning rate.")
    weight_decay: float = Field(default=0.0, ge=0, description="Weight decay of AdamW.")
    clip: float = Field(default=1.0, gt=0, description="Maximum norm of the gradient.")
    n_warmup: int = Field(default=20, ge=0, description="Steps over which the learning rate rises.")
    decay_share: float = Field(
        default=0.5, ge=0, le=1, description="Share of the steps over which the learning rate falls to 0."
    )
    first_hop_weight: float = Field(
        default=1.0, ge=0, description="Weight of the loss on the first hop's answer; 0 drops that loss."
    )
    is_kept: bool = Field(
        default=False,
        description="Read the problems once, keep what the frozen layers hold, and run only those from the source on "
        "in each step, in bfloat16 where the processor has it: faster on large models; one source layer.",
    )
    seed: int = Field(default=0, description="Seed of the batches.")


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
    return _rows(tokenizer, problems)


def _holds(prompt: str, answer: str) -> bool:
    return re.search(rf"(?<![\w-]){re.escape(answer)}(?!\w)", prompt) is not None


def _rows(tokenizer: PreTrainedTokenizerBase, problems: Sequence[Problem]) -> list[Row]:
    prompts = _ids(tokenizer, [problem.prompt for problem in problems])
    answers = _ids(tokenizer, [_gap(problem) + problem.answer for problem in problems], add_special_tokens=False)
    for problem, prompt, answer in zip(problems, prompts, answers, strict=True):
        if not prompt or not answer:
            raise BadInput(f"The question {problem.prompt!r} or its answer {problem.answer!r} has no tokens.")
    hops = _first_hops(tokenizer, problems)
    return [Row([*p, *a], len(a), hop) for p, a, hop in zip(prompts, answers, hops, strict=True)]


def _ids(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], **options: bool) -> list[list[int]]:
    return [list(ids) for ids in tokenizer(list(texts), **options)["input_ids"]] if texts else []


def _gap(problem: Problem) -> str:
    return "" if problem.prompt[-1:].isspace() else " "


def _first_hops(tokenizer: PreTrainedTokenizerBase, problems: Sequence[Problem]) -> list[tuple[int, int] | None]:
    """Return the position at which each first hop is complete, and the first token of what it leads to."""
    ends = [_end_of_first_hop(problem) for problem in problems]
    named = [i for i, end in enumerate(ends) if end is not None]
    begun = _ids(tokenizer, [problems[i].prompt[: ends[i]] for i in named])
    led_to = _ids(tokenizer, [f" {problems[i].facts['e2']}" for i in named], add_special_tokens=False)
    found: list[tuple[int, int] | None] = [None] * len(problems)
    for i, ids, token in zip(named, begun, led_to, strict=True):
        found[i] = len(ids) - 1, token[0]
    return found


def _end_of_first_hop(problem: Problem) -> int | None:
    """Return where both the first relation and its entity have been read, whichever comes last."""
    if problem.hops < 2 or not {"e1", "r1", "e2"} <= problem.facts.keys():
        return None
    places = [re.search(rf"(?<!\w){re.escape(problem.facts[name])}(?!\w)", problem.prompt) for name in ("e1", "r1")]
    return None if None in places else max(place.end() for place in places if place is not None)


@torch.no_grad()
def check_unsolved(model: nn.Module, tokenizer: PreTrainedTokenizerBase, problems: Sequence[Problem]) -> None:
    """Raise BadInput if the model answers more than nine in ten of the problems as it is; at most 256 are asked."""
    rows = rows_of(tokenizer, Random("asked").sample(list(problems), min(_N_ASKED, len(problems))))
    inner = anatomy(model).model
    with evaluating(inner):
        n_right = sum(_n_solved(inner, rows[i : i + 32]) for i in range(0, len(rows), 32))
    if 10 * n_right > 9 * len(rows):
        raise BadInput(
            f"The model answers {n_right} of {len(rows)} problems already, and what it knows trains nothing; give "
            "problems that it does not answer."
        )


def _n_solved(model: nn.Module, rows: Sequence[Row]) -> int:
    ids, mask = left_pad([row.ids for row in rows], 0, input_device(causal_lm(model)))
    best = forward(anatomy(model), ids, mask).argmax(-1)
    return sum(
        bool(torch.equal(best[i, -row.n_answer - 1 : -1], ids[i, -row.n_answer :])) for i, row in enumerate(rows)
    )


def train(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    parameters: Iterable[nn.Parameter],
    problems: Sequence[Problem],
    config: AnswerTraining,
    *,
    progress: bool = False,
) -> list[float]:
    """Train parameters that the model's forward pass uses now on the answers; return the loss of each step.

    The model's own parameters keep their values and get no gradients.
    """
    rows = rows_of(tokenizer, problems)
    trained = list(parameters)
    inner = anatomy(model).model
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
    with evaluating(inner), frozen(inner, but=trained):
        return descend(
            trained, rows, lambda drawn: _loss(inner, drawn, pad, config.first_hop_weight), config, progress=progress
        )


def descend(
    trained: Sequence[nn.Parameter],
    rows: Sequence[T],
    loss_of: Callable[[Sequence[T]], Tensor],
    config: AnswerTraining,
    *,
    progress: bool,
) -> list[float]:
    """Take the optimizer steps of a training on drawn rows; return the loss of each."""
    optimizer = torch.optim.AdamW(trained, lr=config.lr, weight_decay=config.weight_decay)
    losses = []
    with torch.enable_grad(), progress_bar("fitting", config.n_steps, shown=progress) as shown:
        for step in range(config.n_steps):
            for group in optimizer.param_groups:
                group["lr"] = _rate(config, step)
            loss = loss_of(Random(f"{config.seed}/{step}").choices(rows, k=config.batch_size))
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(trained, config.clip)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            losses.append(float(loss.detach()))
            shown.advance()
    return losses


def _rate(config: AnswerTraining, step: int) -> float:
    warm = min(1.0, (step + 1) / max(1, config.n_warmup))
    decay = min(1.0, (config.n_steps - step) / max(1.0, config.decay_share * config.n_steps))
    return config.lr * min(warm, decay)


def _loss(model: nn.Module, rows: Sequence[Row], pad: int, first_hop_weight: float) -> Tensor:
    width = max(len(row.ids) for row in rows)
    device = input_device(causal_lm(model))
    ids = torch.tensor([[pad] * (width - len(row.ids)) + row.ids for row in rows], device=device)
    mask = torch.tensor([[0] * (width - len(row.ids)) + [1] * len(row.ids) for row in rows], device=device)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    answers = [
        (i, width - row.n_answer - 1 + k, row.ids[len(row.ids) - row.n_answer + k])
        for i, row in enumerate(rows)
        for k in range(row.n_answer)
    ]
    hops = [
        (i, width - len(row.ids) + row.first_hop[0], row.first_hop[1])
        for i, row in enumerate(rows)
        if row.first_hop is not None
    ]
    hops = hops if first_hop_weight else []
    # the logits of the columns that something is asked at, nothing of which is the last token of an answer
    columns = sorted({position for _, position, _ in (*answers, *hops)})
    at = torch.tensor(columns, device=device)
    options = {"attention_mask": mask[:, :-1], "position_ids": positions[:, :-1], "logits_to_keep": at}
    logits = model(input_ids=ids[:, :-1], use_cache=False, **options).logits
    loss = -_picked(logits, answers, columns).mean()
    return loss - first_hop_weight * _picked(logits, hops, columns).mean() if hops else loss


def _picked(logits: Tensor, places: Sequence[tuple[int, int, int]], columns: Sequence[int]) -> Tensor:
    """Return the log-probabilities at (row, position, token); the logits are those of some positions."""
    index = {position: i for i, position in enumerate(columns)}
    asked = [(row, index[position], token) for row, position, token in places]
    row, column, token = torch.tensor(asked, device=logits.device).T
    return widened(logits[row, column]).log_softmax(-1).gather(-1, token[:, None])[:, 0]


__all__ = ["AnswerTraining", "Row", "descend", "rows_of", "train"]
