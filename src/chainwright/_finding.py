"""What every measurement has in common: frozen fields, provenance, and a folder that other tools can open."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from chainwright._errors import BadInput
from chainwright._files import atomic_folder, read_json, write_json

SCHEMA_VERSION = 1
F = TypeVar("F", bound="Finding")


@dataclass(frozen=True, kw_only=True)
class Finding(ABC):
    """The result of one instrument: CPU tensors and plain values, with where they come from.

    Attributes:
        config: The settings that the instrument ran with.
        provenance: Model, revision, number type, package versions.
    """

    config: Mapping[str, Any] = field(default_factory=dict)
    provenance: Mapping[str, str] = field(default_factory=dict)

    @abstractmethod
    def summary(self) -> str:
        """Return what was found, in a few lines of text."""

    @abstractmethod
    def to_frame(self) -> pa.Table:
        """Return the finding as a flat table (`.to_pandas()` makes a data frame of it)."""

    def save(self, folder: str | Path, *, overwrite: bool = False) -> Path:
        """Write `tensors.safetensors` and `result.json` into a new folder.

        Raises:
            BadInput: The folder exists and `overwrite` is off, or it cannot be written.
        """
        folder = Path(folder)
        if folder.exists() and not overwrite:
            raise BadInput(f"{folder} exists; pass overwrite=True or choose another folder.")
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        tensors = {name: value.contiguous() for name, value in values.items() if isinstance(value, Tensor)}
        plain = {name: value for name, value in values.items() if name not in tensors}
        with atomic_folder(folder) as draft:
            save_file(tensors, draft / "tensors.safetensors")
            record = {"schema_version": SCHEMA_VERSION, "kind": type(self).__name__, "values": plain}
            write_json(draft / "result.json", record)
        return folder

    @classmethod
    def load(cls: type[F], folder: str | Path) -> F:
        """Return what `save` wrote; called on `Finding` itself it takes any kind.

        Raises:
            BadInput: No such folder, another kind, damaged files, or written by a newer schema.
        """
        folder = Path(folder)
        record = read_json(folder / "result.json")
        version = record.get("schema_version")
        if version != SCHEMA_VERSION:
            raise BadInput(
                f"{folder} has schema version {version}, this Chainwright reads {SCHEMA_VERSION}; use the version of "
                "Chainwright that wrote it, or make it again."
            )
        kinds = {kind.__name__: kind for kind in _kinds(cls)}
        if record["kind"] not in kinds:
            raise BadInput(f"{folder} holds a {record['kind']}, not a {cls.__name__}.")
        try:
            tensors = load_file(folder / "tensors.safetensors")
        except (OSError, SafetensorError) as error:
            raise BadInput(f"{folder}/tensors.safetensors is missing or damaged: {error}") from error
        return kinds[record["kind"]](**record["values"], **tensors)


def _kinds(cls: type[F]) -> list[type[F]]:
    return [cls, *(kind for sub in cls.__subclasses__() for kind in _kinds(sub))]
