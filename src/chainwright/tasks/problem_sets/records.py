"""Records of local files: JSON Lines, JSON, CSV, TSV and Parquet, each with its place for messages.

A record that cannot be read is kept as its fault, so that the caller decides whether to refuse it or to leave it out.
What surrounds the records is taken off: a list in a table ({"examples": [...]}, {"test": [...]}), tables by id
({"q1": {...}}), columns ({"question": [...], "answer": [...]}), and rows of a data set viewer ({"row": {...}}).
"""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from chainwright._errors import BadInput

Fields = Mapping[str, Any]
FORMATS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")
_LISTS = ("examples", "data", "problems", "questions", "rows", "instances", "items", "records")
_LONGEST_CELL = 2**31 - 1


class Record(NamedTuple):
    """One record of a source.

    Attributes:
        place: Where it is, such as "line 3" or "record 3" (the first is 1).
        fields: Its fields; None if it cannot be read.
        fault: Why it cannot be read.
    """

    place: str
    fields: Fields | None
    fault: str = ""


def format_of(path: Path) -> str | None:
    """Return the format of a file by its name, without ".gz"; None if it is none that is read."""
    name = path.name.lower().removesuffix(".gz")
    return next((ending for ending in FORMATS if name.endswith(ending)), None)


def read_records(path: Path, split: str | None = None) -> list[Record]:
    """Return the records of a file in order.

    Args:
        path: The file.
        split: The list to take in a JSON file that holds several, such as "test".

    Raises:
        BadInput: It cannot be read as its name says, or it has no such split.
    """
    ending = format_of(path)
    if ending is None:
        raise BadInput(f"{path} is none of the formats that are read: {', '.join(FORMATS)} (also with .gz).")
    try:
        data = gzip.decompress(path.read_bytes()) if path.name.lower().endswith(".gz") else path.read_bytes()
    except OSError as error:
        raise BadInput(f"Cannot read {path}: {error.strerror or error}.") from error
    if split is not None and ending != ".json":
        raise BadInput(f"{path} is one file without splits; drop split={split!r} (--split), or name another file.")
    if ending == ".parquet":
        return _parquet(path, data)
    text = _decoded(path, data)
    if not text.strip():
        raise BadInput(f"{path} is empty; name a file with problems.")
    if ending in (".csv", ".tsv"):
        return list(_rows(path, text, "\t" if ending == ".tsv" else None))
    return _lines(text) if ending != ".json" else _json(path, text, split)


def _decoded(path: Path, data: bytes) -> str:
    is_utf16 = data[:2] in (b"\xff\xfe", b"\xfe\xff")
    try:
        return data.decode("utf-16" if is_utf16 else "utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise BadInput(f"{path} is not UTF-8 in line {line}; save it as UTF-8.") from error


def _lines(text: str) -> list[Record]:
    """Return the records of JSON Lines; blank lines are none."""
    # not splitlines, which also breaks at characters that JSON texts may contain
    numbered = ((i, line.strip()) for i, line in enumerate(text.split("\n"), 1))
    return [_line(f"line {i}", line) for i, line in numbered if line]


def _line(place: str, line: str) -> Record:
    try:
        return _record(place, json.loads(line))
    except (json.JSONDecodeError, RecursionError) as error:
        return Record(place, None, f"is not JSON ({error})")


def _record(place: str, value: Any) -> Record:
    if isinstance(value, Mapping):
        is_wrapped = isinstance(value.get("row"), Mapping) and set(value) <= {"row", "row_idx", "truncated_cells"}
        return Record(place, value["row"] if is_wrapped else value)
    return Record(place, None, f"is no table of fields, but {_kind(value)}")


def _kind(value: Any) -> str:
    names = {list: "a list", str: "a text", bool: "true or false", int: "a number", float: "a number"}
    return names.get(type(value), "nothing (null)" if value is None else type(value).__name__)


def _json(path: Path, text: str, split: str | None) -> list[Record]:
    try:
        value = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        lines = _lines(text)  # some files of lines are called .json
        if split is None and len(lines) > 1 and lines[0].fields is not None:
            return lines
        raise BadInput(f"{path} is not JSON: {error}.") from error
    if isinstance(value, Mapping):
        return _unwrapped(path, value, split)
    if split is not None:
        raise BadInput(f"{path} is one list without splits; drop split={split!r} (--split), or name another file.")
    if not isinstance(value, list):
        raise BadInput(f"{path} holds {_kind(value)}; it must hold a list of problems.")
    return _numbered(value)


def _numbered(values: Sequence[Any]) -> list[Record]:
    return [_record(f"record {i}", value) for i, value in enumerate(values, 1)]


def _unwrapped(path: Path, value: Mapping[str, Any], split: str | None) -> list[Record]:
    """Return the records in a table, by what it holds."""
    lists = {key: item for key, item in value.items() if _is_records(item)}
    if split is not None and split not in lists:
        raise BadInput(f"{path} has no split {split!r}; it has {', '.join(lists) or 'none'}.")
    if split is None and len(lists) > 1:
        named = [key for key in _LISTS if key in lists]
        if len(named) != 1:
            raise BadInput(f"{path} holds several lists ({', '.join(lists)}); choose one with split= (--split).")
        lists = {named[0]: lists[named[0]]}
    if lists:
        return _numbered(lists[split or next(iter(lists))])
    if value and all(isinstance(item, Mapping) for item in value.values()):
        return [_record(f"record {key!r}", {"id": key, **item}) for key, item in value.items()]
    columns = {key: item for key, item in value.items() if isinstance(item, list)}
    if len(columns) == len(value) and len({len(column) for column in columns.values()}) == 1 and len(columns) > 1:
        return _numbered([dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)])
    return [_record("record 1", value)]


def _is_records(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, Mapping) for item in value[:5])


def _rows(path: Path, text: str, delimiter: str | None) -> Iterator[Record]:
    """Yield the rows of a table in text, with the line that each begins on."""
    csv.field_size_limit(_LONGEST_CELL)
    if delimiter is None:
        header = text.lstrip("\r\n").partition("\n")[0]
        delimiter = max(",;\t|", key=header.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    names: list[str] | None = None
    line = 1
    try:
        for row in reader:
            place, line = f"line {line}", reader.line_num + 1
            if not any(cell.strip() for cell in row):
                continue
            if names is None:
                names = _header(path, row)
            elif len(row) != len(names):
                yield Record(place, None, f"has {len(row)} cells, and the header {len(names)}")
            else:
                yield Record(place, dict(zip(names, row, strict=True)))
    except csv.Error as error:
        raise BadInput(f"{path} cannot be read as a table from line {line}: {error}.") from error


def _header(path: Path, row: list[str]) -> list[str]:
    names = [cell.strip() for cell in row]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise BadInput(f"{path} has two columns called {twice!r}; rename one of them.")
    return names


def _parquet(path: Path, data: bytes) -> list[Record]:
    try:
        table = pq.read_table(pa.BufferReader(data))
    except (pa.ArrowException, OSError) as error:
        raise BadInput(f"{path} is not a complete Parquet file ({str(error).splitlines()[0]}).") from error
    if b"chainwright.schema_version" in (table.schema.metadata or {}):
        raise BadInput(f"{path} is a file of traces, not of problems; read it with read_traces (--traces).")
    return _numbered(table.to_pylist())
