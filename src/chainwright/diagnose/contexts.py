"""Contexts that end right before a decision: where the model was wrong, and comparable ones where it was right.

What a decision is comes from the slots of a problem. Without slots it comes from pivots (`with_first_error`): the token
at which a response lost its chance to end right. Comparable right decisions are then tokens of right responses, matched
by how far into the response they are and, with token scores, by how unsure the model was.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from chainwright._errors import BadInput
from chainwright.diagnose.right_tokens import PIVOT, right_token
from chainwright.models.padding import left_pad
from chainwright.scoring import TokenScores
from chainwright.traces import Trace


@dataclass(frozen=True)
class SlotContexts:
    """Contexts up to one kind of slot, left-padded, on the CPU.

    Attributes:
        input_ids: Prompt and response before the slot's deciding token, `[N, T]`.
        attention_mask: `[N, T]`.
        predicted_ids: The token that the model wrote there, `[N]`.
        right_ids: The token that would have been right, `[N]`; equal to `predicted_ids` where the model was
            right.
        hops: Hop of each slot, by which right contexts are matched to erroneous ones.
        traces: Index of each context's trace.
        positions: Position of the slot's deciding token in the trace.
    """

    input_ids: Tensor
    attention_mask: Tensor
    predicted_ids: Tensor
    right_ids: Tensor
    hops: tuple[int, ...] = ()
    traces: tuple[int, ...] = ()
    positions: tuple[int, ...] = ()

    @property
    def sites(self) -> list[list[int]]:
        """Return where each context ends, as [trace, position]; empty if unknown."""
        known = len(self.traces) == len(self.positions) == len(self)
        return [list(site) for site in zip(self.traces, self.positions, strict=True)] if known else []

    def __len__(self) -> int:
        return len(self.input_ids)

    def take(self, rows: slice) -> SlotContexts:
        """Return some of the contexts, such as `slice(0, None, 2)` for every other one."""
        return SlotContexts(
            self.input_ids[rows],
            self.attention_mask[rows],
            self.predicted_ids[rows],
            self.right_ids[rows],
            self.hops[rows],
            self.traces[rows],
            self.positions[rows],
        )


@dataclass(frozen=True)
class _Site:
    trace: int
    position: int
    right_id: int
    hop: int


def erroneous_contexts(
    tokenizer: PreTrainedTokenizerBase, traces: Sequence[Trace], task: str, error_type: str, n: int
) -> SlotContexts:
    """Return up to `n` contexts at first errors of one type, spread evenly over the traces that have one.

    A first error is skipped if the response ends before the wrong token, or if the right token cannot be determined
    (the expected text is split into tokens elsewhere).

    Raises:
        BadInput: There is no such error, or `n` is below 1.
    """
    _check_n(n)
    sites = []
    for i, trace in enumerate(traces):
        error, position = trace.first_error, trace.first_error_position
        is_wanted = trace.problem is not None and trace.problem.task == task
        if not is_wanted or error is None or error.error_type != error_type or position is None:
            continue
        right = right_token(tokenizer, trace)
        if right is not None and right != int(trace.input_ids[position]):
            hop = _step_at(trace, position) if error.error_type == PIVOT else error.hop or 0
            sites.append(_Site(i, position, right, hop))
    if not sites:
        raise BadInput(
            f"No trace of task {task!r} has a first error of type {error_type!r} whose right token is known."
        )
    n_taken = min(n, len(sites))
    return _contexts(traces, [sites[i * len(sites) // n_taken] for i in range(n_taken)])


def correct_contexts(
    traces: Sequence[Trace], like: SlotContexts, n: int, *, scores: Sequence[TokenScores] | None = None
) -> SlotContexts:
    """Return up to `n` contexts at decisions that were right, matched to `like` by kind of slot and hop.

    For each erroneous context in turn, the right slot at the nearest hop is taken, if possible from a trace of the
    same task that was not used yet; no slot is taken twice. Matching matters, since later hops differ from earlier
    ones in more than their error rate.

    Where `like` ends at pivots there are no slots to match. Then the tokens of right responses of the same task are
    matched by the share of the response before them and, with `scores`, by the entropy, and only those that the model
    puts first are taken.

    Args:
        traces: The traces that `like` comes from, with right ones among them.
        like: Erroneous contexts.
        n: Most contexts to return.
        scores: `score` of each trace in the same order, for pivots; None matches them by place alone.

    Raises:
        BadInput: No slot of that kind was ever right (for pivots: no response was), `like` is empty, or `n` is below 1.
    """
    _check_n(n)
    if not len(like):
        raise BadInput("There are no erroneous contexts to match right ones to.")
    if _at_pivots(traces, like):
        return _contexts(traces, _matched(traces, like, n, scores))
    task, kinds = _kinds(traces, like)
    right = [
        _Site(i, slot.start, int(trace.input_ids[slot.start]), slot.hop)
        for i, trace in enumerate(traces)
        if trace.problem is not None and trace.problem.task == task
        for slot in trace.slots
        if slot.is_right and slot.end > slot.start and trace.problem.slots[slot.slot].error_type in kinds
    ]
    if not right:
        raise BadInput(f"No slot of the kinds {sorted(kinds)} was right in any trace of task {task!r}.")
    taken: list[_Site] = []
    free, used = set(right), set[int]()
    while len(taken) < n and free:
        hop = like.hops[len(taken) % len(like)]
        best = min(free, key=lambda s: (s.trace in used, abs(s.hop - hop), s.trace, s.position))
        taken.append(best)
        free.discard(best)
        used.add(best.trace)
    return _contexts(traces, taken)


def _at_pivots(traces: Sequence[Trace], like: SlotContexts) -> bool:
    errors = [traces[i].first_error for i in like.traces]
    return bool(errors) and all(error is not None and error.error_type == PIVOT for error in errors)


def _matched(traces: Sequence[Trace], like: SlotContexts, n: int, scores: Sequence[TokenScores] | None) -> list[_Site]:
    """Return tokens of right responses that are as far in, and as unsure, as the pivots of `like`."""
    problem = traces[like.traces[0]].problem
    task = "" if problem is None else problem.task
    right = [i for i, t in enumerate(traces) if t.problem is not None and t.problem.task == task and _is_right(t)]
    places = [
        (i, position) for i in right for position in _own_choices(traces[i], None if scores is None else scores[i])
    ]
    if not places:
        raise BadInput(
            f"No response to problems of {task!r} is right, so there is nothing to compare its pivots with; add traces "
            "of problems that the model solves."
        )
    features = torch.tensor([_features(traces, scores, *place) for place in places])
    taken: list[_Site] = []
    used: set[int] = set()
    is_free = torch.ones(len(places), dtype=torch.bool)
    while len(taken) < n and bool(is_free.any()):
        at = len(taken) % len(like)
        wanted = torch.tensor(_features(traces, scores, like.traces[at], like.positions[at]))
        distance = (features - wanted).abs().sum(-1)
        is_used = torch.tensor([i in used for i, _ in places])
        # larger than any distance, so that a response is taken twice only once all were
        best = int((distance + 100.0 * is_used + 1e6 * ~is_free).argmin())
        i, position = places[best]
        taken.append(_Site(i, position, int(traces[i].input_ids[position]), _step_at(traces[i], position)))
        is_free[best] = False
        used.add(i)
    return taken


def _is_right(trace: Trace) -> bool:
    return trace.outcome == "right" and trace.first_error is None


def _own_choices(trace: Trace, scores: TokenScores | None) -> list[int]:
    """Return the positions of a response, without its end; with scores, those whose token the model puts first."""
    every = range(trace.response_start, trace.n_tokens - 1)
    if scores is None:
        return list(every)
    return [position for position in every if int(scores.argmax[position]) == int(trace.input_ids[position])]


def _features(
    traces: Sequence[Trace], scores: Sequence[TokenScores] | None, i: int, position: int
) -> tuple[float, float]:
    """Return how far into its response a token is, as a share, and the entropy there in nats."""
    trace = traces[i]
    place = (position - trace.response_start) / max(1, trace.n_tokens - trace.response_start)
    return place, 0.0 if scores is None else float(scores[i].entropy[position])


def _step_at(trace: Trace, position: int) -> int:
    return next((i for i, (start, end) in enumerate(trace.steps) if start <= position < end), 0)


def _check_n(n: int) -> None:
    if n < 1:
        raise BadInput(f"n must be at least 1 context; got {n}.")


def _kinds(traces: Sequence[Trace], like: SlotContexts) -> tuple[str, set[str]]:
    """Return the task, and the gold types of the slots at which `like` went wrong."""
    kinds: set[str] = set()
    task = ""
    for i in like.traces:
        problem, error = traces[i].problem, traces[i].first_error
        assert problem is not None and error is not None and error.slot is not None
        task = problem.task
        kinds.add(problem.slots[error.slot].error_type)
    return task, kinds


def _contexts(traces: Sequence[Trace], sites: list[_Site]) -> SlotContexts:
    rows = [traces[s.trace].input_ids[: s.position].tolist() for s in sites]
    input_ids, mask = left_pad(rows, 0, torch.device("cpu"))
    predicted = torch.tensor([int(traces[s.trace].input_ids[s.position]) for s in sites])
    return SlotContexts(
        input_ids,
        mask,
        predicted,
        torch.tensor([s.right_id for s in sites]),
        tuple(s.hop for s in sites),
        tuple(s.trace for s in sites),
        tuple(s.position for s in sites),
    )
