"""What every measurement has in common: frozen fields, provenance, and a folder that other tools can open."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import pyarrow as pa
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from chainwright import _notebook
from chainwright._errors import BadInput
from chainwright._files import atomic_folder, current_folder, read_json, write_json
from chainwright._registry import load_saved, name_of, names, source_of

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

SCHEMA_VERSION = 2
_RESULT, _TENSORS = "result.json", "tensors.safetensors"
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

    def plot(self) -> Figure:
        """Return the finding as a Plotly figure, which is not shown; this one is the table of `to_frame`.

        Findings that have a figure of their own return that. Drawing is read only when it is asked for, since Plotly
        takes its time to load.
        """
        from chainwright.figures import table_of

        return table_of(self.to_frame().to_pydict())

    def _repr_html_(self) -> str:
        """Return what a notebook shows: the summary and the first rows of the table."""
        frame = self.to_frame()
        rows = frame.slice(0, _notebook.N_ROWS).to_pydict()
        return _notebook.block(
            type(self).__name__, _notebook.text(self.summary()), _notebook.table(rows, frame.num_rows)
        )

    def save(self, folder: str | Path, *, overwrite: bool = False) -> Path:
        """Write `tensors.safetensors` and `result.json` into a new or empty folder.

        Raises:
            BadInput: The folder exists and `overwrite` is off, it is there and holds something else than a
                finding, or it cannot be written.
        """
        folder = Path(folder)
        is_new = not folder.exists() or (folder.is_dir() and not any(folder.iterdir()))
        if not is_new and not overwrite:
            raise BadInput(f"{folder} exists; pass overwrite=True or choose another folder.")
        if not is_new and not (folder / _RESULT).is_file():
            raise BadInput(f"{folder} exists and holds no finding, so it is not replaced; choose another folder.")
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        # clones, since safetensors refuses tensors that share their memory
        tensors = {name: v.detach().cpu().clone() for name, v in values.items() if isinstance(v, Tensor)}
        plain = {
            name: asdict(value) if is_dataclass(value) and not isinstance(value, type) else value
            for name, value in values.items()
            if name not in tensors
        }
        with atomic_folder(folder) as draft:
            save_file({name: value.contiguous() for name, value in tensors.items()}, draft / _TENSORS)
            record = {"schema_version": SCHEMA_VERSION, "kind": type(self).__name__, "values": plain}
            if (package := _source(type(self))) is not None:
                record["package"] = package
            write_json(draft / _RESULT, record)
        return folder

    @classmethod
    def load(cls: type[F], folder: str | Path) -> F:
        """Return what `save` wrote; called on `Finding` itself it takes any kind.

        Raises:
            BadInput: No such folder, another kind, damaged files, or written by a newer schema.
        """
        folder = current_folder(Path(folder))
        record = read_json(folder / _RESULT)
        kind = _kind(cls, folder, record)
        try:
            tensors = load_file(folder / _TENSORS)
        except (OSError, SafetensorError) as error:
            raise BadInput(f"{folder / _TENSORS} is missing or damaged: {error}") from error
        try:
            return kind(**(record["values"] | tensors))
        except (KeyError, TypeError) as error:
            raise BadInput(f"The values in {folder} do not make a {kind.__name__}: {error}.") from error


def _kind(cls: type[F], folder: Path, record: Any) -> type[F]:
    """Return the class that made a record, checked to be `cls` or one of its kinds, and of this schema."""
    version = record.get("schema_version") if isinstance(record, dict) else None
    if version != SCHEMA_VERSION:
        raise BadInput(
            f"{folder} has schema version {version}, this Chainwright reads {SCHEMA_VERSION}; use the "
            "version of Chainwright that wrote it, or make it again."
        )
    name = record.get("kind")
    if name == cls.__name__:
        return cls
    if record.get("package") is None and name not in names("finding"):
        raise BadInput(
            f"{folder} holds a {name}, not a {cls.__name__}, and no finding of that name is registered; load it with "
            "the class that wrote it."
        )
    kind = load_saved("finding", name, record.get("package"), f"The finding in {folder}")
    if not issubclass(kind, cls):
        raise BadInput(f"{folder} holds a {name}, not a {cls.__name__}; load it with Finding.load.")
    return kind  # type: ignore[no-any-return]


def _source(kind: type[Finding]) -> str | None:
    name = name_of("finding", kind)
    return None if name is None else source_of("finding", name)
