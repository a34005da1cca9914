"""Traces as a Parquet file: one row per trace, flat named columns, readable without this package.

The columns are listed in `SCHEMA`. Columns ending in `_start` and `_end` are half-open token spans; characters in
`first_error` count from the start of `response`. `problem` and `info` are JSON texts. The file's metadata have
`chainwright.schema_version`; a version newer than this module's is refused.

A file is written under a temporary name and moved into place once it is complete, so there is never a partial file,
even if the process is killed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from chainwright import tasks
from chainwright._errors import BadInput, BadTrace
from chainwright._files import atomic_file, clear_disk_errors
from chainwright.checkers.base import Verdict
from chainwright.tasks.base import FirstError
from chainwright.traces.segments import Span
from chainwright.traces.trace import Trace, TraceSlot

SCHEMA_VERSION = 1
"""The version of trace files that is written."""
_VERSION_KEY = b"chainwright.schema_version"
_ROWS_AT_ONCE = 1000

_STEP = pa.struct([("start", pa.int32()), ("end", pa.int32())])
_SLOT = pa.struct(
    [
        ("start", pa.int32()),
        ("end", pa.int32()),
        ("slot", pa.int32()),
        ("error_type", pa.string()),
        ("hop", pa.int32()),
        ("expected", pa.string()),
        ("got", pa.string()),
        ("is_right", pa.bool_()),
    ]
)
_FIRST_ERROR = pa.struct(
    [
        ("error_type", pa.string()),
        ("slot", pa.int32()),
        ("hop", pa.int32()),
        ("start", pa.int32()),
        ("end", pa.int32()),
        ("expected", pa.string()),
        ("got", pa.string()),
    ]
)
_VERDICT = pa.struct([("is_right", pa.bool_()), ("extracted", pa.string()), ("rule", pa.string())])
_COLUMNS: list[tuple[str, pa.DataType]] = [
    ("task", pa.string()),
    ("hops", pa.int32()),
    ("rendering", pa.string()),
    ("prompt", pa.string()),
    ("response", pa.string()),
    ("answer", pa.string()),
    ("is_correct", pa.bool_()),
    ("error_type", pa.string()),
    ("stopped", pa.bool_()),
    ("style", pa.string()),
    ("input_ids", pa.list_(pa.int32())),
    ("response_start", pa.int32()),
    ("question_start", pa.int32()),
    ("question_end", pa.int32()),
    ("thinking_start", pa.int32()),
    ("thinking_end", pa.int32()),
    ("summary_start", pa.int32()),
    ("summary_end", pa.int32()),
    ("steps", pa.list_(_STEP)),
    ("slots", pa.list_(_SLOT)),
    ("first_error", _FIRST_ERROR),
    ("first_error_position", pa.int32()),
    ("problem", pa.string()),
    ("info", pa.string()),
    ("tool_steps", pa.list_(pa.int32())),
    ("verdict", _VERDICT),
]
_OPTIONAL = {"tool_steps", "verdict"}  # columns that files from before it do not have
SCHEMA = pa.schema(_COLUMNS, metadata={_VERSION_KEY: str(SCHEMA_VERSION).encode()})


def write_traces(path: str | os.PathLike[str], traces: Iterable[Trace], *, overwrite: bool = False) -> None:
    """Write traces to a Parquet file; if that fails, no file is written.

    Args:
        path: The file; its folder must exist.
        traces: The traces, in the order of the rows; may be empty.
        overwrite: Whether an existing file may be replaced.

    Raises:
        BadInput: The file exists and `overwrite` is off, it cannot be written (the message has the reason; an existing
            file is kept), or an item is not a `Trace`.
        BadTrace: A trace has text that is not valid Unicode, or a number that needs more than 32 bits.
    """
    path = Path(path)
    with clear_disk_errors(path):
        if path.is_dir() or (path.exists() and not overwrite):
            what = "a folder" if path.is_dir() else "already there"
            raise BadInput(f"{path} is {what}; choose another name, or replace a file with overwrite=True.")
    with atomic_file(path, make_parents=False) as draft:
        _write_file(draft, traces)


def read_traces(path: str | os.PathLike[str]) -> list[Trace]:
    """Return the traces of a Parquet file in the order of its rows.

    Raises:
        BadInput: The file does not exist or cannot be read.
        BadTrace: It is damaged, was not written by Chainwright or by a newer version of it, or a row is not a valid
            `Trace`.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            rows = _read_rows(path, file)
    except OSError as error:
        raise BadInput(f"Cannot read {path}: {error.strerror or error}; name a file of traces.") from error
    return [_from_row(path, i, row) for i, row in enumerate(rows)]


def _write_file(path: Path, traces: Iterable[Trace]) -> None:
    with pq.ParquetWriter(path, SCHEMA, compression="zstd", write_page_checksum=True) as writer:
        n_written = 0
        for rows in _batches(traces):
            writer.write_table(_table(rows, n_written))
            n_written += len(rows)


