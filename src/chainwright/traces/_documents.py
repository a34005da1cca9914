"""Files of records, whatever their kind: JSON lines, one JSON document, Parquet, CSV, or an inspect log.

Each record comes with its place, or with what is wrong there, so that one broken line does not cost the others.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import struct
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from chainwright._errors import BadInput, BadTrace
from chainwright.traces._entries import PROMPT_KEYS, QUESTION_KEYS, named

KINDS = (".jsonl", ".ndjson", ".json", ".parquet", ".csv", ".eval")
_LISTS = ("samples", "traces", "data", "results", "records", "rows", "examples", "instances", "responses")
_BOM = b"\xef\xbb\xbf"
_ZSTD = 93  # the number of this method in zip files, which Python before 3.14 does not unpack


class Document(NamedTuple):
    """One record of a file.

    Attributes:
        place: What to call it, such as "line 3".
        number: Its number from 1.
        record: The JSON object; None if it cannot be read.
        reason: What is wrong with it then.
    """

    place: str
    number: int
    record: Mapping[str, Any] | None
    reason: str = ""


def documents(path: Path) -> Iterator[Document]:
    """Yield the records of a file.

    Raises:
        BadInput: The file cannot be opened, or its name is of no kind that is read.
        BadTrace: It is a damaged Parquet file or archive, or a JSON document of something else than records.
    """
    kind = _kind(path)
    content = _content(path)
    if kind == ".parquet":
        return _rows("row", _parquet(path, content))
    if kind == ".csv":
        return _rows("record", _csv(path, content))
    if kind == ".eval" or content.startswith(b"PK\x03\x04"):
        return _inspect_archive(path, content)
    if path.suffix == ".gz" or content.startswith(b"\x1f\x8b"):
        content = _unpacked(path, content)
    if kind == ".json" and (whole := _whole(content.removeprefix(_BOM))) is not None:
        return _of_document(path, whole)
    return json_lines(content)


def is_ours(path: Path) -> bool:
    """Say whether a file is one that `write_traces` wrote, or a Parquet file that is damaged or missing."""
    if path.suffix.lower() != ".parquet":
        return False
    try:
        return b"chainwright.schema_version" in (pq.read_schema(path).metadata or {})
    except (pa.ArrowException, OSError):
        return True  # the reader of such files says what is wrong with it


def _kind(path: Path) -> str:
    suffix = Path(path.stem).suffix if path.suffix == ".gz" else path.suffix
    if suffix.lower() not in KINDS:
        raise BadInput(f"{path} is none of {', '.join(KINDS)}; those are the kinds of trace file that can be read.")
    return suffix.lower()


def _content(path: Path) -> bytes:
    if path.is_dir():
        raise BadInput(f"{path} is a folder; name the trace files in it.")
    try:
        return path.read_bytes()
    except OSError as error:
        raise BadInput(f"Cannot read {path}: {error.strerror or error}; name a file of traces.") from error


def _unpacked(path: Path, content: bytes) -> bytes:
    try:
        return gzip.decompress(content)
    except (OSError, EOFError) as error:
        raise BadTrace(f"{path} is no complete gzip file: {error}.") from error


def _rows(word: str, records: list[dict[str, Any]]) -> Iterator[Document]:
    return (Document(f"{word} {i}", i, record) for i, record in enumerate(records, start=1))


def _parquet(path: Path, content: bytes) -> list[dict[str, Any]]:
    try:
        return list(pq.read_table(io.BytesIO(content)).to_pylist())
    except (pa.ArrowException, OSError) as error:
        raise BadTrace(f"{path} is not a complete Parquet file ({str(error).splitlines()[0]}).") from error


def _csv(path: Path, content: bytes) -> list[dict[str, Any]]:
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadTrace(f"{path} is not UTF-8 at byte {error.start}.") from error
    csv.field_size_limit(2**31 - 1)
    rows = csv.DictReader(io.StringIO(text, newline=""), restkey="")
    return [{key: value for key, value in row.items() if key and value not in (None, "")} for row in rows]


def _whole(content: bytes) -> Any:
    """Return the one JSON document that a file holds; None if it holds several lines of them, or is damaged."""
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        return None


def _of_document(path: Path, whole: Any) -> Iterator[Document]:
    if isinstance(whole, Mapping) and "eval" in whole and "samples" in whole:
        model, samples = _inspect_model(whole), whole["samples"] or []
        return _samples((sample for sample in samples), model)
    if isinstance(whole, Mapping):
        is_record = named(whole, (*PROMPT_KEYS, *QUESTION_KEYS, "messages")) is not None
        lists = () if is_record else _LISTS
        inner = next((whole[key] for key in lists if isinstance(whole.get(key), (list, Mapping))), None)
        if isinstance(inner, Mapping):  # several tasks of lm-eval, each with its list
            inner = [record for records in inner.values() if isinstance(records, list) for record in records]
        records = [whole] if not inner or not isinstance(inner[0], Mapping) else inner
        if not is_record and inner is None and whole and all(isinstance(value, Mapping) for value in whole.values()):
            records = [{"id": key, **value} for key, value in whole.items()]  # records by their id
    elif isinstance(whole, list):
        records = whole
    else:
        raise BadTrace(f"{path} holds one {type(whole).__name__}; a list of JSON objects is needed.")
    return (_checked(f"record {i}", i, record) for i, record in enumerate(records, start=1))


def _checked(place: str, number: int, value: Any) -> Document:
    if isinstance(value, Mapping):
        return Document(place, number, value)
    return Document(place, number, None, f"a JSON object is needed, got {type(value).__name__}")


def json_lines(content: bytes) -> Iterator[Document]:
    """Yield the records of JSON lines, without byte order mark or the empty rest after the last newline."""
    lines = content.removeprefix(_BOM).split(b"\n")
    for number, line in enumerate(lines if lines[-1] else lines[:-1], start=1):
        yield _line(number, line)


def _line(number: int, line: bytes) -> Document:
    place = f"line {number}"
    if not line.strip():
        return Document(place, number, None, "the line is empty")
    try:
        return _checked(place, number, json.loads(line.decode("utf-8")))
    except UnicodeDecodeError as error:
        return Document(place, number, None, f"not UTF-8 at byte {error.start}")
    except RecursionError:
        return Document(place, number, None, "nested too deeply")
    except ValueError as error:
        return Document(place, number, None, f"not JSON: {error}")


def _inspect_archive(path: Path, content: bytes) -> Iterator[Document]:
    """Yield the samples of an inspect log that is a zip of JSON files."""
    try:
        archive = zipfile.ZipFile(io.BytesIO(content))
        infos = {info.filename: info for info in archive.infolist()}
        start = infos.get("header.json") or infos.get("_journal/start.json")
        header = {} if start is None else json.loads(_member(archive, content, start))
        model, samples = _inspect_model(header), _in_order(infos, header)
        yield from _samples((json.loads(_member(archive, content, info)) for info in samples), model)
    except (zipfile.BadZipFile, OSError, ValueError, struct.error, pa.ArrowException) as error:
        raise BadTrace(f"{path} is no complete inspect log ({error}); write it again, or name another file.") from error


def _in_order(infos: Mapping[str, zipfile.ZipInfo], header: Mapping[str, Any]) -> list[zipfile.ZipInfo]:
    """Return the samples of an inspect log as the data set has them; they are written as they end."""
    ids = ((header.get("eval") or {}).get("dataset") or {}).get("sample_ids") or []
    places = {str(one): place for place, one in enumerate(ids)}
    found = []
    for name, info in infos.items():
        if name.startswith("samples/") and name.endswith(".json"):
            which, _, epoch = name.removeprefix("samples/").removesuffix(".json").rpartition("_epoch_")
            key = (places.get(which, len(places)), int(epoch) if epoch.isdecimal() else 0)
            found.append((key, info))
    return [info for _, info in sorted(found, key=lambda pair: pair[0])]


def _member(archive: zipfile.ZipFile, content: bytes, info: zipfile.ZipInfo) -> bytes:
    if info.compress_type != _ZSTD:
        return archive.read(info)
    n_name, n_extra = struct.unpack_from("<HH", content, info.header_offset + 26)
    start = info.header_offset + 30 + n_name + n_extra
    packed = content[start : start + info.compress_size]
    return bytes(pa.decompress(packed, info.file_size, "zstd").to_pybytes())


def _inspect_model(header: Mapping[str, Any]) -> str:
    evaluation = header.get("eval")
    return str(evaluation.get("model", "")) if isinstance(evaluation, Mapping) else ""


def _samples(samples: Iterator[Any], model: str) -> Iterator[Document]:
    for number, sample in enumerate(samples, start=1):
        if not isinstance(sample, Mapping):
            yield _checked(f"sample {number}", number, sample)
            continue
        place = f"sample {sample.get('id', number)}, epoch {sample.get('epoch', 1)}"
        yield Document(place, number, {**sample, "model": model} if model else sample)
