"""A repair as other tools write it: one text, in an argument of theirs."""

from __future__ import annotations

from collections.abc import Sequence

from chainwright._errors import BadInput
from chainwright.repair.base import Repair
from chainwright.repair.composed import Composed


def named_repair(text: str) -> Repair | None:
    """Return the repair that a text names: a bundled one, a folder or a Hub id, several joined by `+`; "none" is none.

    Raises:
        BadInput: A name is empty or unknown, or two of the repairs cannot decode together.
    """
    loaded = [Repair.from_pretrained(name) for name in repair_names(text)]
    if not loaded:
        return None
    return loaded[0] if len(loaded) == 1 else Composed(loaded)


def repair_names(given: str | Sequence[str] | None) -> list[str]:
    """Return the names of the repairs in a text, where `+` joins several, or in a list; none for None and "none".

    Raises:
        BadInput: A name is empty or no text.
    """
    if given is None or (isinstance(given, str) and given.strip().lower() in ("", "none")):
        return []
    names = given.split("+") if isinstance(given, str) else given
    if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) and name.strip() for name in names):
        raise BadInput(f"repair={given!r} has an empty name; join names by single plus signs, such as first+second.")
    return [name.strip() for name in names]
