"""Marked queries at the slots of chains of thought, to measure the stages of a reasoning step like those of a fact.

The step's input x_t in the question takes the place of the entity, the result before it, s_{t-1}, that of the relation.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from chainwright._errors import BadInput
from chainwright.diagnose.contexts import SlotContexts
from chainwright.diagnose.flow.stages import MarkedQuery
from chainwright.diagnose.iteration.step_slots import slot_marks
from chainwright.traces import Trace
from chainwright.traces.offsets import Tokenizer

SLOT_MARKS = ("input x_t", "result s_(t-1)")


def slot_queries(
    tokenizer: Tokenizer,
    traces: Sequence[Trace],
    contexts: SlotContexts,
    *,
    follow: Literal["predicted", "right"] = "predicted",
) -> list[MarkedQuery]:
    """Return the contexts as queries with the input of their step and the result before it marked.

    Contexts at slots that belong to no step, or to a first step without a result before it, are omitted.

    Args:
        tokenizer: The tokenizer of the traces.
        traces: The traces that the contexts come from.
        contexts: From `erroneous_contexts` or `correct_contexts`.
        follow: The token that the model wrote, or the right one; where they differ, the other is the conflicting token.

    Raises:
        BadInput: The contexts have no sites.
    """
    if len(contexts) and not contexts.sites:
        raise BadInput("These contexts do not record which trace and position they end at, so nothing can be marked.")
    queries = []
    for row, (index, position) in enumerate(contexts.sites):
        trace = traces[index]
        marks = slot_marks(tokenizer, trace).get(_slot_at(trace, position), None)
        if marks is None or not marks.previous:
            continue
        predicted, right = int(contexts.predicted_ids[row]), int(contexts.right_ids[row])
        token, other = (predicted, right) if follow == "predicted" else (right, predicted)
        queries.append(
            MarkedQuery(
                trace.input_ids[:position], token, marks.inputs, marks.previous, None if token == other else other
            )
        )
    return queries


def result_queries(tokenizer: Tokenizer, traces: Sequence[Trace], n: int) -> list[MarkedQuery]:
    """Return up to `n` queries at right step results, one per trace, at varying hops.

    Raises:
        BadInput: `n` is below 1.
    """
    if n < 1:
        raise BadInput(f"n must be at least 1 query; got {n}.")
    queries: list[MarkedQuery] = []
    for trace in traces:
        marks = slot_marks(tokenizer, trace)
        right = [s for s in trace.slots if s.is_right and s.end > s.start and s.slot in marks]
        right = [s for s in right if marks[s.slot].is_result and marks[s.slot].previous]
        if not right:
            continue
        slot = right[len(queries) * 7 % len(right)]
        mark = marks[slot.slot]
        ids = trace.input_ids
        queries.append(MarkedQuery(ids[: slot.start], int(ids[slot.start]), mark.inputs, mark.previous))
        if len(queries) == n:
            break
    return queries


def _slot_at(trace: Trace, position: int) -> int:
    """Return the gold slot that is decided at a position, -1 if none is."""
    if trace.first_error is not None and position == trace.first_error_position:
        return -1 if trace.first_error.slot is None else trace.first_error.slot
    return next((s.slot for s in trace.slots if s.start == position), -1)
