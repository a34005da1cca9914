"""What may be in a slot at all, and when two spellings of a value mean the same.

A pattern accepts wrong values as well as right ones: it says that a number or a word is expected, so
that a wrong one is recognised as the value of its slot.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Literal

MINUS = r"[-\u2212\u2013]"
_MINUS_SIGNS = ("-", "\N{MINUS SIGN}", "\N{EN DASH}")


@dataclass(frozen=True)
class Pattern:
    """What may be in a slot, and when two spellings mean the same.

    Attributes:
        regex: Source of a regular expression, matched without regard to case.
        sort: "text" compares letters only by case, "number" by value, "letters" without the gaps.
        synonyms: Pairs (spelling, meaning) for slots with a closed list of values.
    """

    regex: str
    sort: Literal["text", "number", "letters"] = "text"
    synonyms: tuple[tuple[str, str], ...] = ()

    @property
    def compiled(self) -> re.Pattern[str]:
        """The expression, compiled once for the whole process."""
        return compiled(self.regex)

    def meaning(self, text: str) -> str:
        """Return a key that is equal for two spellings of the same value."""
        plain = " ".join(re.sub("[*_]", " ", text.casefold()).replace("\N{RIGHT SINGLE QUOTATION MARK}", "'").split())
        if self.sort == "number":
            sign = "-" if plain[:1] in _MINUS_SIGNS else ""
            digits = re.sub(r"[^0-9]", "", plain).lstrip("0")
            return sign + digits if digits else "0"
        if self.sort == "letters":
            return re.sub(r"[\W_]", "", plain)
        return dict(self.synonyms).get(plain, plain)


@cache
def compiled(regex: str) -> re.Pattern[str]:
    """Return the expression compiled without regard to case."""
    return re.compile(regex, re.IGNORECASE)


def choice(meanings: Mapping[str, Iterable[str]]) -> Pattern:
    """Return the pattern of a closed list: each meaning with every spelling that is read as it."""
    pairs = tuple((text.casefold(), key) for key, texts in meanings.items() for text in (key, *texts))
    longest_first = sorted((text for text, _ in pairs), key=len, reverse=True)
    options = "|".join(re.escape(text) for text in longest_first).replace(r"\ ", r"[\s*_]+")
    options = options.replace("'", "['\N{RIGHT SINGLE QUOTATION MARK}]")
    return Pattern(rf"(?:{options})(?!\w)", synonyms=pairs)


_DIGITS = r"(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)"
NUMBER = Pattern(rf"(?:(?<![0-9])(?<![0-9]\s){MINUS}\s{{0,2}})?{_DIGITS}", sort="number")
"""A whole number, also with a minus sign or commas."""
WORD = Pattern(r"(?<!\w)(?!(?:start|end|answer|parts)(?!\w))[^\W\d_]+(?!\w)")
"""A word in letters that is none of the layout's own."""
LETTER = Pattern(r"(?<!\w)[a-z](?!\w)")
"""A single letter."""
LETTERS = Pattern(r"(?<!\w)(?:[a-z](?:[\s-]{1,3}[a-z](?!\w))*(?!\w)|[a-z]+)", sort="letters")
"""Letters, spelt out or joined."""
SIGN = Pattern(r"[-+\u2212\u2013]", synonyms=(("\N{MINUS SIGN}", "-"), ("\N{EN DASH}", "-")))
"""Plus or minus."""
STEP = Pattern(rf"(?:\+|{MINUS})\s*[0-9]+", sort="number")
"""A signed number."""
SIDE = choice({"heads": (), "tails": ()})
"""Heads or tails."""
FINALLY = choice({"end": ("in the end", "finally", "at the end", "in total", "overall")})
"""The words that announce the end of a chain."""
