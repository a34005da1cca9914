"""Gold lines of a problem that was made by hand, from nothing but its chain and slots.

A script knows what may be in each slot and what each line does. Here both are guessed from the gold
values: lines that begin alike are of one kind, kinds are in the order in which they first appear, and a
kind that appears twice is a hop.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from chainwright._errors import BadInput
from chainwright.checkers.patterns import LETTERS, NUMBER, SIGN, STEP, Pattern, choice
from chainwright.tasks._script import MORE_HOPS, Kind, Line, Part, Slot


def lines_of(chain: str, slots: Sequence[Slot]) -> tuple[Line, ...]:
    """Return the lines that a chain with its slots is made of; lines without a slot are omitted.

    Args:
        chain: The gold chain.
        slots: Its slots, at least one.

    Raises:
        BadInput: A slot is not in the chain where it says.
    """
    wrong = next((slot for slot in slots if chain[slot.start : slot.end] != slot.value), None)
    if wrong is not None:
        raise BadInput(
            f"A slot says that the chain holds {wrong.value!r} at characters {wrong.start} to {wrong.end}, but it "
            f"holds {chain[wrong.start : wrong.end]!r} there; correct the slot, or leave the problem without slots."
        )
    rows = [_parts(chain, row, slots) for row in re.finditer(r"[^\n]+", chain)]
    rows = [(parts, hop) for parts, hop in rows if any(isinstance(part, Part) for part in parts)]
    counts = Counter(_key(parts) for parts, _ in rows)
    ranks = {key: rank for rank, key in enumerate(counts)}
    last = _key(rows[-1][0])
    lines = []
    for parts, hop in rows:
        key = _key(parts)
        name = "answer" if key == last else "hop" if counts[key] > 1 else "other"
        lines.append(Line(Kind(name, ranks[key], counts[key] > 1), parts, hop))
    return tuple(lines)


def _parts(chain: str, row: re.Match[str], slots: Sequence[Slot]) -> tuple[tuple[str | Part, ...], int]:
    """Return literal text and slots of one line of the chain, and its hop."""
    parts: list[str | Part] = []
    at, hop = row.start(), 0
    for slot in slots:
        if row.start() <= slot.start < row.end():
            parts += [chain[at : slot.start], Part(slot.value, slot.error_type, _pattern(slot, slots))]
            at, hop = slot.end, slot.hop
    return tuple(part for part in [*parts, chain[at : row.end()]] if part != ""), hop


def _key(parts: Sequence[str | Part]) -> tuple[str, str, str]:
    """Return what lines of one kind share: how they begin, and what their first slot decides."""
    first = next(part for part in parts if isinstance(part, Part))
    opening = parts[0] if isinstance(parts[0], str) else ""
    keyword = first.value if first.error_type == MORE_HOPS else ""
    return re.sub(r"[0-9]+", "", opening), first.error_type, keyword


def _pattern(slot: Slot, slots: Sequence[Slot]) -> Pattern:
    """Return what may be in a slot, judged by the gold values of that slot and of the others of its type."""
    if slot.error_type == MORE_HOPS:
        return choice({slot.value: ()})
    for pattern in (STEP,) if " " in slot.value else (NUMBER, SIGN):
        if pattern.compiled.fullmatch(slot.value):
            return pattern
    if all(len(word) == 1 and word.isalpha() for word in slot.value.split()):
        return LETTERS
    known = choice({other.value: () for other in slots if other.error_type == slot.error_type})
    any_word = r"\w[\w'-]*" if slot.value[-1].isalnum() else r"[^\s,:;\"`*]+"
    return Pattern(known.regex + "|" + r"\s+".join([any_word] * len(slot.value.split())))
