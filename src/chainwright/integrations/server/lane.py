"""Rows that decode together, which enter and leave between any two tokens.

1. Prompts of newcomers are read in a pass of their own, padded on the left. Their keys and values then join those of
   the rows that are being decoded: the shorter of both are padded in front, and every token keeps its position.
2. A step is one pass over the latest token of each row. Repairs act in the rows that asked for them
   (`chainwright.edits.batches`), so requests with different repairs share the pass.
3. Rows that are over leave the cache before the next step, with the padding that only they needed.

Repairs are attached while some row needs them, so that a batch without any runs the plain model. A lane whose repairs
cannot be restricted to rows holds only requests for exactly these. Where a repair keeps more than the cache does
(StepFlow on layers with a sliding window), rows enter together and stay until the last of them is over.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor

from chainwright.edits._passes import Row
from chainwright.edits.batches import HeldRow, hold, opened_as, reading_prompts, take_up
from chainwright.edits.run import Run, following
from chainwright.integrations.server.caches import has_windows, join, new_cache, select
from chainwright.integrations.server.choice import Choice, Decision, Failure, decision_of
from chainwright.models.anatomy import Anatomy
from chainwright.models.caches import with_cache
from chainwright.models.padding import left_pad, position_ids
from chainwright.repair.base import Repair
from chainwright.repair.tcr._seen import Seen
from chainwright.repair.tcr.token_repair import CorrectingRepair

_LOG = logging.getLogger(__name__)
_PROMPT_TOKENS = 2**13  # of prompts that are read in one pass


class Lane:
    """Rows that decode together.

    Attributes:
        parts: Anatomy of the model.
        repairs: The repairs that may act, by name.
        coming: Answers whose prompts are not read yet.
        rows: Answers that are being decoded.
        n_steps: Passes so far.
        n_joined: Rows that entered while others were being decoded.
        n_failed: Passes that raised.
    """

    def __init__(self, parts: Anatomy, repairs: dict[str, Repair]):
        self.parts, self.repairs = parts, repairs
        self.by_row = all(repair.acts_by_row for repair in repairs.values())
        self.coming: list[Choice] = []
        self.rows: list[Choice] = []
        self.n_steps = self.n_joined = self.n_failed = 0
        self._cache: Any = None
        self._first: list[int] = []
        self._run: Run | None = None
        self._stack = ExitStack()
        self._decisions: dict[int, Decision] = {}
        accepted = inspect.signature(parts.model.forward).parameters
        self._accepted = {"position_ids", "logits_to_keep"} & set(accepted)
        keeps_more = any(not isinstance(repair, CorrectingRepair) for repair in repairs.values())
        self.is_fixed = keeps_more and has_windows(new_cache(parts))

    @property
    def n_rows(self) -> int:
        """Return how many answers it holds."""
        return len(self.coming) + len(self.rows)

    def advance(self) -> None:
        """Let rows leave and enter, and write one token in each row.

        Raises:
            Exception: Whatever the model or a repair raises; the answers that were in that pass have ended with it.
        """
        self._leave()
        if self.coming and not (self.is_fixed and self.rows):
            self._enter()
        if any(row.finish is None for row in self.rows):
            self._step()

    def pause(self) -> None:
        """Detach all repairs, so that another lane may run the model; rows stay as they are."""
        if self._run is not None:
            self._hold_all()
            self._run = None
            self._stack.close()

    def failed(self, what: str, n: int) -> None:
        """Count and log a pass that raised the exception which is being handled."""
        self.n_failed += 1
        _LOG.exception(what, n)

    def clear(self, failure: Failure) -> None:
        """End all rows that are being decoded."""
        for choice in self.rows:
            choice.over("error", failure)
        self.rows, self._first, self._cache = [], [], None
        self._abandon()

    def _abandon(self) -> None:
        """Detach repairs after an error, whatever they make of it."""
        self._run, stack, self._stack = None, self._stack, ExitStack()
        try:
            stack.close()
        except Exception:  # what stopped the pass has been reported; what follows from it is not news
            pass

    # rows that leave

    def _leave(self) -> None:
        for choice in (*self.rows, *self.coming):
            choice.check_time()
        self.coming = [choice for choice in self.coming if choice.finish is None]
        kept = [i for i, choice in enumerate(self.rows) if choice.finish is None]
        if len(kept) == len(self.rows) or (self.is_fixed and kept):
            return
        self._hold_all()
        self.rows = [self.rows[i] for i in kept]
        if not kept:
            self._cache, self._first = None, []
            self.pause()
            return
        first = [self._first[i] for i in kept]
        select(self._cache, kept, min(first))
        self._first = [n - min(first) for n in first]
        self._take_up()

    # rows that enter

    def _enter(self) -> None:
        choices = self._next_prompts()
        self._hold_all()
        try:
            self._attach_for([*self.rows, *choices])
            cache, first, logits = self._read_prompts(choices)
        except Exception as error:  # the rows that are being decoded have no part in it
            self.failed("reading %d prompts failed", len(choices))
            for choice in choices:
                choice.over("error", failure_of(error))
            self._abandon()
            self.resume()
            return
        self.n_joined += len(choices) if self.rows else 0
        self._join(choices, cache, first)
        self._write(choices, logits)

    def _next_prompts(self) -> list[Choice]:
        """Return newcomers whose prompts fit into one pass, the first ones first."""
        longest, n = 0, 0
        for choice in self.coming:
            longest = max(longest, len(choice.ids))
            if n and longest * (n + 1) > _PROMPT_TOKENS:
                break
            n += 1
        chosen, self.coming = self.coming[:n], self.coming[n:]
        return chosen

    def _read_prompts(self, choices: Sequence[Choice]) -> tuple[Any, list[int], Tensor]:
        ids, mask = left_pad([choice.ids for choice in choices], 0, self.parts.device)
        first = [ids.shape[1] - len(choice.ids) for choice in choices]
        cache = new_cache(self.parts)
        if self._run is None:
            return cache, first, self._forward(ids, mask, position_ids(mask), cache)
        owners = [frozenset(choice.wanted.repairs) for choice in choices]
        with reading_prompts(self._run, owners, [choice.wanted.n_prefilled for choice in choices]):
            logits = self._forward(ids, mask, position_ids(mask), cache)
        for choice, held in zip(choices, hold(self._run), strict=True):
            choice.held = held
        return cache, first, logits

    def _join(self, choices: list[Choice], cache: Any, first: list[int]) -> None:
        if self._cache is None:
            self._cache, self._first, self.rows = cache, first, list(choices)
        else:
            widths = [int(each.get_seq_length()) for each in (self._cache, cache)]
            join(self._cache, cache)
            grown, new = (max(widths) - width for width in widths)
            self._first = [n + grown for n in self._first] + [n + new for n in first]
            self.rows = [*self.rows, *choices]
        self._take_up()

    # tokens

    def _step(self) -> None:
        device = self.parts.device
        n_slots = int(self._cache.get_seq_length()) + 1
        ids = torch.tensor([[choice.ids[-1]] for choice in self.rows], device=device)
        first = torch.tensor(self._first, device=device)[:, None]
        mask = (torch.arange(n_slots, device=device) >= first).long()
        logits = self._forward(ids, mask, n_slots - 1 - first, self._cache)
        self._write([choice if choice.finish is None else None for choice in self.rows], logits)

    def _forward(self, ids: Tensor, mask: Tensor, positions: Tensor, cache: Any) -> Tensor:
        self.n_steps += 1
        more = {"position_ids": positions, "logits_to_keep": 1}
        output = self.parts.model(
            input_ids=ids,
            attention_mask=mask,
            **with_cache(self.parts.model, cache),
            use_cache=True,
            **{name: value for name, value in more.items() if name in self._accepted},
        )
        logits: Tensor = output.logits[:, -1]
        return logits

    def _write(self, choices: Sequence[Choice | None], logits: Tensor) -> None:
        decisions, self._decisions = self._decisions, {}
        best = logits.argmax(-1).tolist()
        for i, choice in enumerate(choices):
            if choice is not None:
                decision = None if choice.held is None else decisions.get(choice.held.row.serial)
                choice.append(choice.drawn(logits[i]) if choice.draws else best[i], logits[i], decision)

    # repairs

    def _attach_for(self, choices: Sequence[Choice]) -> None:
        """Have repairs attached if some answer needs them, and only then."""
        is_needed = any(choice.wanted.repairs for choice in choices)
        if is_needed and self._run is None:
            with ExitStack() as stack:
                run = stack.enter_context(following(self.parts))
                for name, repair in self.repairs.items():
                    with opened_as(run, name if self.by_row else None):
                        stack.enter_context(repair.attached(self.parts.model))
                    if isinstance(repair, CorrectingRepair):
                        watch = self._watcher(name)
                        repair.on_decisions.append(watch)
                        stack.callback(repair.on_decisions.remove, watch)
                self._stack, self._run = stack.pop_all(), run
        elif not is_needed:
            self.pause()

    def _watcher(self, name: str) -> Callable[[Sequence[Row], Seen, Tensor], None]:
        def watch(rows: Sequence[Row], seen: Seen, new: Tensor) -> None:
            for row, before, after in zip(rows, seen.logits, new, strict=True):
                self._decisions[row.serial] = decision_of(name, before, after)

        return watch

    def _hold_all(self) -> None:
        """Take all rows out of the run."""
        if self._run is not None and self._run.rows:
            held = hold(self._run)
            for choice, row in zip(self.rows, held, strict=True):
                choice.held = row

    def _take_up(self) -> None:
        """Continue with the rows that there are."""
        self._attach_for(self.rows)
        if self._run is None:
            return
        for choice, first in zip(self.rows, self._first, strict=True):
            n_cached = int(self._cache.get_seq_length()) - first
            if choice.held is None:
                choice.held = HeldRow.of(choice.ids[:n_cached], len(choice.wanted.ids))
            # nothing was open while the row went on
            choice.held.row.ids += choice.ids[len(choice.held.row.ids) : n_cached]
            choice.held.row.n_checked = len(choice.held.row.ids)
        take_up(self._run, [choice.held for choice in self.rows if choice.held is not None], self._first, self._cache)

    def resume(self) -> None:
        """Attach again what was detached, if rows need it."""
        if self.rows and self._run is None:
            self._take_up()


def failure_of(error: Exception) -> Failure:
    """Return what the clients of a batch that raised are answered."""
    line = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
    return Failure(500, f"Decoding failed ({type(error).__name__}: {line}); the server continues with other requests.")
