"""Data sets of the Hugging Face Hub and of its library `datasets`, which is only imported here.

Nothing is fetched unless a source is neither a file nor a folder. Where the network or the data set is missing, one
sentence says so.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from chainwright._errors import BadInput
from chainwright.tasks.problem_sets.records import FORMATS, Record

_ID = re.compile(r"[\w.-]+(?:/[\w.-]+)?")


def is_hub_id(source: str) -> bool:
    """Return whether a source that is not on this disk may be the name of a Hub data set."""
    return _ID.fullmatch(source) is not None and not source.lower().removesuffix(".gz").endswith(FORMATS)


def read_hub(
    source: str, *, subset: str | None, split: str | None, revision: str | None, data_files: str | None
) -> list[Record]:
    """Return the records of one split of a data set, which is fetched unless the library has it.

    Raises:
        BadInput: The library is missing, there is no such data set, configuration, revision or split, or no network.
    """
    datasets = _library(source)
    files = None if data_files is None else [part.strip() for part in data_files.split(",")]
    try:
        data = datasets.load_dataset(source, subset, split=split, revision=revision, data_files=files)
    except Exception as error:  # the library raises errors of many kinds, also those of its HTTP client
        raise BadInput(_sentence(source, error)) from error
    return _records(source, data, split)


def read_saved(folder: Path, split: str | None) -> list[Record]:
    """Return the records of one split of a data set that `save_to_disk` wrote."""
    data = _library(str(folder)).load_from_disk(str(folder))
    if split is not None and isinstance(data, Mapping):
        if split not in data:
            raise BadInput(f"{folder} has no split {split!r}; it has {', '.join(data)}.")
        data = data[split]
    elif split is not None:
        raise BadInput(f"{folder} is a data set without splits; drop split={split!r} (--split).")
    return _records(str(folder), data, split)


def is_saved(folder: Path) -> bool:
    """Return whether `save_to_disk` wrote a folder."""
    return any((folder / name).is_file() for name in ("dataset_dict.json", "state.json"))


def _library(source: str) -> Any:
    if find_spec("datasets") is None:
        raise BadInput(
            f"{source} is read with the library datasets, which is not installed; "
            'install it with pip install "chainwright[data]".'
        )
    import datasets

    return datasets


def _records(source: str, data: Any, split: str | None) -> list[Record]:
    if isinstance(data, Mapping):
        if len(data) != 1:
            raise BadInput(f"{source} has the splits {', '.join(data)}; choose one with split= (--split).")
        data = next(iter(data.values()))
    return [Record(f"record {i}", dict(row)) for i, row in enumerate(data, 1)]


def _sentence(source: str, error: Exception) -> str:
    """Return what went wrong and what to do, by the kind of the library's error."""
    names = {each.__name__ for each in type(error).__mro__}
    chain: BaseException | None = error
    while chain is not None:
        names |= {each.__name__ for each in type(chain).__mro__}
        chain = chain.__cause__ or chain.__context__
    reason = " ".join(str(error).split())[:300].rstrip(".") or type(error).__name__
    if names & {"OfflineModeIsEnabled", "ConnectionError", "ConnectError", "ConnectTimeout", "TimeoutException"}:
        return (
            f"There is no file or folder {source!r}, and the Hub cannot be reached to look for a data set of that name "
            f"({reason}); name a local file, or run it with a network."
        )
    if names & {"DatasetNotFoundError", "RepositoryNotFoundError", "RevisionNotFoundError"}:
        return f"There is no file, folder or Hub data set {source!r} that can be read ({reason}); check the name."
    return f"The data set {source!r} cannot be read ({reason}); check subset, split, revision and data_files."
