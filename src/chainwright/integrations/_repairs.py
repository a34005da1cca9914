"""A repair as other tools write it: one text, in an argument of theirs."""

from __future__ import annotations

from chainwright._errors import BadInput
from chainwright.repair.base import Repair
from chainwright.repair.composed import Composed


def named_repair(text: str) -> Repair | None:
    """Return the repair that a text names: a bundled one, a folder or a Hub id, several joined by `+`; "none" is none.

    Raises:
        BadInput: A name is empty or unknown, or two of the repairs cannot decode together.
    """
    if text.strip().lower() in ("", "none"):
        return None
    names = [name.strip() for name in text.split("+")]
    if "" in names:
        raise BadInput(f"repair={text!r} has an empty name; join names by single plus signs, such as first+second.")
    loaded = [Repair.from_pretrained(name) for name in names]
    return loaded[0] if len(loaded) == 1 else Composed(loaded)