def _table(rows: list[dict[str, Any]], first: int) -> pa.Table:
    """Return rows as a table; `first` is the number of the first one, for error messages that name a row."""
    try:
        return pa.Table.from_pylist(rows, schema=SCHEMA)
    except (UnicodeEncodeError, OverflowError, pa.ArrowInvalid) as error:
        if len(rows) > 1:
            for i, row in enumerate(rows):
                _table([row], first + i)
        raise BadTrace(f"Trace {first} cannot be written: {_first_line(error)}.") from error


def _batches(traces: Iterable[Trace]) -> Iterator[list[dict[str, Any]]]:
    """Yield rows in batches, so that all traces are never in memory twice."""
    rows = (_to_row(i, trace) for i, trace in enumerate(traces))
    while batch := list(islice(rows, _ROWS_AT_ONCE)):
        yield batch


def _to_row(i: int, trace: Trace) -> dict[str, Any]:
    """Return a trace as plain values by column."""
    if not isinstance(trace, Trace):
        raise BadInput(f"write_traces takes traces; item {i} is a {type(trace).__name__}.")
    problem, error = trace.problem, trace.first_error
    row: dict[str, Any] = {
        "prompt": trace.prompt,
        "response": trace.response,
        "answer": trace.info.get("answer"),
        "is_correct": trace.is_correct,
        "error_type": error and error.error_type,
        "stopped": trace.stopped,
        "style": trace.style,
        "input_ids": trace.input_ids.tolist(),
        "response_start": trace.response_start,
        "steps": [step._asdict() for step in trace.steps],
        "tool_steps": list(trace.tool_steps),
        "slots": [asdict(slot) for slot in trace.slots],
        "first_error": error and asdict(error),
        "first_error_position": trace.first_error_position,
        "info": json.dumps(dict(trace.info), ensure_ascii=False),
        "verdict": trace.verdict and asdict(trace.verdict),
    }
    for name in ("question", "thinking", "summary"):
        row[f"{name}_start"], row[f"{name}_end"] = getattr(trace, name)
    if problem is not None:
        row |= {"task": problem.task, "hops": problem.hops, "rendering": problem.rendering}
        row |= {"answer": problem.answer, "problem": json.dumps(problem.to_record(), ensure_ascii=False)}
    elif row["answer"] is not None:
        row["answer"] = str(row["answer"])
    return row


def _read_rows(path: Path, file: Any) -> list[dict[str, Any]]:
    """Return the rows of an open file, after checking its version and columns."""
    try:
        parquet = pq.ParquetFile(file, page_checksum_verification=True)
        _check_schema(path, parquet.schema_arrow)
        table = parquet.read(columns=[name for name in SCHEMA.names if name in parquet.schema_arrow.names])
        for name in (name for name in SCHEMA.names if name not in table.column_names):
            table = table.append_column(name, pa.nulls(len(table), SCHEMA.field(name).type))
        return list(table.select(SCHEMA.names).cast(SCHEMA).to_pylist())
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise BadTrace(
            f"{path} is not a complete Parquet file of traces ({_first_line(error)}); "
            "it may be truncated or of another kind. Write it again, or name another file."
        ) from error


def _first_line(error: BaseException) -> str:
    """Return the first line of an error's text, without its full stop."""
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")


def _check_schema(path: Path, schema: pa.Schema) -> None:
    """Raise `BadTrace` unless the file is ours, not newer than this module, and has every column."""
    text = (schema.metadata or {}).get(_VERSION_KEY, b"").decode(errors="replace")
    if not text.isdecimal():
        raise BadTrace(
            f"{path} is a Parquet file, but not of traces: it has no {_VERSION_KEY.decode()}. "
            "Name a file that write_traces wrote; texts made elsewhere are read with read_jsonl."
        )
    if int(text) > SCHEMA_VERSION:
        raise BadTrace(
            f"{path} has schema version {text}, and this Chainwright reads up to version {SCHEMA_VERSION}; "
            "upgrade Chainwright to read it."
        )
    missing = [name for name in SCHEMA.names if name not in schema.names and name not in _OPTIONAL]
    if missing:
        raise BadTrace(f"{path} lacks the columns {', '.join(missing)}; write it again with write_traces.")


def _from_row(path: Path, i: int, row: dict[str, Any]) -> Trace:
    """Return the trace of a row; raises `BadTrace` with the file and the row."""
    try:
        error = row["first_error"]
        return Trace(
            input_ids=row["input_ids"],
            question=Span(row["question_start"], row["question_end"]),
            thinking=Span(row["thinking_start"], row["thinking_end"]),
            summary=Span(row["summary_start"], row["summary_end"]),
            steps=[Span(**step) for step in row["steps"]],
            problem=None if row["problem"] is None else tasks.from_record(json.loads(row["problem"])),
            response=row["response"],
            prompt=row["prompt"],
            slots=tuple(TraceSlot(**slot) for slot in row["slots"]),
            is_correct=row["is_correct"],
            first_error=None if error is None else FirstError(**error),
            stopped=row["stopped"],
            style=row["style"],
            info=json.loads(row["info"]),
            response_start=row["response_start"],
            first_error_position=row["first_error_position"],
            tool_steps=tuple(row["tool_steps"] or ()),
            verdict=None if row["verdict"] is None else Verdict(**row["verdict"]),
        )
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise BadTrace(f"Row {i} of {path} is not a valid trace: {_first_line(error)}.") from error
