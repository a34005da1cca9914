"""The head of a GGUF file: its metadata, and where its tensors lie, without reading one.

The layout (version 2 and 3): magic "GGUF", version, number of tensors and of metadata pairs; the pairs, each a key, a
type and a value; per tensor its name, its shape with the fastest dimension first, its type and its offset from the
start of the data, which is aligned. Integers are little-endian, lengths are 64 bits wide.
"""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from chainwright._errors import BadInput

_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_MOST = 2**31  # more entries than any file has; a count beyond it is damage


@dataclass(frozen=True)
class GGUFTensor:
    """A tensor as the file lists it: name, shape (rows first), number of its type, and offset into the data."""

    name: str
    shape: tuple[int, ...]
    kind: int
    offset: int


@dataclass(frozen=True)
class GGUFHeader:
    """The metadata of a GGUF file, its tensors, and the position at which their data begin."""

    path: Path
    metadata: dict[str, Any]
    tensors: tuple[GGUFTensor, ...]
    data_start: int

    @property
    def architecture(self) -> str:
        """The type of the model, by llama.cpp's name for it."""
        return str(self.metadata["general.architecture"])

    @property
    def n_numbers(self) -> int:
        """How many numbers all tensors have together."""
        return sum(prod(tensor.shape) for tensor in self.tensors)

    def token(self, key: str) -> int | None:
        """Return the id that the metadata name `tokenizer.ggml.<key>_token_id`, if they do."""
        found = self.metadata.get(f"tokenizer.ggml.{key}_token_id")
        return None if found is None else int(found)


class _Reader:
    """Reads values one after another; every read beyond the end raises `struct.error`."""

    def __init__(self, data: mmap.mmap):
        self.data, self.position = data, 0

    def numbers(self, letters: str) -> tuple[Any, ...]:
        layout = "<" + letters
        found = struct.unpack_from(layout, self.data, self.position)
        self.position += struct.calcsize(layout)
        return found

    def text(self) -> str:
        (length,) = self.numbers("Q")
        start = self.position
        if length > len(self.data) - start:
            raise struct.error("a text runs beyond the end of the file")
        self.position += length
        return self.data[start : self.position].decode("utf-8", errors="replace")

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.text()
        if kind == _ARRAY:
            inner, length = self.numbers("IQ")
            if length > _MOST:
                raise struct.error(f"an array of {length} values")
            if inner in _NUMBERS:
                return list(self.numbers(f"{length}{_NUMBERS[inner]}"))
            return [self.value(inner) for _ in range(length)]
        if kind not in _NUMBERS:
            raise struct.error(f"a value of the unknown type {kind}")
        return self.numbers(_NUMBERS[kind])[0]

    def tensor(self) -> GGUFTensor:
        name = self.text()
        (n_dims,) = self.numbers("I")
        if n_dims > 8:
            raise struct.error(f"a tensor of {n_dims} dimensions")
        dims = self.numbers(f"{n_dims}Q")
        kind, offset = self.numbers("IQ")
        return GGUFTensor(name, tuple(reversed(dims)), kind, offset)


def read_header(path: Path) -> GGUFHeader:
    """Return the head of a GGUF file.

    Raises:
        BadInput: The file cannot be read, is no GGUF file, of another version, or damaged in its head.
    """
    try:
        with path.open("rb") as file:
            start = file.read(24)
            if start[:4] != b"GGUF":
                raise BadInput(f"{path} is no GGUF file (it does not begin with 'GGUF'); give one, or a folder.")
            if len(start) < 24:
                raise BadInput(f"{path} ends after {len(start)} bytes, within its head; fetch it again.")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return _parsed(path, _Reader(data))
    except OSError as error:
        raise BadInput(f"Cannot read {path}: {error.strerror or error}.") from error
    except (struct.error, OverflowError, MemoryError, RecursionError) as error:
        raise BadInput(f"The head of {path} is damaged or cut off ({error}); fetch the file again.") from error


def _parsed(path: Path, reader: _Reader) -> GGUFHeader:
    reader.position = 4
    version, n_tensors, n_pairs = reader.numbers("IQQ")
    if version not in (2, 3):
        hint = " (a big-endian file)" if version >= 2**16 else ""
        raise BadInput(f"{path} is of GGUF version {version}{hint}; versions 2 and 3 are read, so convert it again.")
    if max(n_tensors, n_pairs) > _MOST:
        raise struct.error(f"{n_tensors} tensors, {n_pairs} entries")
    metadata = {}
    for _ in range(n_pairs):
        key = reader.text()
        metadata[key] = reader.value(reader.numbers("I")[0])
    if not isinstance(metadata.get("general.architecture"), str):
        raise BadInput(f"{path} does not name its architecture (general.architecture), so no model can be made of it.")
    tensors = tuple(reader.tensor() for _ in range(n_tensors))
    alignment = max(1, int(metadata.get("general.alignment", 32)))
    return GGUFHeader(path, metadata, tensors, -(-reader.position // alignment) * alignment)
