r"""Numbers as people and models write them, and what they may mean.

A numeral has readings, and two agree if they share one: "50%" may be 50 or 0.5, "5 million" 5,000,000 or (where the
question says in millions) 5, "5:30" a time in the morning or in the afternoon. What is read: grouped numbers
(1,234.5, 1 234, 1'234, 1.234,5, 1,00,000), decimal commas (3,5), fractions and mixed numbers (also `\frac`, signs
such as ½), scientific notation, money, percentages, times, ratios, dates, digits of every script, English number words.
"""

from __future__ import annotations

import re
import unicodedata
from fractions import Fraction
from typing import NamedTuple

from chainwright.checkers.patterns import Pattern

Reading = tuple[object, ...]
"""What a numeral may mean: ("number", value), ("time", seconds), ("date", year, month, day) or ("ratio", ...)."""

_SCALES = {"hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12, "dozen": 12}
_MONTHS = "jan feb mar apr may jun jul aug sep oct nov dec".split()
_MONTH = (
    r"(?:jan(?:uary)?|feb(?:ruary)?|mar(?:ch)?|apr(?:il)?|may|june?|july?|aug(?:ust)?|sept?(?:ember)?|oct(?:ober)?"
    r"|nov(?:ember)?|dec(?:ember)?)\.?"
)
_DATE = (
    r"[0-9]{4}-[0-9]{1,2}-[0-9]{1,2}(?![0-9])|[0-9]{1,2}[/.][0-9]{1,2}[/.](?:[0-9]{4}|[0-9]{2})(?![0-9])"
    rf"|{_MONTH}\s+[0-9]{{1,2}}(?:st|nd|rd|th)?(?![0-9])(?:,?\s+[0-9]{{4}})?"
    rf"|[0-9]{{1,2}}(?:st|nd|rd|th)?\s+(?:of\s+)?{_MONTH}(?![a-z])(?:,?\s+[0-9]{{4}})?"
)
_TIME = r"[0-9]{1,2}:[0-9]{2}(?::[0-9]{2})?(?![:0-9])(?:\s*[ap]\.?m\b\.?)?|[0-9]{1,2}\s*[ap]\.?m\b\.?"
_RATIO = r"[0-9]+(?:\s?:\s?[0-9]+)+"
_GROUPED = (
    r"[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])(?:\.[0-9]+)?|[0-9]{1,2}(?:,[0-9]{2})+,[0-9]{3}(?![0-9])(?:\.[0-9]+)?"
    r"|[0-9]{1,3}(?:[ ][0-9]{3})+(?![0-9])(?:[.,][0-9]+)?"
)
_CONTINENTAL = (
    r"[0-9]{1,3}(?:\.[0-9]{3})+,[0-9]+(?![0-9])|[0-9]{1,3}(?:\.[0-9]{3}){2,}(?![0-9])"
    r"|(?<![0-9],)[0-9]+,(?:[0-9]{1,2}|[0-9]{4,})(?![0-9]|,[0-9])"
)
_POWER = r"[0-9]+(?:\.[0-9]+)?(?:e[-+]?[0-9]+|\s*[x*\u00d7\u00b7]\s*10\s*(?:\^|\*\*)\s*[{(]?[-+]?[0-9]+[)}]?)"
_FRACTION = r"[0-9]+[ ](?:and[ ])?[0-9]+\s?/\s?[0-9]+|[0-9]+(?:\.[0-9]+)?\s?/\s?[0-9]+(?:\.[0-9]+)?"
_PLAIN = r"[0-9]+\.[0-9]+|\.[0-9]+|[0-9]+"
_SIGN = r"(?:(?<![0-9)\w])(?<![0-9)]\s)[-+]\s?)?"
_MEASURE = rf"(?:\s?(?:%|per\s?cent\b)|\s?(?:{'|'.join(_SCALES)})\b|k\b)?"
_NUMBER = (
    rf"{_SIGN}(?:[$\u20ac\u00a3\u00a5\u20b9]\s?)?{_SIGN}"
    rf"(?:{_POWER}|{_CONTINENTAL}|{_GROUPED}|{_FRACTION}|{_PLAIN}){_MEASURE}"
)
NUMERAL = Pattern(rf"(?<![A-Za-z0-9_])(?<![0-9]\.)(?:{_DATE}|{_TIME}|{_RATIO}|{_NUMBER})", "number")
"""A number in the text that `plain` returns."""

_SMALL = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen"
).split()
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
_WORD_VALUES = {word: i for i, word in enumerate(_SMALL)} | {word: 10 * (i + 2) for i, word in enumerate(_TENS)}
_ANY_WORD = "|".join(sorted([*_WORD_VALUES, *_SCALES], key=len, reverse=True))
WORDS = re.compile(rf"\b(?:(?:a\s+)?(?:{_ANY_WORD})s?\b)(?:(?:[-\s]+and)?[-\s]+(?:{_ANY_WORD})\b)*", re.IGNORECASE)
"""An English number in words."""

