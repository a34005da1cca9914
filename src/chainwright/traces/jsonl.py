"""Read traces made elsewhere: a file of JSON objects, one a line, with a question and a response as text.

A line needs "question" and "response" (or "prompt" and "completion"). It may say "is_correct" (true or
false), and "answer" and "id", which are kept in the trace's `info` beside the file and line that it comes
from.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from chainwright._errors import BadInput, BadTrace
from chainwright.traces.offsets import Tokenizer
from chainwright.traces.segments import check_style
from chainwright.traces.trace import Trace

_N_NAMED = 10  # bad lines that an error message names
_QUESTION_KEYS = ("question", "prompt")
_RESPONSE_KEYS = ("response", "completion")


class BadLine(NamedTuple):
    """A line that holds no trace.

    Attributes:
        number: Its line number, from 1.
        reason: What is wrong with it.
    """

    number: int
    reason: str


class JsonlTraces(NamedTuple):
    """The traces of a file, in order, and the lines that were left out."""

    traces: list[Trace]
    bad_lines: list[BadLine]


def read_jsonl(path: str | Path, tokenizer: Tokenizer, *, style: str = "auto", skip_bad: bool = False) -> JsonlTraces:
    """Return the traces that a JSONL file holds as text, made into tokens by `tokenizer`.

    Args:
        path: The file, in UTF-8.
        tokenizer: The tokenizer of the model that the traces will be shown to.
        style: "think", "harmony", "plain", or "auto" to go by the markers of each response.
        skip_bad: Whether to leave out lines that cannot be read (they are listed in the result) instead of
            raising.

    Raises:
        BadInput: The file cannot be opened, or the style is unknown.
        BadTrace: Some line cannot be read and `skip_bad` is off; the message names the first of them.
    """
    if style != "auto":
        check_style(style)
    traces: list[Trace] = []
    bad_lines: list[BadLine] = []
    for number, line in enumerate(_lines(Path(path)), start=1):
        try:
            traces.append(_trace(line, tokenizer, style, {"source": Path(path).name, "line": number}))
        except BadTrace as error:
            bad_lines.append(BadLine(number, str(error).removesuffix(".")))
    if bad_lines and not skip_bad:
        raise _too_bad(Path(path), bad_lines)
    return JsonlTraces(traces, bad_lines)


def _lines(path: Path) -> list[bytes]:
    """Return the lines of a file, without byte order mark or the empty rest after the last newline."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise BadInput(f"Cannot read {path}: {error.strerror or error}; name a file of JSON lines.") from error
    lines = content.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    return lines if lines[-1] else lines[:-1]


def _trace(line: bytes, tokenizer: Tokenizer, style: str, info: dict[str, Any]) -> Trace:
    """Return the trace of one line, or raise `BadTrace` with what is wrong with it."""
    record = _record(line)
    question = _text(record, _QUESTION_KEYS)
    response = _text(record, _RESPONSE_KEYS)
    if not question:
        raise BadTrace("the question is empty")
    for key in ("id", "answer"):
        value = record.get(key)
        if value is not None:
            if not isinstance(value, (str, int, float)):
                raise BadTrace(f"{key!r} is neither text nor a number")
            info[key] = value
    is_correct = record.get("is_correct")
    if not (is_correct is None or isinstance(is_correct, bool)):
        raise BadTrace(f"'is_correct' is {is_correct!r}, not true or false")
    return Trace.from_text(tokenizer, question, response, style=style, is_correct=is_correct, info=info)


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
    """Return the error that counts the bad lines, names the first ones, and says how to leave them out."""
    named = "; ".join(f"line {number}: {reason}" for number, reason in bad_lines[:_N_NAMED])
    n_more = len(bad_lines) - _N_NAMED
    more = f"; and {n_more} more" if n_more > 0 else ""
    lines = "1 line" if len(bad_lines) == 1 else f"{len(bad_lines)} lines"
    return BadTrace(
        f"{path} has {lines} that cannot be read ({named}{more}); "
        "mend them, or leave them out with --skip-bad (skip_bad=True)."
    )
