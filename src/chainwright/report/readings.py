"""Whole traces for the report's reader: which ones are shown, and what a page needs to show them.

Which: all of them, in groups by task and type of the first error, while they fit into a number of bytes; else of each
group the shortest, wrong chains before right ones.

What: pieces of text that add up to the trace as it reads (a piece is a token with the white space before it), numbers
of the response's tokens in thousandths, steps, the first error, what else might have been said, and what is said
without a head.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor

from chainwright.diagnose.heads.evidence import HeadEvidence
from chainwright.diagnose.other_tokens import Alternatives
from chainwright.figures.words import title_of
from chainwright.studies.diagnosis.run import Diagnosis
from chainwright.traces import Trace

MAX_BYTES = 3_000_000
_MOST = 99_999
_FIND_WITHIN = 12


class Group(NamedTuple):
    """Traces of one task whose first error is of one type, or that have none.

    Attributes:
        task: Title of the task.
        label: What they have in common.
        is_key: Whether the type is a key type.
        indices: Their places in `Diagnosis.traces`, the shortest first.
    """

    task: str
    label: str
    is_key: bool
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


@dataclass(frozen=True)
class Extras:
    """What is known of traces besides their scores.

    Attributes:
        names: The text of each token id that stands somewhere.
        places: For a trace and a position, the row of `alternatives` there.
        evidence: For a trace and a position, the finding that has a context there, and its row.
    """

    names: Mapping[int, str]
    alternatives: Alternatives | None
    places: Mapping[tuple[int, int], int]
    evidence: Mapping[tuple[int, int], tuple[HeadEvidence, int]]

    def name(self, token_id: int | Tensor) -> str:
        """Return the text of a token id, or its number where nobody knows the text."""
        return self.names.get(int(token_id), f"token {int(token_id)}")


def extras(
    diagnosis: Diagnosis, alternatives: Alternatives | None = None, evidence: Sequence[HeadEvidence] = ()
) -> Extras:
    """Return what findings say of the traces of a diagnosis."""
    names: dict[int, str] = {}
    for texts in (
        *([] if alternatives is None else [alternatives.token_strs]),
        *(found.token_strs for found in evidence),
    ):
        names |= {int(i): text for i, text in texts.items()}
    for trace, strings in zip(diagnosis.traces, diagnosis.token_strs, strict=True):
        names.update(zip(trace.input_ids.tolist(), strings, strict=True))
    places: dict[tuple[int, int], int] = {}
    if alternatives is not None:
        sites = zip(alternatives.trace.tolist(), alternatives.position.tolist(), strict=True)
        places = {site: row for row, site in enumerate(sites)}
    known = {
        (trace, at): (found, row)
        for found in evidence
        for row, (trace, at) in enumerate(found.sites)
        if bool(found.is_erroneous[row])
    }
    return Extras(names, alternatives, places, known)


def group_traces(diagnosis: Diagnosis) -> list[Group]:
    """Return all traces of problems by task and type of the first error; right chains come last in each task."""
    found: dict[tuple[str, str | None], list[int]] = {}
    for i, trace in enumerate(diagnosis.traces):
        if trace.problem is not None:
            kind = None if trace.first_error is None else trace.first_error.error_type
            found.setdefault((trace.problem.task, kind), []).append(i)
    order = {(row["task"], row["error_type"]): at for at, row in enumerate(diagnosis.errors.by_task)}
    tasks = list(dict.fromkeys(task for task, _ in found))
    keys = sorted(found, key=lambda key: (tasks.index(key[0]), order.get((key[0], key[1] or ""), len(order))))
    return [
        Group(
            title_of(task),
            "no error" if kind is None else kind,
            kind in diagnosis.errors.key_types.get(task, []),
            sorted(found[task, kind], key=lambda i: (diagnosis.traces[i].n_tokens, i)),
        )
        for task, kind in keys
    ]


def reader_data(diagnosis: Diagnosis, known: Extras, max_bytes: int = MAX_BYTES) -> dict[str, Any]:
    """Return plain values for the page: groups, texts by number, and the traces that fit, with how many do not.

    Args:
        diagnosis: Where the traces are.
        known: What else is known of them.
        max_bytes: Bytes that the traces may take as JSON.
    """
    groups = group_traces(diagnosis)
    pieces = Pieces()
    kept: dict[int, dict[str, Any]] = {}
    left = max_bytes
    for i in _by_worth(groups):
        data = _trace_data(diagnosis, i, pieces, known)
        size = len(json.dumps(data, ensure_ascii=False, separators=(",", ":")).encode())
        if size > left:
            break
        kept[i] = data
        left -= size
    place = {index: n for n, index in enumerate(sorted(kept))}
    shown = [
        {"task": g.task, "label": g.label, "is_key": g.is_key, "n": len(g.indices), "traces": held}
        for g in groups
        if (held := [place[i] for i in g.indices if i in place])
    ]
    n_all = sum(len(group.indices) for group in groups)
    return {"groups": shown, "texts": pieces.texts, "traces": [kept[i] for i in sorted(kept)], "n_all": n_all}


def _by_worth(groups: Sequence[Group]) -> list[int]:
    """Return traces in the order in which they are to be kept: of each group the first, then the second ..."""
    ranked = [
        (group.label == "no error", rank, at, i)
        for at, group in enumerate(groups)
        for rank, i in enumerate(group.indices)
    ]
    return [i for *_, i in sorted(ranked)]


def _trace_data(diagnosis: Diagnosis, index: int, pieces: Pieces, known: Extras) -> dict[str, Any]:
    trace, scores = diagnosis.traces[index], diagnosis.scores[index]
    assert trace.problem is not None
    spaced = with_spaces(diagnosis.token_strs[index], (trace.prompt or "") + (trace.response or ""))
    start = max(1, trace.response_start)
    data = {
        "number": index,
        "task": title_of(trace.problem.task),
        "hops": trace.problem.hops,
        "answer": trace.problem.answer,
        "is_correct": trace.is_correct,
        "stopped": trace.stopped,
        "pieces": [pieces.number(text) for text in spaced],
        "start": start,
        "lost": _thousandths(-scores.logprob[start:]),
        "entropy": _thousandths(scores.entropy[start:]),
        "steps": [[step.start, step.end, _segment(trace, step.start)] for step in trace.steps],
        "error": _error_data(trace),
        "others": _others(trace, scores.argmax, index, pieces, known),
    }
    at = trace.first_error_position
    if at is not None and (index, at) in known.evidence:
        data["without"] = _without(*known.evidence[index, at], pieces)
    return data


def _others(trace: Trace, argmax: Tensor, index: int, pieces: Pieces, known: Extras) -> dict[str, Any]:
    """Return by position `[likeliest tokens, their thousandths]`, and the expected token with its own if it is another.

    Without alternatives, the likeliest token where it is not the one that stands there.
    """
    start = max(1, trace.response_start)
    found: dict[str, Any] = {}
    ids = trace.input_ids.tolist()
    for at in range(start, len(ids)):
        row = known.places.get((index, at))
        if row is not None and known.alternatives is not None:
            found[str(at)] = _likely(known.alternatives, row, ids[at], pieces, known)
        elif int(argmax[at]) not in (-1, ids[at]):
            found[str(at)] = [[pieces.number(known.name(argmax[at]))], []]
    return found


def _likely(table: Alternatives, row: int, own: int, pieces: Pieces, known: Extras) -> list[Any]:
    p_top = [_thousandth(p) for p in table.p_top[row].tolist()]
    kept = [rank for rank, p in enumerate(p_top) if p or rank == 0]
    tokens = [pieces.number(known.name(table.top_ids[row, rank])) for rank in kept]
    said: list[Any] = [tokens, [p_top[rank] for rank in kept]]
    expected = int(table.expected_ids[row])
    if expected not in (-1, own):
        said.append([pieces.number(known.name(expected)), _thousandth(float(table.p_expected[row]))])
    return said


def _without(found: HeadEvidence, row: int, pieces: Pieces) -> list[list[int]]:
    """Return for the whole model (layer and head -1) and without each head what is said, and whether it is right.

    Layer, head, what is said, its thousandths, those of the right token, and 1 where that is the one.
    """
    names = [[-1, -1], *found.heads]
    return [
        [
            layer,
            head,
            pieces.number(found.text(found.top_ids[row, k, 0])),
            _thousandth(float(found.p_top[row, k, 0])),
            _thousandth(float(found.p_right[row, k])),
            int(found.is_right[row, k]),
        ]
        for k, (layer, head) in enumerate(names)
    ]


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


def _thousandth(value: float) -> int:
    return round(1000 * value)


def _thousandths(values: Tensor) -> list[int | None]:
    return [min(_thousandth(v), _MOST) if math.isfinite(v) else None for v in values.tolist()]


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
        "at": at,
        "type": error.error_type,
        "hop": None if error.hop is None else error.hop + 1,
        "expected": error.expected,
        "got": error.got,
    }