_FRACTION_SIGN = re.compile("[\u00bc-\u00be\u2150-\u215e]")
_LATEX_FRACTION = re.compile(
    r"(?P<sign>-?)\s?\\[dtc]?frac\s*(?:\{\s*(?P<a>[-+]?[0-9.,]+)\s*\}|(?P<c>[0-9]))\s*(?:\{\s*(?P<b>[0-9.,]+)\s*\}|(?P<d>[0-9]))"
)
_REWRITES = [
    (re.compile(r"\\(?:text|textbf|textit|mathrm|mathbf|mbox|bm)\s*\{([^{}]*)\}"), r"\1"),
    (re.compile(r"\{,\}"), ","),
    (re.compile(r"(?<=[0-9])(?:\\[,!;: ]|[\u00a0\u2009\u202f'\u2019])(?=[0-9]{3}(?![0-9]))"), ""),
    (re.compile(r"\\([%$])"), r"\1"),
    (re.compile(r"\\(?:times|cdot)\b"), "\u00d7"),
    (re.compile(r"[\u2212\u2013\ufe63\uff0d](?=\s?[$\u20ac\u00a3]?\s?[0-9.])"), "-"),
    (re.compile(r"\b(?:negative|minus)\s+(?=[$\u20ac\u00a3]?[0-9])", re.IGNORECASE), "-"),
    (re.compile(r"\*\*|__|\\[,!;:]|\\left|\\right|\\displaystyle"), ""),
    (re.compile(r"[\u00a0\u2009\u202f\u3000]"), " "),
]


class Numeral(NamedTuple):
    """A number in a text: where it is, how it is written, what it may mean."""

    start: int
    end: int
    text: str
    readings: frozenset[Reading]


def plain(text: str) -> str:
    """Return a text with its numbers written in ASCII, without LaTeX and bold type around them."""
    text = _FRACTION_SIGN.sub(_spelled, text)
    text = re.sub(r"(?![0-9])\d", lambda digit: str(unicodedata.digit(digit.group())), text)
    for pattern, new in _REWRITES:
        text = pattern.sub(new, text)
    return _LATEX_FRACTION.sub(_slashed, text)


def numerals(text: str) -> list[Numeral]:
    """Return the numbers of a plain text in order."""
    return [numeral(match) for match in NUMERAL.compiled.finditer(text)]


def numeral(match: re.Match[str]) -> Numeral:
    """Return the number that a match of `NUMERAL` or `WORDS` is."""
    return Numeral(match.start(), match.end(), match.group().strip(), readings(match.group().strip()))


def readings(text: str) -> frozenset[Reading]:
    """Return what a numeral may mean; the text itself where it has no value, as in 3/0."""
    low = text.casefold().strip()
    for read in (_dates, _times, _ratios, _numbers):
        if values := read(low):
            return frozenset(values)
    return frozenset({("text", re.sub(r"\s", "", low))})


def _spelled(sign: re.Match[str]) -> str:
    """Return a sign such as that of one half as " 1/2"."""
    return " " + unicodedata.normalize("NFKD", sign.group()).replace("\u2044", "/") + " "


def _slashed(match: re.Match[str]) -> str:
    above, below = match["a"] or match["c"], match["b"] or match["d"]
    sign = "-" if (match["sign"] == "-") != above.startswith("-") else ""
    space = " " if match.start() and match.string[match.start() - 1].isdigit() else ""
    return f"{space}{sign}{above.lstrip('+-')}/{below}"


def _dates(text: str) -> set[Reading]:
    if match := re.fullmatch(r"([0-9]{4})-([0-9]{1,2})-([0-9]{1,2})", text):
        year, month, day = map(int, match.groups())
        return {("date", year, month, day)}
    if match := re.fullmatch(r"([0-9]{1,2})[/.]([0-9]{1,2})[/.]([0-9]{2,4})", text):
        first, second, year = map(int, match.groups())
        year += 2000 if year < 100 else 0
        return {("date", year, month, day) for month, day in ((first, second), (second, first)) if month <= 12}
    if match := re.fullmatch(
        rf"(?P<m>{_MONTH})\s+(?P<d>[0-9]{{1,2}})(?:st|nd|rd|th)?(?:,?\s+(?P<y>[0-9]{{4}}))?", text
    ) or re.fullmatch(
        rf"(?P<d>[0-9]{{1,2}})(?:st|nd|rd|th)?\s+(?:of\s+)?(?P<m>{_MONTH})(?:,?\s+(?P<y>[0-9]{{4}}))?", text
    ):
        return {("date", int(match["y"] or 0), _MONTHS.index(match["m"][:3]) + 1, int(match["d"]))}
    return set()


