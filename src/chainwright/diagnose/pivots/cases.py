"""Responses that are searched, and the continuations that their searches ask for, all in shared batches."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from transformers import PreTrainedTokenizerBase

from chainwright.diagnose.pivots.completers import Asked, Completer, Ending, outcome_of, tally_of
from chainwright.diagnose.pivots.config import PivotConfig
from chainwright.diagnose.pivots.search import Fall, Search
from chainwright.diagnose.pivots.tally import Tally
from chainwright.models.anatomy import Anatomy
from chainwright.models.capture import final_states
from chainwright.models.load import end_ids
from chainwright.models.residual import unembed
from chainwright.traces import Trace


@dataclass
class Case:
    """One response that is searched, with the endings of its continuations.

    Attributes:
        trace: The response.
        ids: Its tokens, question included.
        limit: Most tokens of a response, the prefix that is continued included.
        status: How it ended itself; only right and wrong ones have a search.
        search: Looks for the fall.
        is_exact: Whether one continuation decides what a prefix is worth.
        endings: How the continuations of each prefix ended, in the order of their numbers.
        alternatives: Probabilities of other tokens at the pivot.
    """

    trace: Trace
    ids: tuple[int, ...]
    limit: int
    status: str
    search: Search | None
    is_exact: bool
    endings: dict[tuple[int, ...], list[Ending]] = field(default_factory=lambda: defaultdict(list))
    alternatives: dict[int, float] = field(default_factory=dict)

    @classmethod
    def of(cls, trace: Trace, start: Tally, config: PivotConfig, completer: Completer) -> Case:
        """Return a case whose question has some continuations already, counted in `start`."""
        status = "unjudged" if trace.is_correct is None else outcome_of(trace)
        ids = tuple(trace.input_ids.tolist())
        n_response = len(ids) - trace.response_start
        limit = min(int(trace.info.get("max_new_tokens", 2**31)), max(2 * n_response, 64))
        limit = config.max_new_tokens or limit
        search = None
        if status in ("right", "wrong"):
            ends = [trace.response_start, *(end for _, end in trace.steps if end > trace.response_start)]
            known = {len(ids): Tally(known=float(status == "right")), trace.response_start: start}
            can_split = [is_models for is_models, (_, end) in zip(trace.is_models_step, trace.steps, strict=True)
                         if end > trace.response_start]  # fmt: skip
            # an opening marker that the response begins with belongs to the question's step
            search = Search(ends, config, known, can_split=can_split)
        return cls(trace, ids, limit, status, search, completer.is_exact)

    def asked(self, prefix: tuple[int, ...], n: int) -> Asked:
        """Return the next `n` continuations of a prefix."""
        written = len(prefix) - self.trace.response_start
        return Asked(self.trace, prefix, len(self.endings[prefix]), n, max(1, self.limit - written))

    def note(self, asked: Asked, endings: list[Ending]) -> None:
        """Remember how continuations ended, and count those of the response's own prefixes."""
        self.endings[asked.prefix] += endings
        is_own = asked.prefix == self.ids[: len(asked.prefix)]
        if self.search is not None and is_own:
            tally = tally_of(endings)
            known = float(tally.n_right > 0) if self.is_exact else None
            self.search.add(
                len(asked.prefix), Tally(*(tally.n_right, tally.n_wrong, tally.n_cut, tally.n_unread), known)
            )

    @property
    def pivot(self) -> Fall | None:
        """Return the fall at the one token where the response goes wrong; None where it is not known."""
        outcome = None if self.search is None else self.search.outcome
        is_known = outcome is not None and outcome.status in ("found", "likely") and outcome.is_token
        return outcome.fall if outcome is not None and is_known else None


def drive(cases: Sequence[Case], completer: Completer, seed: int, tick: Callable[[int], None]) -> None:
    """Make the continuations that the searches want, all searches together, until none wants more."""
    open_cases = [case for case in cases if case.search is not None]
    tick(len(cases) - len(open_cases))
    while open_cases:
        asked: list[tuple[Case, Asked]] = []
        for case in list(open_cases):
            assert case.search is not None
            wanted = case.search.wanted()
            if not wanted:
                open_cases.remove(case)
            for length, n in wanted.items():
                asked.append((case, case.asked(case.ids[:length], 1 if completer.is_exact else n)))
        tick(len(cases) - len(open_cases))
        for (case, each), endings in zip(asked, completer.complete([a for _, a in asked], seed), strict=True):
            case.note(each, endings)


def alternatives(
    parts: Anatomy, tokenizer: PreTrainedTokenizerBase, case: Case, config: PivotConfig
) -> dict[int, float]:
    """Return the probabilities of other tokens that could have been written at the pivot, the best first.

    First come those with which continuations of the prefix before it ended right, then the likeliest.
    """
    fall = case.pivot
    if fall is None or not config.n_alternatives:
        return {}
    before = case.ids[: fall.before]
    hidden = final_states(parts, torch.tensor([before], device=parts.device))[0, -1:]
    p = unembed(parts, hidden).float().softmax(-1)[0].cpu()
    ends = end_ids(parts.model, tokenizer)
    right = Counter(e.first_id for e in case.endings[before] if e.outcome == "right" and e.first_id is not None)
    likely = [int(i) for i in p.topk(min(len(p), config.n_alternatives + 2)).indices]
    order = sorted({*right, *likely} - ends - {case.ids[fall.before]}, key=lambda i: (-right[i], -float(p[i]), i))
    return {i: float(p[i]) for i in order[: config.n_alternatives]}


def try_alternatives(cases: Sequence[Case], completer: Completer, config: PivotConfig, seed: int) -> None:
    """Continue the other tokens at the pivots, so far as the continuations before them have not tried them."""
    asked: list[tuple[Case, Asked]] = []
    for case in cases:
        fall = case.pivot
        if fall is None:
            continue
        before = case.ids[: fall.before]
        for token in case.alternatives:
            n_had = sum(ending.first_id == token for ending in case.endings[before])
            n = 1 if completer.is_exact else config.n_per_alternative - n_had
            if n > 0:
                asked.append((case, case.asked((*before, token), n)))
    for (case, each), endings in zip(asked, completer.complete([a for _, a in asked], seed), strict=True):
        case.note(each, endings)
