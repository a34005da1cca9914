"""Which traces answer the same problem: several responses to one problem are no independent draws."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np

from chainwright._stats import Interval, cluster_interval, wilson
from chainwright.traces import Trace

N_RESAMPLES = 2000


def has_samples(traces: Sequence[Trace]) -> bool:
    """Return whether traces were generated several to a problem."""
    return any(int(trace.info.get("sample", 0)) > 0 for trace in traces)


def problem_key(trace: Trace) -> Hashable:
    """Return what traces of one problem share: the problem, and its index where several responses were asked for."""
    problem, index = trace.problem, trace.info.get("problem")
    if problem is None:
        return trace.prompt, index
    return problem.task, problem.hops, problem.prompt, problem.answer, index


def numbered(traces: Sequence[Trace]) -> list[int]:
    """Return the number of each trace's problem, from 0 in the order in which they occur.

    Traces without a "sample" in their `info` are of a problem each: a problem that is in a set twice counts twice.
    """
    seen: dict[Hashable, int] = {}
    return [
        seen.setdefault(problem_key(trace) if "sample" in trace.info else ("alone", i), len(seen))
        for i, trace in enumerate(traces)
    ]


def share_interval(is_right: Sequence[bool], clusters: Sequence[int], *, seed: int = 0) -> Interval:
    """Return a 95% interval of the share of right traces.

    With one response to each problem it is Wilson's; otherwise problems are resampled with all of their responses.
    Where all responses are alike, which resampling cannot judge, it is Wilson's with each problem counted once.

    Args:
        is_right: Of each trace.
        clusters: The problem of each, as `numbered` returns them.
        seed: Decides the resamples.
    """
    n_problems, n_right = len(set(clusters)), sum(is_right)
    if n_problems == len(is_right):
        return wilson(n_right, len(is_right))
    if n_right in (0, len(is_right)):
        return wilson(n_problems if n_right else 0, n_problems)
    return cluster_interval(np.array(is_right, dtype=float), clusters, n_resamples=N_RESAMPLES, seed=seed)
