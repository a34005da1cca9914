"""`study.json`: what a study's folder holds, checked before anything in it is read or changed.

    schema_version  of this file and of the folder's layout
    chainwright     version of the package that made it
    kind            which plan lists and computes the units
    again           the command that resumes it, with "{folder}" for its folder
    is_complete     whether every unit is finished
    config          everything that the units depend on besides the model
    model           what identifies the model: name, revision, shape, fingerprint, versions
    units           ids in order, as far as known; in a finished study with the SHA-256 of each unit's record

It contains no times, so that the same study gives the same bytes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chainwright._config import Config
from chainwright._errors import BadInput, see
from chainwright._files import clear_disk_errors, is_draft, read_json, remove_folder, remove_leftovers, write_json
from chainwright.studies import crew
from chainwright.studies.lock import HOLDER, LOCK
from chainwright.studies.records import study_key
from chainwright.studies.timing import LOG

if TYPE_CHECKING:
    from chainwright.studies.plan import Plan

SCHEMA_VERSION = 2
STUDY = "study.json"
REPORT = "report.html"


class Manifest(Config):
    """What `study.json` says; see the top of this module."""

    kind: str
    again: str
    config: Mapping[str, Any]
    model: Mapping[str, str]
    chainwright: str
    is_complete: bool
    units: Mapping[str, str | None]

    @property
    def key(self) -> str:
        """Return what ties the record of a unit to this config and model."""
        return study_key(self.kind, self.config, self.model)

    def command(self, folder: Path) -> str:
        """Return the command that resumes the study in a folder."""
        return self.again.replace("{folder}", str(folder))

    def save(self, folder: Path) -> None:
        """Write `study.json`."""
        write_json(folder / STUDY, {"schema_version": SCHEMA_VERSION, **self.record()})


def read(folder: Path) -> Manifest:
    """Return what a folder's `study.json` says.

    Raises:
        BadInput: There is none, it is not one of ours, of another schema, or was damaged or edited into nonsense.
    """
    path = folder / STUDY
    if not path.is_file():
        raise BadInput(f"{folder} holds no study (there is no {STUDY} in it); `chainwright study run` makes one.")
    state = read_json(path)
    if not isinstance(state, dict) or "schema_version" not in state or "config" not in state:
        raise BadInput(f"{path} was not written by Chainwright; choose another folder.")
    if state["schema_version"] != SCHEMA_VERSION:
        raise BadInput(
            f"{folder} has study schema version {state['schema_version']}, this Chainwright reads {SCHEMA_VERSION}; "
            "use the version that wrote it, or make the study again in another folder."
        )
    try:
        return Manifest.from_record({name: value for name, value in state.items() if name != "schema_version"})
    except BadInput as error:
        raise BadInput(
            f"{path} was edited or damaged: {error} Put it back as it was, or make the study again in another folder."
        ) from error


def check_place(folder: Path) -> bool:
    """Return whether a folder already holds a study, refusing one that holds something else.

    Raises:
        BadInput: It is a file, or a folder with other files.
    """
    if folder.exists() and not folder.is_dir():
        raise BadInput(f"{folder} is a file; choose a folder for the results.")
    if (folder / STUDY).exists():
        return True
    with clear_disk_errors(folder):
        if folder.exists() and not all(
            p.name in (LOCK, HOLDER, LOG, crew.PLACE) or is_draft(p, STUDY) for p in folder.iterdir()
        ):
            raise BadInput(f"{folder} exists and holds no study of Chainwright's; choose an empty or new folder.")
    return False


def check_same(folder: Path, old: Manifest, new: Manifest) -> None:
    """Raise BadInput, naming every key that differs with both values, unless both are the same study."""
    changed = differences(old.record(), new.record(), ("kind", "config", "model", "chainwright"))
    if changed:
        raise BadInput(
            f"{folder} holds a study with other settings: {'; '.join(changed)}. Use the same settings to "
            f"resume it, --overwrite to replace it, or another folder {see('a-study-that-is-another-one')}."
        )


def check_worker(folder: Path, known: Manifest, own: Manifest, where: str) -> None:
    """Raise BadInput unless a worker has the version, the settings and the weights that a study was begun with.

    Args:
        folder: The study's folder.
        known: What its `study.json` says.
        own: What the worker would write there.
        where: The worker, such as "process 12 on host".
    """
    changed = differences(known.record(), own.record(), ("kind", "config", "model", "chainwright"))
    if changed:
        said = "; ".join(each.replace(", ", " and ").replace(" was asked", " here") for each in changed)
        raise BadInput(
            f"The worker ({where}) does not fit the study in {folder}: {said}. Install the versions and use the "
            "weights that the study was begun with on every machine."
        )


def of_plan(plan: Plan) -> Manifest:
    """Return the manifest of a plan before anything is listed."""
    from chainwright._version import __version__

    # Through JSON and back, so that tuples compare equal to the lists that were read from `study.json`.
    config, source = json.loads(json.dumps([plan.config, plan.source], allow_nan=False))
    return Manifest(
        kind=plan.kind,
        again=plan.again,
        config=config,
        model=source,
        chainwright=__version__,
        is_complete=False,
        units={},
    )


def differences(old: Mapping[str, Any], new: Mapping[str, Any], parts: tuple[str, ...]) -> list[str]:
    """Return a phrase such as "n is 40 there, 50 was asked" for each value that differs in the named parts."""
    before, after = (flat({part: m[part] for part in parts}) for m in (old, new))
    return [
        f"{name} is {_shown(before, name)} there, {_shown(after, name)} was asked"
        for name in dict.fromkeys([*before, *after])
        if before.get(name) != after.get(name)
    ]


def flat(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a nested mapping as one with dotted names; "config" is left off them."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        inner = flat(value) if isinstance(value, Mapping) else {"": value}
        found |= {f"{name}.{key}".removeprefix("config.").removesuffix("."): part for key, part in inner.items()}
    return found


def _shown(values: Mapping[str, Any], name: str) -> str:
    return json.dumps(values[name], ensure_ascii=False) if name in values else "not set"


def clear(folder: Path) -> None:
    """Remove the units and the report of a study, and nothing else.

    Until a new manifest takes its place the folder holds an unfinished study of the old config.

    Raises:
        BadInput: The study is of another schema or its manifest is damaged, so that its units are not known.
    """
    old = read(folder)
    # The manifest goes first: a kill between two units must not leave a study that claims to be finished.
    old.replace(is_complete=False, units=dict.fromkeys(old.units)).save(folder)
    remove_leftovers(folder)
    for unit in old.units:
        remove_unit(folder, unit)
    with clear_disk_errors(folder):
        (folder / REPORT).unlink(missing_ok=True)


def remove_unit(folder: Path, unit: str) -> None:
    """Remove a unit's folder, and the folders above it that are empty then."""
    remove_folder(folder / unit)
    with clear_disk_errors(folder):
        for above in list((folder / unit).parents)[: unit.count("/")]:
            if above.is_dir() and not any(above.iterdir()):
                above.rmdir()
