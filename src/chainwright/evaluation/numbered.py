"""Texts that are stored once and referred to by number, which makes files of many tokens much smaller."""

from __future__ import annotations


class Numbered:
    """Numbers texts in the order in which they come up.

    Attributes:
        texts: The texts; the number of each is its index.
    """

    def __init__(self) -> None:
        self.texts: list[str] = []
        self._numbers: dict[str, int] = {}

    def number(self, text: str) -> int:
        """Return the number of a text, which is stored if it is new."""
        number = self._numbers.setdefault(text, len(self.texts))
        if number == len(self.texts):
            self.texts.append(text)
        return number
