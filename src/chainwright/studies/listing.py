"""What `study.json` says next: the units that a plan lists by now, and the end of a study.

These are functions of the config and of finished results alone, so that whoever computes them, and after whatever was
killed, the same units are listed in the same order.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from chainwright._errors import BadInput
from chainwright.studies import manifest, records
from chainwright.studies.manifest import Manifest
from chainwright.studies.plan import Plan, Results, check_ids

Found = dict[str, records.Checked]


class Listing(NamedTuple):
    """The units that a plan lists by now.

    Attributes:
        units: Their ids, in order.
        known: The manifest that names them.
        pending: Those not yet computed, in order.
    """

    units: list[str]
    known: Manifest
    pending: list[str]


def listed(folder: Path, plan: Plan, known: Manifest, found: Found) -> Listing:
    """Ask a plan for its units.

    Raises:
        BadInput: A folder is in the place of a unit that the study has not listed yet.
    """
    units = list(plan.units(Results(folder, in_order(known, found))))
    check_ids(units)
    for unit in units:
        # A unit is written into `study.json` before its folder appears, so a folder without an entry is not ours.
        if unit not in known.units and (folder / unit).exists():
            raise BadInput(
                f"{folder / unit} is there, but {manifest.STUDY} does not name that unit; one of them was changed by "
                "hand. Put it back, or make the study again in another folder."
            )
    # Units of later stages, of which an earlier run already knew, keep their entries and with them their hashes.
    later = [unit for unit in known.units if unit not in units]
    new = known.replace(units={unit: known.units.get(unit) for unit in [*units, *later]})
    return Listing(units, new, [unit for unit in units if unit not in found])


def in_order(known: Manifest, found: Found) -> Found:
    """Return the finished units in the order of the manifest, however they were computed."""
    return {unit: found[unit] for unit in known.units if unit in found}


def finished(folder: Path, known: Manifest, found: Found) -> Manifest:
    """Return the manifest of a finished study, with the hash of every record, so that it pins all its bytes.

    Raises:
        BadInput: It names a unit that was never listed.
    """
    if strange := [unit for unit in known.units if unit not in found]:
        raise BadInput(
            f"{folder / manifest.STUDY} names the unit {strange[0]!r}, which such a study does not have; it was "
            "changed by hand. Put it back, or make the study again in another folder."
        )
    return known.replace(is_complete=True, units={unit: found[unit].sha256 for unit in known.units})


def differ(one: Manifest, other: Manifest) -> bool:
    """Return whether two manifests are different files."""
    # Mappings compare equal in any order, but the order of the units is a part of the file.
    return one != other or list(one.units) != list(other.units)


def checked(folder: Path, known: Manifest) -> tuple[Found, dict[str, records.Damage]]:
    """Return the sound units and what is wrong with the others; those not yet computed are in neither."""
    found: Found = {}
    damage: dict[str, records.Damage] = {}
    for unit, expected in known.units.items():
        try:
            # The key ties each record to this config and model, so that a unit from another study is damage.
            record = records.check(folder / unit, known.key, expected)
        except records.Damage as error:
            damage[unit] = error
        else:
            if record is not None:
                found[unit] = record
    return found, damage


def refuse(folder: Path, known: Manifest, damage: Mapping[str, records.Damage]) -> None:
    """Raise BadInput, naming the first damaged unit, if there is any."""
    if not damage:
        return
    unit, first = next(iter(damage.items()))
    others = f" (and {len(damage) - 1} more damaged units)" if len(damage) > 1 else ""
    raise BadInput(
        f"Unit {unit} of {folder} is damaged: {first}{others}; put the file back, or compute it again: "
        f"{known.command(folder)} --recompute"
    )
