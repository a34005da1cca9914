"""What a search for pivots will take, estimated before anything is spent on it."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from time import perf_counter
from typing import NamedTuple

from torch import nn
from transformers import PreTrainedTokenizerBase

from chainwright.decode.sampling import Sampling
from chainwright.diagnose.pivots.config import PivotConfig
from chainwright.diagnose.pivots.continuations import Row, Trunks, continued
from chainwright.models.anatomy import anatomy
from chainwright.prompts.prompt import prompt_ids
from chainwright.tasks.base import Problem
from chainwright.traces import Trace

USUAL = 40  # continuations of a response whose value falls once, from near 1 to near 0 (docs/methods/pivots.md)
_UNKNOWN_LENGTH = 256  # tokens of a response to a problem without a gold chain
_PROBE_ROWS, _PROBE_TOKENS = 8, 16


class PivotPlan(NamedTuple):
    """An estimate of tokens and time.

    Attributes:
        n_searched: Most responses that are searched; problems out of the band are not.
        n_sampled_tokens: Tokens that are written to judge pass rates.
        n_usual, n_most: Continuations if every value falls once and clearly, and if every budget is spent.
        n_usual_tokens, n_most_tokens: Tokens in them.
        seconds_per_token: Measured on a few rows.
    """

    n_searched: int
    n_sampled_tokens: int
    n_usual: int
    n_most: int
    n_usual_tokens: int
    n_most_tokens: int
    seconds_per_token: float

    def __str__(self) -> str:
        """Return the estimate in words."""
        first = f"{self.n_sampled_tokens:,} tokens for pass rates, " if self.n_sampled_tokens else ""
        usual, most = (self.seconds_per_token * (self.n_sampled_tokens + n) for n in
                       (self.n_usual_tokens, self.n_most_tokens))  # fmt: skip
        return (
            f"at most {self.n_searched} responses to search: {first}then about {self.n_usual:,} continuations of "
            f"{self.n_usual_tokens:,} tokens, at most {self.n_most:,} of {self.n_most_tokens:,}; "
            f"about {_time(usual)}, at most {_time(most)}, at {1000 * self.seconds_per_token:.1f} ms per token in "
            f"batches of {_PROBE_ROWS}"
        )


def plan_pivots(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    problems_or_traces: Sequence[Problem | Trace],
    *,
    config: PivotConfig | None = None,
) -> PivotPlan:
    """Return what a search will take; a few tokens are decoded to measure the speed.

    Responses to problems are taken to be as long as the gold chain, or 256 tokens without one.
    """
    settings = config or PivotConfig()
    problems = [each for each in problems_or_traces if isinstance(each, Problem)]
    traces = [each for each in problems_or_traces if isinstance(each, Trace) and each.outcome == "wrong"]
    lengths = [_length(tokenizer, problem) for problem in problems]
    lengths += [len(trace.response_ids) for trace in traces]
    ends = [len(trace.steps) for trace in traces] or [max(2, int(fmean(lengths) / 12)) if lengths else 0]
    n_searched, mean = len(lengths), fmean(lengths) if lengths else 0.0
    per_response = USUAL if settings.per_boundary is None else settings.per_boundary * fmean(ends)
    most = settings.budget if settings.per_boundary is None else per_response + settings.budget
    others = settings.n_alternatives * settings.n_per_alternative
    n_usual, n_most = round(n_searched * (per_response + others)), round(n_searched * (most + others))
    n_sampled = round(settings.n_samples * sum(lengths[: len(problems)]))
    # prefixes end anywhere in the response, so a continuation has half of it on average
    half = mean / 2
    ids = prompt_ids(tokenizer, problems[0]) if problems else traces[0].input_ids.tolist() if traces else [0]
    return PivotPlan(
        n_searched,
        n_sampled,
        n_usual,
        n_most,
        round(n_usual * half),
        round(n_most * half),
        _seconds_per_token(model, ids) if n_searched else 0.0,
    )


def _length(tokenizer: PreTrainedTokenizerBase, problem: Problem) -> int:
    if problem.chain:
        return len(tokenizer(problem.chain, add_special_tokens=False)["input_ids"])
    return _UNKNOWN_LENGTH


def _seconds_per_token(model: nn.Module, ids: Sequence[int]) -> float:
    trunks = Trunks(anatomy(model))
    rows = [Row(tuple(ids), number, _PROBE_TOKENS) for number in range(_PROBE_ROWS)]
    since = perf_counter()
    continued(trunks, rows, sampling=Sampling(temperature=1.0), seed=0, ends=set())
    return (perf_counter() - since) / (_PROBE_ROWS * _PROBE_TOKENS)


def _time(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
