"""Which tokens a repair flagged, written down while it decodes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import Tensor

from chainwright.repair.base import Repair
from chainwright.repair.composed import Composed
from chainwright.repair.tcr.token_repair import CorrectingRepair, Seen
from chainwright.traces import Trace


class FlagLog:
    """What was flagged, by prompt and by what had been written before the flag."""

    def __init__(self) -> None:
        self._flagged: dict[tuple[int, ...], list[tuple[int, ...]]] = {}

    def __call__(self, seen: Seen, flags: Tensor) -> None:
        """Write down the tokens of `seen` that are flagged, `flags` bool `[N]`."""
        for row in flags.nonzero()[:, 0].tolist():
            prompt, context = seen.prompts[row], seen.contexts[row]
            self._flagged.setdefault(tuple(prompt), []).append(tuple(context[len(prompt) :]))

    def tokens(self, traces: Sequence[Trace]) -> list[list[int]]:
        """Return which tokens of each response were flagged, counted from its first."""
        return [self._tokens(trace) for trace in traces]

    def _tokens(self, trace: Trace) -> list[int]:
        ids = trace.input_ids.tolist()
        n_prefilled = int(trace.info.get("n_prefilled", 0))
        start = trace.response_start + n_prefilled
        response, written = tuple(ids[start:]), self._flagged.get(tuple(ids[:start]), [])
        # the same prompt may have been answered twice: what was written before the flag tells whose it is
        written_here = {n for before in written if (n := len(before)) < len(response) and response[:n] == before}
        return sorted(n_prefilled + n for n in written_here)


@contextmanager
def logged_flags(repair: Repair | None) -> Iterator[FlagLog | None]:
    """Write down what a repair flags inside the block; the repair itself stays as it is.

    Args:
        repair: What decodes; of several together, the one that decides tokens.

    Yields:
        The log, or None for a repair that flags nothing.
    """
    parts = repair.repairs if isinstance(repair, Composed) else (repair,)
    deciding = next((part for part in parts if isinstance(part, CorrectingRepair)), None)
    if deciding is None:
        yield None
        return
    log = FlagLog()
    deciding.on_flags.append(log)
    try:
        yield log
    finally:
        deciding.on_flags.remove(log)
