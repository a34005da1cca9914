"""Read traces made elsewhere: a file of JSON objects, one per line, with a question and a response as text.

1. A line needs "question" and "response" (or "prompt" and "completion"), as texts or as messages; "messages" or a
   server's response with "choices" hold them as well (see `_messages`).
2. Reasoning in a field of its own ("reasoning_content", "reasoning" or "thinking", as the servers' reasoning parsers
   write it) becomes the thinking segment, between the markers of the style.
3. A judgement is "is_correct" or "correct": true, false, 1 or 0, also as text.
4. "answer" and "id" are kept in the trace's `info`, beside the file and line that it comes from. Any other field is
   named in one warning per file.
"""

from __future__ import annotations

import json
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from chainwright._errors import BadInput, BadTrace, UnreadFields
from chainwright.markers.borders import prompt_family
from chainwright.markers.known import PAIRS, ThinkMarkers, as_markers
from chainwright.traces._messages import NESTED_KEYS, flattened
from chainwright.traces.offsets import Tokenizer
from chainwright.traces.segments import SegmentConfig, check_style, detect_style, is_opened_by
from chainwright.traces.trace import Trace

_N_NAMED = 10  # bad lines that an error message names
_QUESTION_KEYS = ("question", "prompt")
_RESPONSE_KEYS = ("response", "completion")
_REASONING_KEYS = ("reasoning_content", "reasoning", "thinking")
_JUDGEMENT_KEYS = ("is_correct", "correct")
_INFO_KEYS = ("id", "answer")
_WORDS = {"true": True, "false": False, "1": True, "0": False}
_READ = {*_QUESTION_KEYS, *_RESPONSE_KEYS, *_REASONING_KEYS, *_JUDGEMENT_KEYS, *_INFO_KEYS, *NESTED_KEYS}
_HARMONY = ("<|channel|>analysis<|message|>", "<|end|><|start|>assistant<|channel|>final<|message|>")


class BadLine(NamedTuple):
    """A line that holds no trace.

    Attributes:
        number: Its line number, from 1.
        reason: What is wrong with it.
    """

    number: int
    reason: str


class JsonlTraces(NamedTuple):
    """The traces of a file, in order, and the lines that were skipped."""

    traces: list[Trace]
    bad_lines: list[BadLine]


def read_jsonl(
    path: str | Path,
    tokenizer: Tokenizer,
    *,
    style: str = "auto",
    skip_bad: bool = False,
    markers: ThinkMarkers | tuple[str, str] | None = None,
) -> JsonlTraces:
    """Return the traces that a JSONL file holds as text, made into tokens by `tokenizer`.

    Args:
        path: The file, in UTF-8.
        tokenizer: The tokenizer of the model that the traces will be shown to.
        style: "think", "harmony", "plain", or "auto" to go by the markers of each response.
        skip_bad: Whether to skip lines that cannot be read (they are listed in the result) instead of raising.
        markers: The pair around the thinking, as in `Trace.from_text`; reasoning in a field of its own is put between
            them.

    Warns:
        UnreadFields: Some lines have fields that are not read; once per file, with their names.
        UnknownMarkers: A response has a tag that looks like a marker of thinking and is none that is known.

    Raises:
        BadInput: The file cannot be opened, the style is unknown, or the markers are no pair.
        BadTrace: Some line cannot be read and `skip_bad` is off; the message names the first of them.
    """
    if style != "auto":
        check_style(style)
    pair = None if markers is None else as_markers(markers)
    traces: list[Trace] = []
    bad_lines: list[BadLine] = []
    unread: Counter[str] = Counter()
    for number, line in enumerate(_lines(Path(path)), start=1):
        try:
            record = _record(line)
            traces.append(_trace(record, tokenizer, style, pair, {"source": Path(path).name, "line": number}))
            unread.update(key for key in record if key not in _READ)
        except BadTrace as error:
            bad_lines.append(BadLine(number, str(error).removesuffix(".")))
    if bad_lines and not skip_bad:
        raise _too_bad(Path(path), bad_lines)
    _warn_of_unread(Path(path), unread)
    return JsonlTraces(traces, bad_lines)


