"""First errors that come from pivots: traces with them work wherever first errors of slots do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from transformers import PreTrainedTokenizerBase

from chainwright._errors import BadInput
from chainwright.diagnose.pivots.finding import Pivots
from chainwright.diagnose.right_tokens import PIVOT, PIVOT_TOKEN
from chainwright.tasks.base import FirstError
from chainwright.traces import Trace
from chainwright.traces.offsets import token_offsets


def with_first_error(tokenizer: PreTrainedTokenizerBase, trace: Trace, found: Pivots) -> Trace:
    """Return a trace whose first error is its pivot, so that contexts, head roles and TCR can be made from it.

    The error is of type "pivot"; `got` is the token that was written, and `expected` the one whose continuations ended
    right most often (empty if none did, and such a trace gives no contexts). Its first wrong slot, if it had one, is
    replaced. A trace without a pivot that is certain to the token has no first error.

    Args:
        tokenizer: The tokenizer of the trace.
        trace: A trace that was searched.
        found: What was found, in it among others.

    Raises:
        BadInput: The trace is not among those that were searched.
    """
    ids = trace.input_ids.tolist()
    i = next((i for i in range(len(found)) if int(found.n_tokens[i]) == len(ids) and found.ids_of(i) == ids), None)
    if i is None:
        raise BadInput("The trace is none of those that were searched for pivots; pass one that was, unchanged.")
    pivot = found.first_error(i)
    info = {name: value for name, value in trace.info.items() if name != PIVOT_TOKEN}
    if pivot is None:
        return replace(trace, first_error=None, first_error_position=None, info=info)
    right = pivot["expected_id"]
    expected = next((a["token"] for a in pivot["alternatives"] if a["token_id"] == right), "")
    spans = token_offsets(tokenizer, trace.response_ids.tolist(), keep_markers=True).offsets
    start, end = spans[pivot["position"] - trace.response_start]
    error = FirstError(PIVOT, None, None, start, end, expected, pivot["token"])
    if right is not None:
        info[PIVOT_TOKEN] = right
    return replace(trace, first_error=error, first_error_position=pivot["position"], info=info)


def with_first_errors(
    tokenizer: PreTrainedTokenizerBase, traces: Sequence[Trace], found: Pivots, *, if_searched: bool = False
) -> list[Trace]:
    """Return traces with their pivots as first errors; see `with_first_error`.

    Args:
        tokenizer: The tokenizer of the traces.
        traces: Traces.
        found: What was found.
        if_searched: Return those that were not searched as they are, instead of refusing them.

    Raises:
        BadInput: A trace was not searched, and `if_searched` is off.
    """
    searched = {tuple(found.ids_of(i)) for i in range(len(found))}
    return [
        trace
        if if_searched and tuple(trace.input_ids.tolist()) not in searched
        else with_first_error(tokenizer, trace, found)
        for trace in traces
    ]
