"""Reading a run: in which segment and step each token is, for edits that act on those."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from time import perf_counter
from typing import TYPE_CHECKING

from chainwright._errors import BadInput
from chainwright.edits._passes import UNSEEN, Pass
from chainwright.traces.live import KnownRow, LiveRow, LiveSteps, Place

if TYPE_CHECKING:
    from chainwright.edits.run import Run


class Reading:
    """The place of every token in its row's segments and steps, for edits that act on those.

    Attributes:
        run: The run that is read.
        owner: Who the edits belong to, where rows of one batch differ; see `edits/batches.py`.
        how: How responses are read; None where the places are known beforehand.
        n_question: Tokens of each row's question; None where the prompt is the question.
        known: The places of each row, or None.
        rows: The tokens and places of each row; None for a row in which the edits do not act.
        places: For each row of the latest pass the places of its new tokens; None for padding. Positions in a place
            count from the row's first token.
        on_begin: Called when a run begins.
        on_take: Called with the indices when rows change places.
        seconds: Wall seconds that reading took.
    """

    def __init__(
        self,
        run: Run,
        how: LiveSteps | None,
        n_question: Sequence[int] | None = None,
        known: Sequence[KnownRow] | None = None,
    ):
        self.run, self.owner = run, run.opening
        self.how, self.n_question, self.known = how, n_question, known
        self.rows: list[LiveRow | KnownRow | None] = []
        self.places: list[list[Place | None]] = []
        self.on_begin: list[Callable[[], None]] = []
        self.on_take: list[Callable[[Sequence[int]], None]] = []
        self.seconds = 0.0

    @property
    def has_response(self) -> bool:
        """Return whether tokens beyond the first prompt were read, in rows whose prompt is their question."""
        live = [row for row in self.rows if isinstance(row, LiveRow)] if self.n_question is None else []
        return any(row.n_question is not None and len(row.ids) > row.n_question for row in live)

    def begin(self, n_rows: int) -> None:
        """Begin a run of so many rows."""
        for notify in self.on_begin:
            notify()
        lengths: Sequence[int | None] = self.n_question or [None]
        if self.known is not None:
            lengths = [0] * len(self.known)
        if n_rows % len(lengths):
            raise BadInput(
                f"The lengths of {len(lengths)} questions were given, but the batch has {n_rows} rows; give one per "
                "row, or a batch that is a multiple of them."
            )
        repeats = n_rows // len(lengths)
        if self.known is not None:
            self.rows = [row.copy() for row in self.known for _ in range(repeats)]
            return
        if self.how is None:
            raise BadInput("This edit reads the response while it is written; give it steps=LiveSteps(tokenizer).")
        rows = [self.how.row(n) for n in lengths for _ in range(repeats)]
        self.rows = [live if row.acts(self.owner) else None for live, row in zip(rows, self.run.rows, strict=True)]

    def extend(self, now: Pass, new: list[list[int]]) -> None:
        """Take in the new tokens of a pass."""
        if len(self.rows) != len(new) or any(
            row is not None and now.n_past - first > len(row.ids)
            for first, row in zip(now.first, self.rows, strict=True)
        ):
            raise BadInput(UNSEEN.format(now.n_past))
        since = perf_counter()
        prefilled = self.run.n_prefilled or [0] * len(new)
        self.places = [
            [None] * len(ids) if row is None else self._extended(row, ids, first, now, n)
            for row, ids, first, n in zip(self.rows, new, now.first, prefilled, strict=True)
        ]
        self.seconds += perf_counter() - since

    def _extended(
        self, row: LiveRow | KnownRow, new: list[int], first: int, now: Pass, n_prefilled: int
    ) -> list[Place | None]:
        n_known = self._n_unchanged(row, new, first, now)
        row.truncate(max(0, now.n_past - first) + n_known)
        n_padding = max(0, min(len(new), first - now.n_past))
        if isinstance(row, LiveRow) and self.n_question is None:
            if not row.ids:
                row.n_question = now.n_confirmed - first - n_prefilled
            elif now.is_prompt:
                row.n_question = len(row.ids) + len(new) - n_prefilled
        old = list(row.places[:n_known]) if isinstance(row, LiveRow) else list(row.all_places[:n_known])
        return [None] * n_padding + old + list(row.extend(new[n_padding + n_known :]))

    def _n_unchanged(self, row: LiveRow | KnownRow, new: list[int], first: int, now: Pass) -> int:
        """Return how many tokens are those that were read already, in a pass that repeats them for want of a cache."""
        is_repeated = now.n_past == 0 and row.ids and row.ids == new[first:-1]
        return len(row.ids) if is_repeated else 0

    def take(self, order: Sequence[int]) -> None:
        """Put row `order[i]` in the place of row i."""
        self.rows = [None if (row := self.rows[i]) is None else row.copy() for i in order]
        for notify in self.on_take:
            notify(order)

    def look(self, now: Pass, rows: Sequence[int]) -> None:
        """Take the places of a pass aside from the rows that it is a part of."""
        if now.n_past and any(self.rows[i] is not None for i in rows):
            raise BadInput("Edits that act on steps need whole rows; run the pass without a cache.")
        self.places = []
        for first, i in zip(now.first, rows, strict=True):
            row = self.rows[i]
            if row is None:
                self.places.append([None] * now.n_new)
                continue
            places = row.places if isinstance(row, LiveRow) else row.all_places
            self.places.append([None] * first + list(places[: now.n_new - first]))
