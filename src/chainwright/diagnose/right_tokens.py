"""The token that would have been right where a response first went wrong.

1. It is the token that begins there in the right text, as the tokenizer cuts that text. It must be the same whether the
   text ends with the expected value or continues as the gold chain does, since some tokenizers merge the end of a value
   with what follows.
2. Some models write values one character at a time although their tokenizer would merge the characters ("s", "c", "m"
   for "scm"). Where a response did so in values of this type, the right token is the next character alone, since the
   model would not write the merged token.
3. At a pivot it is the token whose continuations succeeded.
"""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase

from chainwright.tasks.base import FirstError
from chainwright.traces import Trace
from chainwright.traces.offsets import TokenOffsets, token_offsets
from chainwright.traces.segments import Span

PIVOT = "pivot"
"""The error type of first errors that come from pivots instead of slots."""
PIVOT_TOKEN = "pivot_token"
"""The entry of a trace's `info` with the id of the token that would have been right at its pivot."""


def right_token(tokenizer: PreTrainedTokenizerBase, trace: Trace) -> int | None:
    """Return the right token at the first wrong position of a trace, or None if it cannot be determined."""
    error, position, problem = trace.first_error, trace.first_error_position, trace.problem
    if error is not None and error.error_type == PIVOT:
        known = trace.info.get(PIVOT_TOKEN)
        return None if known is None else int(known)
    assert error is not None and position is not None and trace.response is not None and problem is not None
    written = token_offsets(tokenizer, trace.response_ids.tolist(), keep_markers=True)
    start = written.offsets[position - trace.response_start].start
    right = trace.response[: error.start] + error.expected
    rest = right[start:]
    if rest.strip() and _is_spelled(tokenizer, trace, error, written):
        return _only(tokenizer, rest[: len(rest) - len(rest.lstrip()) + 1])
    continuation = "" if error.slot is None else problem.chain[problem.slots[error.slot].end :]
    tokens = {_token_from(tokenizer, text, start) for text in (right, right + continuation)}
    return tokens.pop() if len(tokens) == 1 else None


def _is_spelled(tokenizer: PreTrainedTokenizerBase, trace: Trace, error: FirstError, written: TokenOffsets) -> bool:
    """Return whether the values of the error's type were written character by character and would have been joined."""
    gold = None if error.slot is None or trace.problem is None else trace.problem.slots[error.slot].error_type
    first = trace.response_start
    values = [
        Span(written.offsets[slot.start - first].start, written.offsets[slot.end - 1 - first].end)
        for slot in trace.slots
        if slot.start < slot.end and slot.error_type in (gold, error.error_type)
    ]
    end = max((value.end for value in values), default=0)
    usual = token_offsets(tokenizer, _ids(tokenizer, written.text[:end]), keep_markers=True)
    return _longest(written, values) == 1 < _longest(usual, values)


def _longest(cut: TokenOffsets, values: list[Span]) -> int:
    """Return how many characters of one value the longest token covers, without the space before it."""
    return max(
        (
            len(cut.text[max(span.start, value.start) : min(span.end, value.end)].strip())
            for span in cut.offsets
            for value in values
        ),
        default=0,
    )


def _only(tokenizer: PreTrainedTokenizerBase, text: str) -> int | None:
    """Return the token of a text, or None if it has none or several."""
    ids = _ids(tokenizer, text)
    return ids[0] if len(ids) == 1 else None


def _token_from(tokenizer: PreTrainedTokenizerBase, text: str, start: int) -> int | None:
    """Return the token of a response text that begins at a character, or None if none does."""
    ids = _ids(tokenizer, text)
    cut = token_offsets(tokenizer, ids, keep_markers=True)
    if cut.text[: start + 1] != text[: start + 1]:
        return None
    begins = [i for i, span in zip(ids, cut.offsets, strict=True) if span.start == start < span.end]
    return begins[0] if len(begins) == 1 else None


def _ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return [int(i) for i in tokenizer(text, add_special_tokens=False)["input_ids"]]
