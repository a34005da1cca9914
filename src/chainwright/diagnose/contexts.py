"""Contexts that end right before a decision: where the model was wrong there, and like places where it was right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from chainwright._errors import BadInput
from chainwright.decode import left_pad
from chainwright.traces import Trace


@dataclass(frozen=True)
class SlotContexts:
    """Contexts up to one kind of slot, left-padded, on the CPU.

    Attributes:
        input_ids: Prompt and response up to the slot's deciding token, `[N, T]`.
        attention_mask: `[N, T]`.
        predicted_ids: The token that the model wrote there, `[N]`.
        right_ids: The token that would have been right, `[N]`; equal to `predicted_ids` where the model was right.
        hops: Hop of each slot, for matching.
        traces: Index of each context's trace.
    """

    input_ids: Tensor
    attention_mask: Tensor
    predicted_ids: Tensor
    right_ids: Tensor
    hops: tuple[int, ...] = ()
    traces: tuple[int, ...] = ()

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

    A first error is left out when the response ends before the wrong token, or when the right token cannot be told
    (the expected text is cut into tokens at another place).

    Raises:
        BadInput: There is no such error.
    """
    sites = []
    for i, trace in enumerate(traces):
        error = trace.first_error
        is_wanted = trace.problem is not None and trace.problem.task == task
        if not is_wanted or error is None or error.error_type != error_type or trace.first_error_position is None:
            continue
        right = _right_id(tokenizer, trace)
        if right is not None and right != int(trace.input_ids[trace.first_error_position]):
            sites.append(_Site(i, trace.first_error_position, right, error.hop or 0))
    if not sites:
        raise BadInput(f"No trace of task {task!r} has a first error of type {error_type!r} whose right token is known.")
    step = max(1, len(sites) // n)
    return _contexts(traces, sites[::step][:n])


def correct_contexts(traces: Sequence[Trace], like: SlotContexts, n: int) -> SlotContexts:
    """Return up to `n` contexts at slots that were right, matched to `like` in kind of slot and in hop.

    For each erroneous context in turn the right slot at the nearest hop is taken, from another trace of the same task
    where that can be had; no slot is taken twice. Matching matters: later hops differ from earlier ones in
    more than being wrong.

    Raises:
        BadInput: No slot of that kind was ever right.
    """
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
    while len(taken) < min(n, len(right)):
        hop = like.hops[len(taken) % len(like)]
        used = {site.trace for site in taken}
        free = [site for site in right if site not in taken]
        taken.append(min(free, key=lambda s: (s.trace in used, abs(s.hop - hop), s.trace, s.position)))
    return _contexts(traces, taken)


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
    )


def _right_id(tokenizer: PreTrainedTokenizerBase, trace: Trace) -> int | None:
    """Return the token that should have stood at the first wrong position, None if the tokens do not line up."""
    error, position = trace.first_error, trace.first_error_position
    assert error is not None and position is not None and trace.response is not None
    text = trace.response[: error.start] + error.expected
    ids = list(tokenizer(text, add_special_tokens=False)["input_ids"])
    at = position - trace.response_start
    written = trace.response_ids[:at].tolist()
    if at < 0 or at >= len(ids) or ids[:at] != written:
        return None
    return int(ids[at])