def _lines(path: Path) -> list[bytes]:
    """Return the lines of a file, without byte order mark or the empty rest after the last newline."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise BadInput(f"Cannot read {path}: {error.strerror or error}; name a file of JSON lines.") from error
    lines = content.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    return lines if lines[-1] else lines[:-1]


def _warn_of_unread(path: Path, unread: Counter[str]) -> None:
    if unread:
        named = ", ".join(f"{key!r} ({n} {'line' if n == 1 else 'lines'})" for key, n in unread.most_common())
        read = ", ".join(repr(key) for key in sorted(_READ))
        warnings.warn(
            f"{path.name} has fields that are not read: {named}; those that are read are {read}.",
            UnreadFields,
            stacklevel=3,
        )


def _trace(
    record: dict[str, Any], tokenizer: Tokenizer, style: str, markers: ThinkMarkers | None, info: dict[str, Any]
) -> Trace:
    """Return the trace of one line, or raise `BadTrace` with what is wrong with it."""
    record, stopped = flattened(record, tokenizer, _REASONING_KEYS)
    question = _text(record, _QUESTION_KEYS)
    response = _text(record, _RESPONSE_KEYS)
    if not question:
        raise BadTrace("the question is empty")
    for key in _INFO_KEYS:
        value = record.get(key)
        if value is not None:
            if not isinstance(value, (str, int, float)):
                raise BadTrace(f"{key!r} is neither text nor a number")
            info[key] = value
    if reasoning := _reasoning(record):
        style = _style_of_reasoning(style, question, response, markers)
        # a chat template may have opened the thinking at the end of the prompt
        family = prompt_family(question, style, markers)
        opening, closing = _around(style, family, markers)
        response = f"{'' if family else opening}{reasoning}{closing}{response}"
    judgement = _judgement(record)
    trace = Trace.from_text(
        tokenizer, question, response, style=style, is_correct=judgement, info=info, markers=markers
    )
    return trace if stopped else replace(trace, stopped=False)


def _reasoning(record: dict[str, Any]) -> str:
    """Return the reasoning of a line whose server keeps it apart from the response; empty if there is none."""
    texts = {_text(record, (key,)) for key in _REASONING_KEYS if record.get(key) is not None}
    texts.discard("")
    if len(texts) > 1:
        raise BadTrace(f"{_listed(record, _REASONING_KEYS)} hold different texts, so it is unclear what was thought")
    return next(iter(texts), "")


def _around(style: str, family: str | None, markers: ThinkMarkers | None) -> tuple[str, str]:
    """Return what goes around the reasoning of a line: the pair of the user, of the prompt, or the usual one."""
    if style == "harmony":
        return _HARMONY
    pair = markers or next((pair for pair in PAIRS if pair.open == family), PAIRS[0])
    return f"{pair.open}\n", f"\n{pair.close}\n\n"


def _style_of_reasoning(style: str, question: str, response: str, markers: ThinkMarkers | None) -> str:
    """Return the style whose markers go around the reasoning of a line."""
    if style == "plain":
        raise BadTrace("there is reasoning, but the plain style has no thinking; use another style, such as 'auto'")
    if detect_style("", response, SegmentConfig(markers=markers)) != "plain":
        raise BadTrace("there is reasoning in a field of its own and thinking in the response; keep one of the two")
    if style == "auto":
        return "harmony" if is_opened_by(question, "harmony") else "think"
    return style


def _judgement(record: dict[str, Any]) -> bool | None:
    """Return what a line says about whether its answer is right."""
    values = {key: record[key] for key in _JUDGEMENT_KEYS if record.get(key) is not None}
    judgements = set()
    for key, value in values.items():
        plain = _WORDS.get(value.strip().lower(), value) if isinstance(value, str) else value
        if not isinstance(plain, (bool, int)) or plain not in (0, 1):
            raise BadTrace(f"{key!r} is {value!r}, not true or false (or 1 or 0)")
        judgements.add(bool(plain))
    if len(judgements) > 1:
        raise BadTrace(f"{_listed(record, _JUDGEMENT_KEYS)} contradict each other")
    return next(iter(judgements), None)


def _listed(record: dict[str, Any], keys: Sequence[str]) -> str:
    return " and ".join(repr(key) for key in keys if record.get(key) is not None)


def _record(line: bytes) -> dict[str, Any]:
    """Return the JSON object of a line."""
    if not line.strip():
        raise BadTrace("the line is empty")
    try:
        record = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise BadTrace(f"not UTF-8 at byte {error.start}") from error
    except RecursionError as error:
        raise BadTrace("nested too deeply") from error
    except ValueError as error:
        raise BadTrace(f"not JSON: {error}") from error
    if not isinstance(record, dict):
        raise BadTrace(f"a JSON object is needed, got {type(record).__name__}")
    return record


def _text(record: dict[str, Any], keys: tuple[str, ...]) -> str:
    """Return the text under the first of `keys` that the record has."""
    for key in keys:
        if key in record:
            value = record[key]
            if not isinstance(value, str):
                raise BadTrace(f"{key!r} is {type(value).__name__}, not text")
            if any("\ud800" <= character <= "\udfff" for character in value):
                raise BadTrace(f"{key!r} holds half of a surrogate pair, which is no character")
            return value
    raise BadTrace(f"neither {keys[0]!r} nor {keys[1]!r} is there")


def _too_bad(path: Path, bad_lines: list[BadLine]) -> BadTrace:
    """Return the error that counts the bad lines, names the first ones, and says how to skip them."""
    named = "; ".join(f"line {number}: {reason}" for number, reason in bad_lines[:_N_NAMED])
    n_more = len(bad_lines) - _N_NAMED
    more = f"; and {n_more} more" if n_more > 0 else ""
    lines = "1 line" if len(bad_lines) == 1 else f"{len(bad_lines)} lines"
    return BadTrace(
        f"{path} has {lines} that cannot be read ({named}{more}); "
        "fix them, or skip them with --skip-bad (skip_bad=True)."
    )
