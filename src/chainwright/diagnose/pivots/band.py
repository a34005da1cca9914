"""Which problems are worth a search: those that the model solves now and then."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from torch import nn
from transformers import PreTrainedTokenizerBase

from chainwright.decode.run import generate
from chainwright.diagnose.pivots.completers import Ending, outcome_of, tally_of
from chainwright.diagnose.pivots.config import PivotConfig
from chainwright.diagnose.pivots.drawing import drawn_as
from chainwright.diagnose.pivots.tally import Tally
from chainwright.tasks.base import Problem
from chainwright.traces import Trace


class Selection(NamedTuple):
    """The responses to search, each with what is known of its question, and how many problems fell out by reason."""

    traces: list[tuple[Trace, Tally]]
    fell_out: Mapping[str, int]


@dataclass(frozen=True)
class Drawn:
    """What was drawn of some problems.

    Attributes:
        by_problem: The first wrong response of each problem in the band with the tally of all of them, None for a
            problem that fell out.
        fell_out: How many problems fell out, by the reason.
        rates: Share of right responses of each problem.
        samples: All responses, problem by problem.
    """

    by_problem: list[tuple[Trace, Tally] | None]
    fell_out: dict[str, int]
    rates: list[float]
    samples: list[list[Trace]] = field(default_factory=list)


def choose(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    problems: Sequence[Problem],
    config: PivotConfig,
    *,
    seed: int = 0,
    progress: bool = True,
) -> Drawn:
    """Return a wrong response of each problem whose pass rate is in the band.

    Args:
        model: A Transformers decoder.
        tokenizer: Its tokenizer.
        problems: The problems.
        config: The band, the number of samples, and how they are drawn.
        seed: Decides them.
        progress: Show a progress bar.
    """
    traces = generate(
        model,
        tokenizer,
        problems,
        sampling=drawn_as(model, config),
        n_samples=config.n_samples,
        seed=seed,
        max_new_tokens=config.max_new_tokens,
        batch_size=config.batch_size,
        progress=progress,
    )
    n = config.n_samples
    return by_rate([traces[i : i + n] for i in range(0, len(traces), n)], config)


def by_rate(samples: Sequence[Sequence[Trace]], config: PivotConfig) -> Drawn:
    """Return what to search of problems that were answered several times.

    Args:
        samples: The responses to each problem.
        config: The band.
    """
    low, high = config.band
    names = {
        "below": f"solved in less than {low:.0%} of the samples",
        "above": f"solved in more than {high:.0%} of them",
        "none": "without a wrong response that could be read",
    }
    fell_out = dict.fromkeys(names.values(), 0)
    chosen: list[tuple[Trace, Tally] | None] = []
    rates = []
    for group in samples:
        tally = tally_of([Ending(outcome_of(trace)) for trace in group])
        wrong = next((trace for trace in group if outcome_of(trace) == "wrong"), None)
        rate = tally.value if tally.n else 0.0
        rates.append(rate)
        reason = "below" if rate < low else "above" if rate > high else "none" if wrong is None else None
        if reason is not None:
            fell_out[names[reason]] += 1
        chosen.append(None if reason is not None or wrong is None else (wrong, tally))
    return Drawn(chosen, fell_out, rates, [list(group) for group in samples])
