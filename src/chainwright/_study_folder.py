"""The folder of a study: whose it is, whether it can be gone on with, and clearing it for a new one.

`study.json` says what a folder holds. Without one of ours nothing in a folder is touched.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from chainwright._errors import BadInput
from chainwright._files import clear_disk_errors, is_draft, read_json, remove_leftovers, write_json

SCHEMA_VERSION = 1
_STUDY = "study.json"
_FOLDERS, _FILES = ("traces", "accuracy", "errors", "roles"), ("scores.safetensors", "token_strs.json", "report.html")


def open_folder(folder: Path, config: Mapping[str, Any], source: Mapping[str, str], overwrite: bool) -> None:
    """Make a folder ready for a study: new, gone on with, or emptied of an older study and of nothing else.

    Args:
        folder: The folder of the study.
        config: Its config as plain JSON values.
        source: Provenance of the model.
        overwrite: Replace a study that is finished or has another config.

    Raises:
        BadInput: The folder holds something else, a finished study, or one with other settings.
    """
    if folder.exists() and not folder.is_dir():
        raise BadInput(f"{folder} is a file; choose a folder for the results.")
    known = folder / _STUDY
    if known.exists():
        state = read_state(folder)
        if not overwrite:
            _check_same(folder, state, config, source)
            remove_leftovers(folder)
            return
        _clear(folder, state)
    elif folder.exists() and not all(is_draft(path, _STUDY) for path in folder.iterdir()):
        raise BadInput(f"{folder} exists and holds no study of Chainwright's; choose an empty or new folder.")
    state = {"schema_version": SCHEMA_VERSION, "is_complete": False, "config": dict(config)}
    write_json(known, state | {"provenance": dict(source)})


def _clear(folder: Path, state: dict[str, Any]) -> None:
    """Remove the files of a study, which stays an unfinished one of its old config until a new one takes its place."""
    write_json(folder / _STUDY, state | {"is_complete": False})
    remove_leftovers(folder)
    with clear_disk_errors(folder):
        for name in _FOLDERS:
            if (folder / name).exists():
                shutil.rmtree(folder / name)
        for name in _FILES:
            (folder / name).unlink(missing_ok=True)


def read_state(folder: Path) -> dict[str, Any]:
    """Return what a folder's study.json says.

    Raises:
        BadInput: There is none, or it is not one of ours.
    """
    if not (folder / _STUDY).is_file():
        raise BadInput(f"{folder} holds no study (there is no {_STUDY} in it); make one with `chainwright diagnose`.")
    state = read_json(folder / _STUDY)
    parts = ("schema_version", "config", "provenance")
    if not isinstance(state, dict) or any(part not in state for part in parts):
        raise BadInput(f"{folder / _STUDY} was not written by Chainwright; choose another folder.")
    return state


def finish(folder: Path, skipped: list[str]) -> dict[str, Any]:
    """Write down that the study is complete, and return what its study.json says now."""
    state = read_state(folder) | {"is_complete": True, "skipped": skipped}
    write_json(folder / _STUDY, state)
    return state


def _check_same(folder: Path, state: dict[str, Any], config: Mapping[str, Any], source: Mapping[str, str]) -> None:
    check_version(folder, state)
    if state.get("is_complete"):
        raise BadInput(
            f"{folder} already holds a finished study; pass --overwrite to replace it, or choose another folder."
        )
    changed = [k for k, v in config.items() if state["config"].get(k) != v]
    changed += [k for k, v in source.items() if state["provenance"].get(k) != v]
    if changed:
        raise BadInput(
            f"{folder} holds an unfinished study with other settings ({', '.join(changed)} differ); use the same "
            "settings to go on with it, --overwrite to replace it, or another folder."
        )


def check_version(folder: Path, state: dict[str, Any]) -> None:
    """Raise BadInput unless the study is of this schema."""
    if state["schema_version"] != SCHEMA_VERSION:
        raise BadInput(
            f"{folder} has study schema version {state['schema_version']}, this Chainwright reads {SCHEMA_VERSION}; "
            "use the version that wrote it, or make the study again."
        )
