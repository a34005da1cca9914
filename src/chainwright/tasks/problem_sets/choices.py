"""Options with letters: how they are written under a question, and how they are shuffled.

An order is drawn from the seed and the question itself, so that it depends neither on `n` nor on other questions. An
option that speaks of the others ("none of the above") keeps its place, and a question with one that names letters
("both A and B") is not shuffled.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from random import Random

from chainwright.tasks.problem_sets.values import LETTERS

_KEEPS_ITS_PLACE = re.compile(
    r"\b(?:above|below|previous)\b|\b(?:none|all|any|both|neither) of (?:the|these|those|them)\b", re.I
)
_NAMES_LETTERS = re.compile(r"\b[A-H]\)?\s*(?:and|or|&|,|/)\s*\(?[A-H]\b|\b(?:option|choice)s?\s+\(?[A-H]\b")


def shuffled(choices: Sequence[str], question: str, seed: int) -> list[int]:
    """Return the order of the options: the index of each option in its new place."""
    if any(_NAMES_LETTERS.search(text) for text in choices):
        return list(range(len(choices)))
    free = [i for i, text in enumerate(choices) if not _KEEPS_ITS_PLACE.search(text)]
    drawn = iter(Random(f"{seed}|{question}|{'|'.join(choices)}").sample(free, len(free)))
    return [next(drawn) if i in free else i for i in range(len(choices))]


def lettered(question: str, choices: Sequence[str]) -> str:
    """Return a question with its options below it, one per line."""
    return "\n".join([question, "", *(f"({letter}) {text}" for letter, text in zip(LETTERS, choices, strict=False))])
