"""Read traces made elsewhere: a file of JSON objects, one per line, with a question and a response as text.

Every format that `read_traces` recognises is read, question and prompt exactly as they are; nothing is judged here.

1. Reasoning in a field of its own ("reasoning_content", "reasoning" or "thinking", as the servers' reasoning parsers
   write it) becomes the thinking segment, between the markers of the style.
2. A judgement is "is_correct" or "correct": true, false, 1 or 0, also as text.
3. "answer", "id" and "model" are kept in the trace's `info`, beside the file and line that it comes from. Any other
   field is named in one warning per file.
"""

from __future__ import annotations

import warnings
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

from chainwright._errors import BadInput, BadTrace, UnreadFields
from chainwright.markers.known import ThinkMarkers, as_markers
from chainwright.traces._building import Reading
from chainwright.traces._documents import json_lines
from chainwright.traces._entries import Entry
from chainwright.traces._formats import entries_of
from chainwright.traces.offsets import Tokenizer
from chainwright.traces.segments import check_style
from chainwright.traces.trace import Trace

_N_NAMED = 10  # bad lines that an error message names


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

    `read_traces` reads more kinds of file, finds the problems and judges; this is the plain reading of lines.

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
    reading = Reading(tokenizer, style, pair, chat_template=False, separates=False)
    traces: list[Trace] = []
    bad_lines: list[BadLine] = []
    unread: Counter[str] = Counter()
    for document in json_lines(_content(Path(path))):
        try:
            if document.record is None:
                raise BadTrace(document.reason)
            entries = entries_of(document.record, "auto")
            info = {"source": Path(path).name, "line": document.number}
            traces += [reading.trace(entry, info | _known(entry)) for entry in entries]
            unread.update(entries[0].unread)
        except BadTrace as error:
            bad_lines.append(BadLine(document.number, str(error).removesuffix(".")))
    if bad_lines and not skip_bad:
        raise _too_bad(Path(path), bad_lines)
    _warn_of_unread(Path(path), unread)
    return JsonlTraces(traces, bad_lines)


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise BadInput(f"Cannot read {path}: {error.strerror or error}; name a file of JSON lines.") from error


def _known(entry: Entry) -> dict[str, Any]:
    known = {"id": entry.id, "answer": entry.answer, "model": entry.model or None, "sample": entry.sample}
    return {name: value for name, value in known.items() if value is not None}


def _warn_of_unread(path: Path, unread: Counter[str]) -> None:
    if unread:
        named = ", ".join(f"{key!r} ({n} {'line' if n == 1 else 'lines'})" for key, n in unread.most_common())
        warnings.warn(f"{path.name} has fields that are not read: {named}.", UnreadFields, stacklevel=3)


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
