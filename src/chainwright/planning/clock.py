"""Timing a function that is called again and again."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median

_FEWEST = 5
Clock = Callable[[], float]
"""Returns seconds: `time.perf_counter`, or `time.process_time` on a machine that is busy with other work."""


def usual_seconds(run: Callable[[], object], clock: Clock, at_least: float = 0.2) -> float:
    """Return the median time of a function, which is called for so many seconds after a first call."""
    run()
    took: list[float] = []
    since = clock()
    while clock() - since < at_least or len(took) < _FEWEST:
        started = clock()
        run()
        took.append(clock() - started)
    return median(took)
