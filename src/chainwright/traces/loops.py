"""Endless repetition: whether the end of a response says the same again and again, and from where on.

A model that has lost its way often repeats a line or a word until the token limit ends it. Such a response is neither
right nor wrong; it is named for what it is.

1. The end of the text has period p if every character equals the one p before it.
2. For every length of the end, the smallest period follows from the border table of the text read backwards (Knuth,
   Morris and Pratt), in time linear in the length.
3. The longest end with at least `MIN_REPEATS` periods and `MIN_CHARACTERS` characters is the loop. A limit may have cut
   it anywhere, so the last repetition need not be whole.
"""

from __future__ import annotations

from typing import NamedTuple

MIN_REPEATS, MIN_CHARACTERS = 4, 160
_MOST = 200_000  # characters from the end that are looked at


class Loop(NamedTuple):
    """A text that ends in a repetition.

    Attributes:
        start: First character that is part of it.
        end: One past the last, without white space at the end of the text.
        period: Characters that are repeated.
    """

    start: int
    end: int
    period: int

    @property
    def n_repeats(self) -> float:
        """Return how many times the same is said, the last time maybe in part."""
        return (self.end - self.start) / self.period


def find_loop(text: str) -> Loop | None:
    """Return the repetition that a text ends in; None if it ends in none.

    Rows of dashes, dots or digits without a word, as in tables and long numbers, are no loop.
    """
    stripped = text.rstrip()
    end, backwards = len(stripped), stripped[-_MOST:][::-1]
    if end < MIN_CHARACTERS:
        return None
    best: Loop | None = None
    for length, period in enumerate(_periods(backwards), start=1):
        if length >= MIN_CHARACTERS and length >= MIN_REPEATS * period:
            best = Loop(end - length, end, period)
    if best is None or not any(c.isalpha() for c in stripped[best.start : best.start + best.period]):
        return None
    return best


def _periods(text: str) -> list[int]:
    """Return the smallest period of each beginning of a text."""
    borders, periods = [0] * len(text), [1] * len(text)
    for i in range(1, len(text)):
        k = borders[i - 1]
        while k and text[i] != text[k]:
            k = borders[k - 1]
        borders[i] = k + (text[i] == text[k])
        periods[i] = i + 1 - borders[i]
    return periods
