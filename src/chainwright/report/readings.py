"""Whole traces for the report's reader: which ones are shown, and what a page needs to show them.

Which: all of them, in groups by task and type of the first error, while they fit into a number of bytes; else the
shortest of each group, wrong chains before right ones.

What: pieces of text that add up to the trace as it reads (a piece is a token with the white space before it), numbers
of the response's tokens in thousandths, steps, the first error, the likeliest other tokens, and what the model says
there without a head.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

from torch import Tensor

from chainwright.diagnose.errors import ErrorTable
from chainwright.diagnose.heads.evidence import HeadEvidence
from chainwright.diagnose.other_tokens import Alternatives
from chainwright.evaluation.numbered import Numbered
from chainwright.figures.words import title_of
from chainwright.report.section import Material
from chainwright.traces import Trace
from chainwright.traces.offsets import Tokenizer

MAX_BYTES = 3_000_000
_MOST = 99_999
_FIND_WITHIN = 12
_BROKEN = "\ufffd"  # what a token that writes a part of a character reads as
NO_PROBLEM = "Traces without a problem"
_OUTCOMES = {
    "right": "right answer",
    "wrong": "wrong answer",
    "unread": "answer not read",
    "cut": "cut before an answer",
    None: "not judged",
}
_RIGHT = _OUTCOMES["right"]
_MOST_VALUES = 30


class Group(NamedTuple):
    """Traces of one task whose first error is of one type, or that have none.

    Attributes:
        task: Title of the task.
        label: What they have in common.
        is_key: Whether the type is a key type.
        has_error: Whether they have a first error.
        indices: Their places in `Material.traces`, the shortest first.
    """

    task: str
    label: str
    is_key: bool
    has_error: bool
    indices: list[int]


@dataclass(frozen=True)
class Extras:
    """What findings say of single tokens of the traces.

    Attributes:
        names: The text of each token id that occurs somewhere.
        alternatives: The likeliest tokens at some positions.
        places: For a trace and a position, the row of `alternatives` there.
        evidence: For a trace and a position, the finding that has a context there, and its row.
    """

    names: Mapping[int, str]
    alternatives: Alternatives | None
    places: Mapping[tuple[int, int], int]
    evidence: Mapping[tuple[int, int], tuple[HeadEvidence, int]]

    def name(self, token_id: int | Tensor) -> str:
        """Return the text of a token id, or its number where the text is unknown."""
        return self.names.get(int(token_id), f"token {int(token_id)}")


def extras(material: Material) -> Extras:
    """Return what the findings of a report say of single tokens."""
    alternatives = next(iter(material.of(Alternatives)), None)
    evidence = material.of(HeadEvidence)
    names: dict[int, str] = {}
    for texts in ([alternatives.token_strs] if alternatives else []) + [each.token_strs for each in evidence]:
        names |= {int(i): text for i, text in texts.items()}
    if material.has_tokens:
        for trace, strings in zip(material.traces, material.token_strs, strict=True):
            names.update(zip(trace.input_ids.tolist(), strings, strict=True))
    places: dict[tuple[int, int], int] = {}
    if alternatives is not None:
        sites = zip(alternatives.trace.tolist(), alternatives.position.tolist(), strict=True)
        places = {site: row for row, site in enumerate(sites)}
    known = {
        (trace, at): (each, row)
        for each in evidence
        for row, (trace, at) in enumerate(each.sites)
        if bool(each.is_erroneous[row])
    }
    return Extras(names, alternatives, places, known)


def token_texts(trace: Trace, tokenizer: Tokenizer | None) -> list[str]:
    """Return the text of each token; without a tokenizer the text is cut only where the trace says where.

    Ids alone do not tell which characters a token wrote. So the first token then holds the whole question, the first of
    the response all of it, and the tokens of the first error what is wrong and what follows.
    """
    if tokenizer is not None:
        return [tokenizer.decode([int(i)], clean_up_tokenization_spaces=False) for i in trace.input_ids]
    texts, response = [""] * len(trace), trace.response or ""
    texts[0] = trace.prompt or ""
    cuts = {trace.response_start: 0}
    error = trace.first_error
    start, end = error_span(trace)
    if error is not None and start is not None and end is not None and start > trace.response_start:
        cuts |= {start: error.start, end: error.end}
    cuts = {at: place for at, place in cuts.items() if at < len(trace)}
    ends = [*list(cuts.values())[1:], len(response)]
    for (at, place), stop in zip(cuts.items(), ends, strict=True):
        texts[at] += response[place:stop]
    return texts


def error_span(trace: Trace) -> tuple[int | None, int | None]:
    """Return the tokens of the first error; (None, None) if the response ends before."""
    wrong = next((slot for slot in trace.slots if not slot.is_right and slot.end > slot.start), None)
    if wrong is not None:
        return wrong.start, wrong.end
    at = trace.first_error_position
    return at, None if at is None else at + 1


def outcome_label(trace: Trace) -> str:
    """Return what became of the answer of a trace whose first error cannot be known, such as "wrong answer"."""
    if trace.is_looping and trace.outcome != "right":
        return "endless repetition"
    return _OUTCOMES[trace.outcome]


def has_slots(trace: Trace) -> bool:
    """Return whether first errors can be known, since the slots of the problem are."""
    return trace.problem is not None and bool(trace.problem.slots)


def group_traces(material: Material) -> list[Group]:
    """Return all traces by task and type of the first error; the most frequent type of a task first, right ones last.

    Where no first error can be known, what became of the answer takes the place of its type. Traces without a problem
    form groups of their own.
    """
    groups: dict[tuple[str, str | None], list[int]] = {}
    for i, trace in enumerate(material.traces):
        task = "" if trace.problem is None else trace.problem.task
        kind = None if trace.first_error is None else trace.first_error.error_type
        if kind is None and not has_slots(trace) and trace.outcome is not None:
            kind = outcome_label(trace)
        groups.setdefault((task, kind), []).append(i)
    tasks = list(dict.fromkeys(task for task, _ in groups))
    keys = sorted(groups, key=lambda key: (tasks.index(key[0]), key[1] in (None, _RIGHT), -len(groups[key])))
    key_types = {task: kinds for table in material.of(ErrorTable)[:1] for task, kinds in table.key_types.items()}
    return [
        Group(
            title_of(task) if task else NO_PROBLEM,
            (("no error" if task else "all") if kind is None else kind),
            kind in key_types.get(task, []),
            kind not in (None, _RIGHT),
            sorted(groups[task, kind], key=lambda i: (material.traces[i].n_tokens, i)),
        )
        for task, kind in keys
    ]


def reader_data(material: Material, known: Extras, max_bytes: int = MAX_BYTES) -> dict[str, Any]:
    """Return plain values for the page: groups, texts by number, and the traces that fit, with how many there are.

    Args:
        material: Where the traces are.
        known: What findings say of their tokens.
        max_bytes: Bytes that the traces may take as JSON.
    """
    groups = group_traces(material)
    pieces = Numbered()
    kept: dict[int, dict[str, Any]] = {}
    left = max_bytes
    for i in _by_worth(groups):
        data = _trace_data(material, i, pieces, known)
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
    return {"groups": shown, "texts": pieces.texts, "traces": [kept[i] for i in sorted(kept)], "n_all": n_all,
            "filters": filters([material.traces[i] for i in sorted(kept)])}  # fmt: skip


def _by_worth(groups: Sequence[Group]) -> list[int]:
    """Return traces in the order in which they are to be kept: of each group the first, then the second ..."""
    ranked = [
        (not group.has_error, rank, at, i) for at, group in enumerate(groups) for rank, i in enumerate(group.indices)
    ]
    return [i for *_, i in sorted(ranked)]


def _trace_data(material: Material, index: int, pieces: Numbered, known: Extras) -> dict[str, Any]:
    trace, problem = material.traces[index], material.traces[index].problem
    scores = None if material.scores is None else material.scores[index]
    spaced = list(material.token_strs[index])
    if material.has_tokens:
        spaced = with_spaces(spaced, (trace.prompt or "") + (trace.response or ""))
    start = max(1, trace.response_start)
    unknown = [None] * (len(trace) - start)
    data = {
        "number": index,
        "task": NO_PROBLEM if problem is None else title_of(problem.task),
        "name": _name(trace),
        "hops": None if problem is None else problem.hops or None,
        "outcome": "" if has_slots(trace) else outcome_label(trace),
        "read": None if trace.verdict is None or has_slots(trace) else [trace.verdict.extracted, trace.verdict.rule],
        "labels": labels_of(trace),
        "answer": None if problem is None else problem.answer,
        "is_correct": trace.is_correct,
        "stopped": trace.stopped,
        "pieces": [pieces.number(text) for text in spaced],
        "start": start,
        "lost": unknown if scores is None else _thousandths(-scores.logprob[start:]),
        "entropy": unknown if scores is None else _thousandths(scores.entropy[start:]),
        "steps": _steps(trace) if material.has_tokens else [[0, start, "question"], [start, len(trace), "response"]],
        "error": _error_data(trace),
        "others": _others(trace, None if scores is None else scores.argmax, index, pieces, known),
    }
    at = trace.first_error_position
    if at is not None and (index, at) in known.evidence:
        data["without"] = _without(*known.evidence[index, at], pieces)
    return data


def _name(trace: Trace) -> str:
    """Return which problem and sample a trace is of, where it says so."""
    info, problem = trace.info, trace.problem
    if "problem" not in info:
        return ""
    own = None if problem is None else problem.labels.get("id")
    return f"problem {info['problem'] if own is None else own}" + (
        f", sample {info['sample']}" if info.get("sample") else ""
    )


def labels_of(trace: Trace) -> dict[str, str]:
    """Return what traces can be filtered by: the labels of the problem, and who wrote the response."""
    labels = {} if trace.problem is None else {k: str(v) for k, v in trace.problem.labels.items() if k != "id"}
    writer = trace.info.get("model")
    return labels | ({"model": str(writer)} if writer is not None and not has_slots(trace) else {})


def filters(traces: Sequence[Trace]) -> list[list[str]]:
    """Return each label with each of its values, for labels that have several values but not very many."""
    values: dict[str, dict[str, None]] = {}
    for trace in traces:
        for name, value in labels_of(trace).items():
            values.setdefault(name, {})[value] = None
    return [[name, value] for name, own in values.items() if 1 < len(own) <= _MOST_VALUES for value in sorted(own)]


def _steps(trace: Trace) -> list[list[Any]]:
    return [[step.start, step.end, _segment(trace, step.start)] for step in trace.steps]


def _others(trace: Trace, argmax: Tensor | None, index: int, pieces: Numbered, known: Extras) -> dict[str, Any]:
    """Return by position `[likeliest tokens, their thousandths]`, and the expected token with its own if it is another.

    Without alternatives, the likeliest token where it is not the one that was written.
    """
    start = max(1, trace.response_start)
    by_position: dict[str, Any] = {}
    ids = trace.input_ids.tolist()
    for at in range(start, len(ids)):
        row = known.places.get((index, at))
        if row is not None and known.alternatives is not None:
            by_position[str(at)] = _likely(known.alternatives, row, ids[at], pieces, known)
        elif argmax is not None and int(argmax[at]) not in (-1, ids[at]):
            by_position[str(at)] = [[pieces.number(known.name(argmax[at]))], []]
    return by_position


def _likely(table: Alternatives, row: int, own: int, pieces: Numbered, known: Extras) -> list[Any]:
    p_top = [_thousandth(p) for p in table.p_top[row].tolist()]
    kept = [rank for rank, p in enumerate(p_top) if p or rank == 0]
    tokens = [pieces.number(known.name(table.top_ids[row, rank])) for rank in kept]
    row_data: list[Any] = [tokens, [p_top[rank] for rank in kept]]
    expected = int(table.expected_ids[row])
    if expected not in (-1, own):
        row_data.append([pieces.number(known.name(expected)), _thousandth(float(table.p_expected[row]))])
    return row_data


def _without(found: HeadEvidence, row: int, pieces: Numbered) -> list[list[int]]:
    """Return for the whole model (layer and head -1) and without each head what it says, and whether that is right.

    Layer, head, the token, its thousandths, those of the right token, and 1 where it is the right token.
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

    Markers, which stand nowhere in the text, stay as they are. Tokens that write parts of characters share out the
    characters that they write together, each to the token that begins it.
    """
    spaced, at = [], 0
    broken: list[str] = []
    for token in token_strs:
        if _BROKEN in token and not text.startswith(token, at):
            broken.append(token)
            continue
        bare = token.lstrip(" ")
        if broken:
            place = text.find(bare or token, at + 1, at + 4 * len(broken) + len(token) + _FIND_WITHIN)
            written = text[at : max(place, at)].rstrip(" ")
            spaced += _shared_out(written, len(broken)) if place >= 0 else broken
            at, broken = at + len(written), []
        is_there = text.startswith(token, at)
        found = at if is_there else text.find(bare, at, at + len(bare) + _FIND_WITHIN)
        gap = text[at:found]
        spaced.append(token if is_there or found < 0 or gap.strip() else gap + bare)
        at = at if found < 0 else found + len(token if is_there else bare)
    return [*spaced, *_shared_out(text[at:], len(broken))]


def _shared_out(text: str, n: int) -> list[str]:
    """Return the characters of a text in `n` pieces of about equal size, in their order; some may be empty."""
    cuts = [-(-k * len(text) // n) for k in range(n + 1)] if n else []
    return [text[a:b] for a, b in pairwise(cuts)]


def _thousandth(value: float) -> int:
    return round(1000 * value)


def _thousandths(values: Tensor) -> list[int | None]:
    return [min(_thousandth(v), _MOST) if math.isfinite(v) else None for v in values.tolist()]


def _segment(trace: Trace, position: int) -> str:
    if position < trace.question.end:
        return "question"
    return "thinking" if position < trace.thinking.end else "summary"


def _error_data(trace: Trace) -> dict[str, Any] | None:
    """Return the first error with its tokens, none of them if the response ends before."""
    error = trace.first_error
    if error is None:
        return None
    start, end = error_span(trace)
    return {
        "start": start,
        "end": end,
        "at": trace.first_error_position,
        "type": error.error_type,
        "hop": None if error.hop is None else error.hop + 1,
        "expected": error.expected,
        "got": error.got,
    }
