"""Traces of problems by an engine, as `generate` would write them: same prompts, same endings, same bookkeeping."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random
from typing import NamedTuple

from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from chainwright.decode.run import Decoding, rows_of
from chainwright.decode.sampling import Sampling
from chainwright.engines.base import Engine, Wanted, Written
from chainwright.engines.check import padded
from chainwright.prompts.asking import Asking
from chainwright.prompts.prompt import Prompt
from chainwright.tasks.base import Problem
from chainwright.traces import Trace


class Answers(NamedTuple):
    """Traces, what the engine gave the tokens of each response (NaN where unknown), and how many came as text."""

    traces: list[Trace]
    logprobs: list[Tensor]
    n_text: int


def written_by(
    engine: Engine,
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    problems: Sequence[Problem | str],
    *,
    sampling: Sampling,
    max_new_tokens: int | None = None,
    max_thinking_tokens: int | None = None,
    n_samples: int = 1,
    seed: int = 0,
    first_row: int = 0,
    asking: Asking | None = None,
    shots_pool: Sequence[Problem] | None = None,
    done: Callable[[int], None] = lambda n: None,
) -> Answers:
    """Return one trace for each problem and sample, in their order, written by an engine.

    The settings are those of `generate`. A row's seed follows from `seed` and its index and is in the trace's `info`;
    what an engine draws with it is its own affair, so drawn responses differ from those of `generate`. Stop strings and
    the limit of thinking are applied to what comes back, as `generate` applies them.

    Raises:
        BadInput: As `generate` and the engine.
    """
    decoding, rows = rows_of(
        model,
        tokenizer,
        problems,
        sampling=sampling,
        max_new_tokens=max_new_tokens,
        max_thinking_tokens=max_thinking_tokens,
        n_samples=n_samples,
        seed=seed,
        first_row=first_row,
        asking=asking,
        shots_pool=shots_pool,
    )
    wanted = [Wanted(list(row.ids), row.max_new_tokens, seed_of(seed, row.index)) for row in rows]
    written = engine.write(wanted, sampling, done)
    traces, logprobs = [], []
    for row, asked, one in zip(rows, wanted, written, strict=True):
        trace = _trace(decoding, row, one, {"engine": engine.name, "engine_seed": asked.seed})
        traces.append(trace)
        logprobs.append(padded(one.logprobs, len(trace) - len(row.ids)))
    return Answers(traces, logprobs, sum(one.is_text for one in written))


def seed_of(seed: int, index: int) -> int:
    """Return the seed of one response, from that of the run and the row's index."""
    return Random(f"{seed}/{index}").getrandbits(31)


def _trace(decoding: Decoding, row: Prompt, one: Written, more: dict[str, str | int | float]) -> Trace:
    ids, ends = list(one.ids), decoding.ends
    if one.ended and ends and not (ids and ids[-1] in ends) and len(ids) < row.max_new_tokens:
        ids.append(decoding.end_id)
    watch = decoding.watch([row])
    if watch is not None:
        watch.rows[0].extend(ids)
    end = None if watch is None else watch.rows[0].end
    return decoding.trace(row, ids, end, {**more, **({"retokenised": True} if one.is_text else {})})