def _times(text: str) -> set[Reading]:
    match = re.fullmatch(r"([0-9]{1,2})(?::([0-9]{2}))?(?::([0-9]{2}))?\s*(?:([ap])\.?m\.?)?", text)
    if match is None or not (match[2] or match[4]):
        return set()
    hour, seconds = int(match[1]), 60 * int(match[2] or 0) + int(match[3] or 0)
    if match[4]:
        times: set[Reading] = {("time", 3600 * (hour % 12 + (12 if match[4] == "p" else 0)) + seconds)}
        return times if match[2] else times | {("number", Fraction(hour))}
    halves = (0, 12) if hour <= 12 else (0,)
    ratio: Reading = ("ratio", Fraction(hour), Fraction(match[2]))
    return {("time", (3600 * (hour + half)) % 86400 + seconds) for half in halves} | (
        {ratio} if not match[3] else set()
    )


def _ratios(text: str) -> set[Reading]:
    if not re.fullmatch(_RATIO, text):
        return set()
    return {("ratio", *(Fraction(part) for part in text.split(":")))}


def _numbers(text: str) -> set[Reading]:
    text = re.sub(r"[$\u20ac\u00a3\u00a5\u20b9]\s?", "", text)
    match = re.fullmatch(rf"(?P<value>.*?)\s?(?P<measure>%|per\s?cent|{'|'.join(_SCALES)}|k)?", text, re.DOTALL)
    assert match is not None
    value = _value(match["value"])
    if value is None:
        value = _value_of_words(text)
        return set() if value is None else {("number", value)}
    measure = match["measure"]
    if measure is None:
        return {("number", value)}
    factor = Fraction(1, 100) if "%" in measure or "cent" in measure else Fraction(_SCALES.get(measure, 1000))
    return {("number", value), ("number", value * factor)}


def _value(text: str) -> Fraction | None:
    """Return the value of a number without units; None where it has none or is too long to be computed with."""
    sign, text = (-1 if re.match(r"[-+]?\s?-", text) else 1), text.lstrip("-+ ")
    try:
        if match := re.fullmatch(
            r"([0-9.]+)(?:e|\s*[x*\u00d7\u00b7]\s*10\s*(?:\^|\*\*)\s*[{(]?)([-+]?[0-9]{1,3})[)}]?", text
        ):
            return sign * Fraction(match[1]) * Fraction(10) ** int(match[2])
        if match := re.fullmatch(r"([0-9]+)\s+(?:and\s+)?([0-9]+)\s?/\s?([0-9]+)", text):
            return sign * (Fraction(match[1]) + Fraction(int(match[2]), int(match[3])))
        if "/" in text:
            above, _, below = text.partition("/")
            return sign * Fraction(above.strip()) / Fraction(below.strip())
        return sign * Fraction(_with_decimal_point(text))
    except (ValueError, ZeroDivisionError):
        return None


def _with_decimal_point(text: str) -> str:
    """Return a grouped or continental number as "1234.5"."""
    text = text.replace(" ", "")
    is_grouped = re.fullmatch(r"[0-9]{1,3}(,[0-9]{2,3})*,[0-9]{3}(\.[0-9]+)?", text)
    is_continental = re.fullmatch(r"[0-9]{1,3}(\.[0-9]{3})*,[0-9]+|[0-9]{1,3}(\.[0-9]{3}){2,}|[0-9]+,[0-9]+", text)
    if is_continental and not is_grouped:
        return text.replace(".", "").replace(",", ".")
    return text.replace(",", "")


def _value_of_words(text: str) -> Fraction | None:
    """Return the value of "two hundred and five"."""
    words = [word for word in re.split(r"[-\s]+", text) if word not in ("and", "a")]
    total, part, is_number = 0, 0, False
    for word in words:
        singular = word.removesuffix("s")
        if word in _WORD_VALUES:
            part += _WORD_VALUES[word]
        elif singular in _SCALES:
            part = (part or 1) * _SCALES[singular]
            if _SCALES[singular] >= 1000:
                total, part = total + part, 0
        else:
            return None
        is_number = True
    return Fraction(total + part) if is_number else None
