"""Pivots of responses: searches that share batches, and what they found as one finding."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from chainwright._errors import BadInput, BadTrace
from chainwright._progress import progress_bar
from chainwright.diagnose.pivots.band import Selection, choose
from chainwright.diagnose.pivots.cases import Case, alternatives, drive, try_alternatives
from chainwright.diagnose.pivots.completers import Completer, ModelCompleter
from chainwright.diagnose.pivots.config import PivotConfig
from chainwright.diagnose.pivots.drawing import drawn_as
from chainwright.diagnose.pivots.finding import Pivots
from chainwright.diagnose.pivots.rows import finding_of
from chainwright.diagnose.pivots.tally import Tally
from chainwright.models.anatomy import Anatomy, anatomy, evaluating
from chainwright.models.load import provenance
from chainwright.scoring import check_fits
from chainwright.tasks.base import Problem
from chainwright.traces import Trace

Tick = Callable[[int, int], None]
_AT_ONCE = 16  # responses whose searches share batches


def pivots(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    problem_or_trace: Problem | Trace,
    *,
    config: PivotConfig | None = None,
    completer: Completer | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Pivots:
    """Return the pivots of one response: where the probability that it ends right falls, and for good.

    Args:
        model: A Transformers decoder.
        tokenizer: Its tokenizer.
        problem_or_trace: A judged response of the model to a problem; or a problem, of which it draws some responses
            and takes the first wrong one.
        config: How much must fall, how sure that must be, and what may be spent.
        completer: Who continues prefixes; None lets the model itself.
        seed: Decides what is drawn.
        progress: Show a progress bar.

    Raises:
        BadInput: The problem has no answer, the response nothing that was judged, or greedy decoding is to give more
            than one continuation.
    """
    return find_pivots(
        model, tokenizer, [problem_or_trace], config=config, completer=completer, seed=seed, progress=progress
    )


def find_pivots(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    problems_or_traces: Sequence[Problem | Trace],
    *,
    config: PivotConfig | None = None,
    completer: Completer | None = None,
    seed: int = 0,
    progress: bool = True,
    tick: Tick = lambda done, total: None,
) -> Pivots:
    """Return the pivots of many responses, whose searches share batches.

    Args:
        model: A Transformers decoder.
        tokenizer: Its tokenizer.
        problems_or_traces: Judged responses of the model, or problems. Of each problem some responses are drawn; where
            their share of right ones is within `config.band`, the first wrong one is searched.
        config: As for `pivots`.
        completer: As for `pivots`.
        seed: Decides what is drawn.
        progress: Show a progress bar.
        tick: Called with (responses done, of how many).

    Raises:
        BadInput: As for `pivots`, or there is nothing to search.

    Source: pivotal token search (Phi-4 report, arXiv 2412.08905); values of steps as in Math-Shepherd (arXiv
    2312.08935). Departures: the search is sequential and has an error rate, and looks for the one fall that is not made
    good.
    """
    settings = config or PivotConfig()
    parts = anatomy(model)
    if not problems_or_traces:
        raise BadInput("There is nothing to search; pass at least one problem or trace.")
    for i, each in enumerate(problems_or_traces):
        _check(parts, i, each)
    chosen = _chosen(model, tokenizer, problems_or_traces, settings, seed, progress)
    return search_chosen(
        model, tokenizer, chosen, config=settings, completer=completer, seed=seed, progress=progress, tick=tick
    )


def search_chosen(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    chosen: Selection,
    *,
    config: PivotConfig,
    completer: Completer | None = None,
    seed: int = 0,
    progress: bool = True,
    tick: Tick = lambda done, total: None,
) -> Pivots:
    """Return the pivots of responses that were chosen already; see `find_pivots`."""
    parts = anatomy(model)
    for i, (trace, _) in enumerate(chosen.traces):
        _check(parts, i, trace)
    continues = completer or ModelCompleter(model, tokenizer, drawn_as(model, config), batch_size=config.batch_size)
    cases = [Case.of(trace, start, config, continues) for trace, start in chosen.traces]
    with progress_bar("searching", len(cases), shown=progress) as bar:
        n_before = 0

        def on_done(n: int) -> None:
            bar.move_to(n_before + n)
            tick(n_before + n, len(cases))

        for first in range(0, len(cases), _AT_ONCE):
            n_before = first
            some = cases[first : first + _AT_ONCE]
            drive(some, continues, seed, on_done)
            with evaluating(parts.model), torch.no_grad():
                for case in some:
                    case.alternatives = alternatives(parts, tokenizer, case, config)
            try_alternatives(some, continues, config, seed)
            continues.forget()
    return finding_of(tokenizer, cases, chosen, config, continues, seed, provenance(parts.model))


def _check(parts: Anatomy, i: int, each: Problem | Trace) -> None:
    problem = each.problem if isinstance(each, Trace) else each
    what = f"Trace {i}" if isinstance(each, Trace) else f"Problem {i}"
    if problem is None or not problem.answer.strip():
        raise BadInput(
            f"{what} has no {'problem' if problem is None else 'answer'}, so its continuations cannot be judged; pass "
            "problems with an answer, or traces of such problems."
        )
    if isinstance(each, Trace):
        if each.n_tokens == each.response_start:
            raise BadTrace(f"Trace {i} has no response, so it has no prefixes to continue.")
        check_fits(parts, each)


def _chosen(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    asked: Sequence[Problem | Trace],
    config: PivotConfig,
    seed: int,
    progress: bool,
) -> Selection:
    """Return the responses to search, in order: those that were passed, and one of each problem in the band."""
    problems = [each for each in asked if isinstance(each, Problem)]
    if not problems:
        return Selection([(each, Tally()) for each in asked if isinstance(each, Trace)], {})
    drawn = choose(model, tokenizer, problems, config, seed=seed, progress=progress)
    by_problem = iter(drawn.by_problem)
    traces: list[tuple[Trace, Tally]] = []
    for each in asked:
        found = (each, Tally()) if isinstance(each, Trace) else next(by_problem)
        if found is not None:
            traces.append(found)
    return Selection(traces, drawn.fell_out)
