"""The checker `number`: one number, or several, by value; units are not compared.

1. The answer is the first number of the last announcement (`places`), after its "=" if there is one; where the right
   answer is several numbers, it is all those of that line.
2. A number that is denied or taken back gives way to its replacement.
3. Where nothing is announced, it is the last number of the response, unless the token limit ended it.
4. Two numbers agree if one of their readings does (`values`): 0.5, 1/2 and 50% are the same.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from fractions import Fraction
from itertools import pairwise, permutations
from typing import NamedTuple

from chainwright._registry import register
from chainwright.checkers.answers import after_equation, settled
from chainwright.checkers.base import PENDING, UNREAD, Checker, Verdict
from chainwright.checkers.places import Place, announcements, spoken_text
from chainwright.checkers.values import NUMERAL, WORDS, Numeral, numeral, numerals, plain

_JOINED = re.compile(r"\s*(?:,\s*)?(?:and|or|&)\s+(?:[A-Za-z]\w*\s*=\s*)?", re.IGNORECASE)
_SEPARATED = re.compile(r"[,;&/]|\b(?:and|or|to)\b|\s[-\u2013]\s|^\s*\Z", re.IGNORECASE)
_FORMULA = re.compile(
    r"\\[A-Za-z]+|\^|\bsqrt\b|\u221a|\u03c0|\bpi\b|[0-9]\s?[xyzn]\b|\([^()]*[-+*/\u2212\u2013\u00d7][^()]*\)\s*/"
    r"|\b[a-z]{1,2}\s?/\s?[0-9]|[0-9]\s?/\s?[a-z]{1,2}\b",
    re.IGNORECASE,
)
_MOST_IN_ANY_ORDER = 6


class _Gold(NamedTuple):
    """The numbers of a right answer, and whether their order counts."""

    numbers: list[Numeral]
    is_ordered: bool


@register("checker", "number")
class NumberChecker(Checker):
    """Compares numbers by value."""

    needs = "a number"

    def judge(self, response_text: str, answer: str, *, choices: Sequence[str] = (), is_cut: bool = False) -> Verdict:
        """Return whether the number that the response gives is the right one."""
        gold = _gold(answer)
        text = plain(spoken_text(response_text, is_cut=is_cut))
        is_pending = False
        for i, place in enumerate(announcements(text)):
            if verdict := _at(text, place, gold, is_last=i == 0):
                return verdict
            is_pending = is_pending or (i == 0 and not re.search(r"\w", text[place.start :]))
        every = [] if is_cut or is_pending else numerals(text)
        if not every:
            return PENDING if is_pending else UNREAD
        got = every[-len(gold.numbers) :]
        return Verdict(_agree(got, gold), _joined(got), "last number" + "s" * (len(got) > 1))

    def check_gold(self, answer: str, choices: Sequence[str] = ()) -> str | None:
        """Return why a right answer is no number, or not a plain one."""
        if not answer.strip():
            return "is empty"
        text = plain(answer)
        if _FORMULA.search(text):
            return "is a formula, which the checker 'math' reads"
        numbers = _gold(answer).numbers
        if not numbers:
            return "has no number"
        gaps = [text[a.end : b.start] for a, b in pairwise(numbers)]
        if not all(_SEPARATED.search(gap) and len(gap.split()) <= 4 for gap in gaps):
            return f"has several numbers ({_joined(numbers)}) among words"
        return None


def _gold(answer: str) -> _Gold:
    """Return the numbers of a right answer: what follows its last "####" or "=", or its box."""
    text = plain(answer)
    text = re.sub(r"^.*(?:####|=)", "", text, flags=re.DOTALL)
    numbers = [_in_full(number) for number in numerals(text)]
    if not numbers and (words := WORDS.search(text)):
        numbers = [numeral(words)]
    return _Gold(numbers, is_ordered=bool(re.match(r"\s*[(\[]", text)))


def _in_full(number: Numeral) -> Numeral:
    """Return a right answer such as "5 million" without the reading 5, which a response has to spell out."""
    values = {reading[1] for reading in number.readings if isinstance(reading[1], Fraction)}
    if len(values) < 2 or re.search(r"%|cent|m\b", number.text):
        return number
    return number._replace(readings=frozenset({("number", max(values, key=abs))}))


def _at(text: str, place: Place, gold: _Gold, *, is_last: bool) -> Verdict | None:
    """Return the verdict on what is announced at a place; None if no number is.

    After the last announcement, "The answer is what is left:", a number may also be the last one of what follows.
    """
    part = text[: place.end]
    start = after_equation(part, place.start, NUMERAL)
    match = NUMERAL.compiled.search(text, start, place.end)
    if match is None:
        words = WORDS.search(part, start)
        if words is not None:
            return Verdict(_agree([numeral(words)], gold), words.group(), place.rule)
        later = numerals(text[place.end :]) if is_last and place.rule == "the answer is" else []
        return Verdict(_agree(later[-1:], gold), later[-1].text, "last number") if later else None
    if len(gold.numbers) > 1:
        return _several(text[place.start : place.end], gold, place.rule)
    several = _together(text, match, place.end)
    if len(several) > 1:
        return Verdict(_agree(several, gold), _joined(several), place.rule)
    got = settled(text, match, NUMERAL)
    if got is None:
        return Verdict(None, None, "the answer is taken back")
    return Verdict(_agree([numeral(found) for found in NUMERAL.compiled.finditer(got)], gold), got.strip(), place.rule)


def _several(said: str, gold: _Gold, rule: str) -> Verdict:
    """Return the verdict on all the numbers of a line, on those right of its "=", or after its last one."""
    ways = [numerals(said), [n for n in numerals(said) if re.search(r"=\s*\Z", said[: n.start])]]
    ways.append(numerals(said.rpartition("=")[2]))
    got = next((numbers for numbers in ways if _agree(numbers, gold)), ways[0])
    return Verdict(_agree(got, gold), _joined(got), rule)


def _together(text: str, first: re.Match[str], end: int) -> list[Numeral]:
    """Return a number with those that "and" or "or" join to it."""
    several, match = [numeral(first)], first
    while joint := _JOINED.match(text, match.end(), end):
        following = NUMERAL.compiled.match(text, joint.end(), end)
        if following is None:
            break
        several.append(numeral(following))
        match = following
    return several


def _agree(got: Sequence[Numeral], gold: _Gold) -> bool:
    """Return whether numbers are the right ones; in any order, unless the right answer is a tuple."""
    if len(got) != len(gold.numbers):
        return False
    is_free = not gold.is_ordered and 1 < len(got) <= _MOST_IN_ANY_ORDER
    orders = permutations(got) if is_free else [tuple(got)]
    return any(all(a.readings & b.readings for a, b in zip(order, gold.numbers, strict=True)) for order in orders)


def _joined(numbers: Sequence[Numeral]) -> str:
    return ", ".join(number.text for number in numbers)
