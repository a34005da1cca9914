"""Batches whose rows differ in what acts in them, and whose rows come and go between tokens.

`model.generate` begins and ends a batch as a whole. A decoding loop of one's own can do more, and says so here:

1. Inside `opened_as(run, owner)` what is opened belongs to an owner: a name of the loop's own choice.
2. `reading_prompts(run, owners)` says who acts in each row of the batch whose prompts are read next.
3. `hold` takes the rows out of the run, with what has been read of their segments and steps; the prompts of others
   can then be read as a run of their own.
4. `take_up` continues with any rows that were held, whatever batch they come from. The caller puts their keys and
   values into one cache, padded on the left.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from chainwright.edits._passes import Pass, Row
from chainwright.edits.run import Run
from chainwright.traces.live import KnownRow, LiveRow


@dataclass
class HeldRow:
    """A row that is in no run.

    Attributes:
        row: Its tokens, and who acts in it.
        read: What each of the run's readings has of it; empty for a row that no reading has read.
    """

    row: Row
    read: list[LiveRow | KnownRow | None]

    @classmethod
    def of(cls, ids: Sequence[int], n_prompt: int) -> HeldRow:
        """Return a row in which nothing acts, and which may have been decoded while nothing was open."""
        return cls(Row(list(ids), n_prompt, n_checked=len(ids), acting=frozenset()), [])


@contextmanager
def opened_as(run: Run, owner: Hashable) -> Iterator[None]:
    """Have the edits and repairs that are opened inside the block belong to `owner`, and act in its rows alone."""
    before, run.opening = run.opening, owner
    try:
        yield
    finally:
        run.opening = before


@contextmanager
def reading_prompts(run: Run, owners: Sequence[frozenset[Hashable]], n_prefilled: Sequence[int]) -> Iterator[None]:
    """Say who acts in each row of the run that begins inside the block, and how much of its prompt is response."""
    run.coming = list(owners)
    run.n_prefilled = list(n_prefilled) if any(n_prefilled) else []
    try:
        yield
    finally:
        run.coming, run.n_prefilled = [], []


def hold(run: Run) -> list[HeldRow]:
    """Take all rows out of a run and return them."""
    readings = [reading.rows for reading in run.readings]
    out = [HeldRow(row, [rows[i] for rows in readings]) for i, row in enumerate(run.rows)]
    run.rows, run.held, run.latest = [], [*run.held, *run.rows], Pass()
    return out


def take_up(run: Run, held: Sequence[HeldRow], first: Sequence[int], cache: Any) -> None:
    """Continue with these rows; all others are over.

    Args:
        run: The run.
        held: The rows, in their order in the cache.
        first: The slot of each row's first token.
        cache: What holds the keys and values of each row's tokens.
    """
    n_slots = int(cache.get_seq_length())
    run.rows, run.held = [one.row for one in held], []
    for i, reading in enumerate(run.readings):
        reading.rows = [one.read[i] if one.read else None for one in held]
    run.n_slots, run.n_runs, run.is_decoding = n_slots, run.n_runs + 1, True
    run.latest, run.counted = Pass(max(0, n_slots - 1), 1, first=list(first)), None
    run.watch(cache)
