"""Whole traces for the report's reader: which ones are shown, and what a page needs to show them.

Which: for each key error type the two shortest wrong traces, and the right one of the same task with the most hops.
Without errors, the right one with the most hops of each task.

What: pieces of text that add up to the trace as it reads (a piece is a token with the white space before it), the
numbers of each token, steps, and the first error.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from chainwright.figures.words import title_of
from chainwright.study import Diagnosis
from chainwright.traces import Trace

_WRONG_EACH = 2
_FIND_WITHIN = 12


class Pick(NamedTuple):
    """Traces that are shown together.

    Attributes:
        label: What they have in common.
        indices: Their places in `Diagnosis.traces`, wrong ones first.
    """

    label: str
    indices: list[int]


class Pieces:
    """Texts that are stored once and named by number; a page is much smaller for it."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self._known: dict[str, int] = {}

    def number(self, text: str) -> int:
        """Return the number of a text, which is stored if it is new."""
        if text not in self._known:
            self._known[text] = len(self.texts)
            self.texts.append(text)
        return self._known[text]


def pick_traces(diagnosis: Diagnosis) -> list[Pick]:
    """Return the traces to show, group by group; the same diagnosis gives the same ones."""
    picks = []
    for task, kinds in diagnosis.errors.key_types.items():
        for kind in kinds:
            wrong = _where(diagnosis, task, lambda t, kind=kind: _error_type(t) == kind)  # type: ignore[misc]
            shortest = sorted(wrong, key=lambda i: (diagnosis.traces[i].n_tokens, i))[:_WRONG_EACH]
            picks.append(Pick(f"{title_of(task)}: {kind}", shortest + _right_one(diagnosis, task)))
    if picks:
        return picks
    tasks = dict.fromkeys(t.problem.task for t in diagnosis.traces if t.problem is not None)
    return [Pick(f"{title_of(t)}: right", found) for t in tasks if (found := _right_one(diagnosis, t))]


def _error_type(trace: Trace) -> str | None:
    return None if trace.first_error is None else trace.first_error.error_type


def _where(diagnosis: Diagnosis, task: str, is_wanted: Callable[[Trace], bool]) -> list[int]:
    return [
        i
        for i, trace in enumerate(diagnosis.traces)
        if trace.problem is not None and trace.problem.task == task and is_wanted(trace)
    ]


def _right_one(diagnosis: Diagnosis, task: str) -> list[int]:
    right = _where(diagnosis, task, lambda t: t.first_error is None and bool(t.is_correct))

    def order(i: int) -> tuple[int, int, int]:
        trace = diagnosis.traces[i]
        assert trace.problem is not None
        return -trace.problem.hops, trace.n_tokens, i

    return sorted(right, key=order)[:1]


def reader_data(diagnosis: Diagnosis, picks: Sequence[Pick]) -> dict[str, Any]:
    """Return plain values for the page: groups, texts by number, and each trace once."""
    pieces = Pieces()
    names = token_names(diagnosis)
    shown = sorted({i for pick in picks for i in pick.indices})
    place = {index: n for n, index in enumerate(shown)}
    traces = [_trace_data(diagnosis, i, pieces, names) for i in shown]
    groups = [{"label": pick.label, "traces": [place[i] for i in pick.indices]} for pick in picks]
    return {"groups": groups, "texts": pieces.texts, "traces": traces}


def token_names(diagnosis: Diagnosis) -> dict[int, str]:
    """Return the text of every token id that stands somewhere in the traces."""
    names: dict[int, str] = {}
    for trace, strings in zip(diagnosis.traces, diagnosis.token_strs, strict=True):
        names.update(zip(trace.input_ids.tolist(), strings, strict=True))
    return names


def _trace_data(diagnosis: Diagnosis, index: int, pieces: Pieces, names: dict[int, str]) -> dict[str, Any]:
    trace, scores = diagnosis.traces[index], diagnosis.scores[index]
    assert trace.problem is not None
    spaced = with_spaces(diagnosis.token_strs[index], (trace.prompt or "") + (trace.response or ""))
    likeliest = [
        -1 if best in (-1, own) else pieces.number(names.get(best, f"token {best}"))
        for own, best in zip(trace.input_ids.tolist(), scores.argmax.tolist(), strict=True)
    ]
    return {
        "number": index,
        "task": title_of(trace.problem.task),
        "hops": trace.problem.hops,
        "answer": trace.problem.answer,
        "is_correct": trace.is_correct,
        "stopped": trace.stopped,
        "pieces": [pieces.number(text) for text in spaced],
        "logprob": _rounded(scores.logprob),
        "entropy": _rounded(scores.entropy),
        "likeliest": likeliest,
        "steps": [[step.start, step.end, _segment(trace, step.start)] for step in trace.steps],
        "start": trace.response_start,
        "error": _error_data(trace),
    }


def with_spaces(token_strs: Sequence[str], text: str) -> list[str]:
    """Return each token with the white space before it in the text, which a token read alone may have lost.

    Markers and pieces of characters, which stand nowhere in the text, stay as they are.
    """
    spaced, at = [], 0
    for token in token_strs:
        bare = token.lstrip(" ")
        is_there = text.startswith(token, at)
        found = at if is_there else text.find(bare, at, at + len(bare) + _FIND_WITHIN)
        gap = text[at:found]
        spaced.append(token if is_there or found < 0 or gap.strip() else gap + bare)
        at = at if found < 0 else found + len(token if is_there else bare)
    return spaced


def _rounded(values: Tensor) -> list[float | None]:
    return [round(v, 3) + 0.0 if math.isfinite(v) else None for v in values.tolist()]


def _segment(trace: Trace, position: int) -> str:
    if position < trace.question.end:
        return "question"
    return "thinking" if position < trace.thinking.end else "summary"


def _error_data(trace: Trace) -> dict[str, Any] | None:
    """Return the first error with the tokens that it stands in, none of them if the response ends before."""
    error = trace.first_error
    if error is None:
        return None
    wrong = next((slot for slot in trace.slots if not slot.is_right and slot.end > slot.start), None)
    at = trace.first_error_position
    start, end = (wrong.start, wrong.end) if wrong is not None else (at, None if at is None else at + 1)
    return {
        "start": start,
        "end": end,
        "type": error.error_type,
        "hop": None if error.hop is None else error.hop + 1,
        "expected": error.expected,
        "got": error.got,
    }
