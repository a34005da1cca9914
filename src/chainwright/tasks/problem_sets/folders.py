"""Which files of a folder are the problems: those of `data_files`, otherwise all that are read, of one split."""

from __future__ import annotations

import difflib
import re
from pathlib import Path

from chainwright._errors import BadInput
from chainwright.tasks.problem_sets.records import FORMATS, Record, format_of, read_records

_SPLITS = ("train", "test", "validation", "valid", "val", "dev", "eval")


def read_folder(folder: Path, split: str | None, data_files: str | None) -> list[Record]:
    """Return the records of the files in a folder, in the order of their names.

    Raises:
        BadInput: There are no such files, or those of several splits.
    """
    files = _chosen(folder, data_files)
    by_split: dict[str, list[Path]] = {}
    for file in files:
        by_split.setdefault(_split_of(folder, file), []).append(file)
    if split is not None:
        if split not in by_split:
            raise BadInput(f"{folder} has no split {split!r}; it has {', '.join(sorted(by_split)) or 'none'}.")
        files = by_split[split]
    elif len(by_split) > 1:
        raise BadInput(
            f"{folder} has files of several splits ({', '.join(sorted(by_split))}); choose one with split= (--split), "
            "or files with data_files= (--data-files)."
        )
    several = len(files) > 1
    return [
        record._replace(place=f"{record.place} of {file.relative_to(folder)}") if several else record
        for file in files
        for record in read_records(file)
    ]


def missing(path: Path) -> BadInput:
    """Return the error for a file that is not there, with the nearest name beside it."""
    folder = path.parent if path.parent.is_dir() else Path()
    there = [each.name for each in folder.iterdir() if format_of(each) or each.is_dir()]
    near = difflib.get_close_matches(path.name, there, n=1)
    hint = f" Did you mean {folder / near[0]}?" if near else ""
    return BadInput(f"There is no file or folder {path}; name a {', '.join(FORMATS)} file or a Hub data set.{hint}")


def _chosen(folder: Path, data_files: str | None) -> list[Path]:
    if data_files is None:
        files = [file for file in folder.rglob("*") if format_of(file) and not _is_hidden(file.relative_to(folder))]
        files = [file for file in files if file.name not in ("dataset_info.json", "dataset_infos.json")]
    else:
        patterns = [part.strip() for part in data_files.split(",")]
        files = []
        for pattern in patterns:
            matching = [file for file in folder.glob(pattern) if file.is_file()]
            if not matching:
                raise BadInput(f"{folder} has no file {pattern!r}, which data_files names.")
            files += matching
    if not files:
        raise BadInput(f"{folder} has no file that is read ({', '.join(FORMATS)}).")
    return sorted(set(files))


def _is_hidden(file: Path) -> bool:
    return any(part.startswith(".") for part in file.parts)


def _split_of(folder: Path, file: Path) -> str:
    """Return the split that a file's name speaks of; its own name without digits if it speaks of none."""
    parts = re.split(r"[^a-z]+", str(file.relative_to(folder)).lower())
    return next((name for name in _SPLITS if name in parts), file.name.partition(".")[0].rstrip("0123456789-_"))
