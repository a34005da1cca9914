"""How long a diagnosis of tasks will take, before it runs: a few short passes are timed, the rest is arithmetic.

1. The first cell's prompts are read and four tokens decoded, which gives the time of a prompt token and of a step.
   A step decodes all rows of a cell, and a cell takes as many as its longest gold chain has tokens.
2. One gold chain is scored, which gives the time per scored token.
3. `plan_head_roles` estimates locating heads, on gold chains cut in the middle; the check and the evidence are forward
   passes over twice as many contexts.

A model that writes longer than the gold chains takes longer. Step maps have an estimate of their own (`plan_steps`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from chainwright import tasks
from chainwright._errors import BadInput
from chainwright.decode.run import generate
from chainwright.diagnose.contexts import SlotContexts
from chainwright.diagnose.heads.role_plan import plan_head_roles
from chainwright.diagnose.heads.role_sweep import RolesConfig
from chainwright.models.padding import left_pad
from chainwright.prompts.prompt import prompts_of
from chainwright.scoring import score_all
from chainwright.studies.diagnosis.config import DiagnoseConfig
from chainwright.studies.diagnosis.parts import Cell, parts
from chainwright.studies.timing import words
from chainwright.tasks import Problem
from chainwright.traces import Trace

_STEPS = 4  # tokens that are decoded to time a step


@dataclass(frozen=True)
class DiagnosisEstimate:
    """What a diagnosis will take, in seconds.

    Attributes:
        traces: Decoding.
        scores: Scoring every token; 0 if no instrument needs it.
        heads: Locating heads at as many key error types as may be searched; 0 without that instrument.
        n_problems, n_types: How many of each.
    """

    traces: float
    scores: float
    heads: float
    n_problems: int
    n_types: int

    @property
    def seconds(self) -> float:
        """Return the time of everything."""
        return self.traces + self.scores + self.heads

    def summary(self) -> str:
        """Return the plan in a sentence."""
        heads = f", {words(self.heads)} to locate heads at up to {self.n_types} error types" if self.heads else ""
        scores = f", {words(self.scores)} to score every token" if self.scores else ""
        return (
            f"About {words(self.seconds)}: {words(self.traces)} to answer {self.n_problems} problems{scores}{heads}. "
            "Timed just now, for responses as long as the gold chains."
        )


class _Speed(NamedTuple):
    """Seconds of a token of a prompt, of a decoding step of all rows of a cell, and of a scored token."""

    prompt_token: float
    step: float
    scored_token: float


class _Size(NamedTuple):
    """Tokens of all prompts of a cell, of all its gold chains, and of the longest one."""

    prompts: int
    chains: int
    longest: int


def plan_diagnosis(model: nn.Module, tokenizer: PreTrainedTokenizerBase, config: DiagnoseConfig) -> DiagnosisEstimate:
    """Return the estimated time of a diagnosis of tasks on this machine, as busy as it is now.

    Raises:
        BadInput: It is of a problem set or of traces, or its problems are too long for the model.
    """
    cells = [cell for cell in parts(config) if isinstance(cell, Cell)]
    if not cells:
        raise BadInput("--plan estimates a diagnosis of tasks; for problem sets and traces there are no gold chains.")
    problems = [_problems(config, cell) for cell in cells]
    sizes = [_size(model, tokenizer, config, each) for each in problems]
    speed = _speed(model, tokenizer, config, problems[0], sizes[0])
    n_samples = config.drawing.n_samples
    decoding = sum(size.prompts * speed.prompt_token + size.longest * speed.step for size in sizes)
    n_tokens = sum(size.prompts + size.chains for size in sizes)
    wants_scores = {"errors", "heads", "curves"} & set(config.instruments)
    n_types = config.max_types * len({cell.task for cell in cells}) if config.searches_heads else 0
    return DiagnosisEstimate(
        traces=decoding * n_samples,
        scores=n_tokens * n_samples * speed.scored_token if wants_scores else 0.0,
        heads=_heads(model, tokenizer, config, problems, speed) if n_types else 0.0,
        n_problems=sum(map(len, problems)),
        n_types=n_types,
    )


def _problems(config: DiagnoseConfig, cell: Cell) -> list[Problem]:
    return tasks.sample(cell.task, cell.hops, config.n, cell.seed, rendering=config.rendering)


def _size(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, config: DiagnoseConfig, problems: Sequence[Problem]
) -> _Size:
    prompts = prompts_of(model, tokenizer, problems, None, 0, asking=config.asking)
    chains = [len(tokenizer(p.chain, add_special_tokens=False)["input_ids"]) for p in problems]
    return _Size(sum(len(p.ids) for p in prompts), sum(chains), max(chains))


def _speed(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, config: DiagnoseConfig, problems: list[Problem], size: _Size
) -> _Speed:
    def decode(n_tokens: int) -> Callable[[], Any]:
        options: dict[str, Any] = {"asking": config.asking, "batch_size": config.batch_size, "progress": False}
        return lambda: generate(model, tokenizer, problems, max_new_tokens=n_tokens, **options)

    decode(1)()  # warms up
    first, more = _seconds(decode(1)), _seconds(decode(1 + _STEPS))
    trace = _gold(tokenizer, problems[0])
    score_all(model, [trace])
    scoring = _seconds(lambda: score_all(model, [trace]))
    return _Speed(first / size.prompts, max(0.0, more - first) / _STEPS, scoring / len(trace))


def _seconds(run: Callable[[], Any]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def _gold(tokenizer: PreTrainedTokenizerBase, problem: Problem) -> Trace:
    return Trace.from_text(tokenizer, problem.prompt, problem.chain, problem=problem)


def _heads(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    config: DiagnoseConfig,
    problems: Sequence[Sequence[Problem]],
    speed: _Speed,
) -> float:
    """Return the seconds of locating heads at `max_types` types of every task, with check and evidence."""
    seconds = 0.0
    for cells in _by_task(problems):
        gold = [_gold(tokenizer, problem) for cell in cells for problem in cell]
        rows = [t.input_ids[: (t.response_start + len(t)) // 2].tolist() for t in gold]
        contexts = [_contexts(rows[:: ceil(len(rows) / config.n_contexts)]) for _ in range(2)]
        roles = plan_head_roles(model, *contexts, config=RolesConfig(measured=config.measured)).seconds
        n_tokens = 2 * sum(int(c.attention_mask.sum()) for c in contexts)
        # the evidence has a pass with every head and one without each; the check half of one
        seconds += roles + (config.n_evidence + 1.5) * n_tokens * speed.scored_token
    return seconds * config.max_types


def _by_task(problems: Sequence[Sequence[Problem]]) -> Iterator[list[Sequence[Problem]]]:
    for task in dict.fromkeys(cell[0].task for cell in problems):
        yield [cell for cell in problems if cell[0].task == task]


def _contexts(rows: Sequence[list[int]]) -> SlotContexts:
    ids, mask = left_pad(list(rows), 0, torch.device("cpu"))
    token = torch.zeros(len(rows), dtype=torch.long)
    return SlotContexts(ids, mask, token, token)
