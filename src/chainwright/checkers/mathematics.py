r"""The checker `math`: formulas, compared by the library math-verify in a process that a time limit can end.

1. The answer is what the last announcement says: the last closed box, "####", "the answer is"; without one, the last
   formula between dollar signs, or the last number.
2. Texts that are the same but for spacing, and plain numbers of the same value, are right without the library.
3. Otherwise both sides are parsed (LaTeX, fractions, sets, intervals, matrices, equations, units, percentages) and
   compared. What cannot be parsed or compared in time counts as not read. A right answer that is a word ("Evelyn",
   "even") is compared as a word.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from fractions import Fraction
from importlib.util import find_spec
from typing import NamedTuple

from chainwright._errors import BadInput
from chainwright._registry import register
from chainwright.checkers._process import Comparison, TooSlow, Worker
from chainwright.checkers.base import PENDING, UNREAD, Checker, Verdict
from chainwright.checkers.exact import says
from chainwright.checkers.places import announcements, spoken_text
from chainwright.checkers.values import NUMERAL, plain, readings
from chainwright.checkers.wording import shortened

_FORMULA = re.compile(r"\$\$(.+?)\$\$|\\\[(.+?)\\\]|\\\((.+?)\\\)|(?<![\\$])\$([^$\n]+?)(?<!\\)\$(?!\$)", re.DOTALL)
# possessive, since the parts of a long word could be tried in all ways
_UNIT = r"(?:\\?[%$]|\^?\{?\\circ\}?|\u00b0|\\(?:text|mathrm|mbox)\s*\{[^{}]*\}|[A-Za-z]++\.?(?:\^?[23])?|\s)*+"
_WORD = re.compile(r"(?:\\(?:text|textbf|mathrm|textsf)\s*\{[^{}]*\}|[^\W\d_]{2,}+|[\s,.'()-])++")
_SENTENCE_END = re.compile(
    r"[.!?]?\s*$|(?<=[^\d])[.!?]\s+[A-Z]|\.\s*\n|,\s+(?:so|because|since|which|where|as)\b|\s+\(|;"
)
_SIGNS = {
    "\u2212": "-",
    "\u2013": "-",
    "\u00d7": r"\times ",
    "\u00b7": r"\cdot ",
    "\u00f7": "/",
    "\u03c0": r"\pi ",
    "\u221e": r"\infty ",
    "\u2264": r"\le ",
    "\u2265": r"\ge ",
    "\u2260": r"\ne ",
    "\u222a": r"\cup ",
    "\u2229": r"\cap ",
    "\u2205": r"\emptyset ",
    "\u2208": r"\in ",
    "\u00b2": "^2",
    "\u00b3": "^3",
    "\u00b0": r"^\circ ",
}
_LONGEST, _LONGEST_END = 2000, 4000


class _Candidate(NamedTuple):
    """What may be the answer of a response."""

    text: str
    rule: str


@register("checker", "math")
class MathChecker(Checker):
    """Compares formulas by meaning."""

    needs = "a formula, a number or a word"

    def __init__(self, seconds: float = 5.0):
        self.worker = Worker(seconds)

    def judge(self, response_text: str, answer: str, *, choices: Sequence[str] = (), is_cut: bool = False) -> Verdict:
        """Return whether the formula that the response gives means the right answer.

        Raises:
            BadInput: The library math-verify is needed and not installed.
        """
        text = spoken_text(response_text, is_cut=is_cut)
        gold = stripped(answer)
        tried = UNREAD
        for candidate in _candidates(text, is_cut=is_cut, is_word=_is_word(gold)):
            verdict = self._compared(candidate, gold)
            if verdict.is_right is not None:
                return verdict
            tried = verdict if tried is UNREAD or tried.extracted is None else tried
            if candidate.rule == "last boxed":
                break  # what stands in a box is the answer, even if it cannot be read
        if tried is UNREAD and (place := next(announcements(text), None)) and not re.search(r"\w", text[place.start :]):
            return PENDING
        return tried

    def check_gold(self, answer: str, choices: Sequence[str] = ()) -> str | None:
        """Return why a right answer can be read neither as a formula nor as a word."""
        gold = stripped(answer)
        if not gold:
            return "is empty"
        if len(gold) > _LONGEST:
            return f"has {len(gold)} characters, too many for a formula"
        if _is_word(gold) or _value(gold):
            return None
        try:
            return None if self._compare(_latex(gold), None).gold_is_read else "cannot be read as a formula"
        except TooSlow:
            return f"takes more than {self.worker.seconds:g} s to read"

    def _compared(self, candidate: _Candidate, gold: str) -> Verdict:
        got = stripped(candidate.text)
        shown = shortened(got)
        if not got:
            return Verdict(None, None, f"{candidate.rule}: empty")
        if _squeezed(got) == _squeezed(gold):
            return Verdict(True, shown, candidate.rule)
        if _is_word(gold):
            return Verdict(says(plain(got), plain(gold)), shown, candidate.rule)
        left, right = _value(got), _value(gold)
        if left and right:
            return Verdict(bool(left & right), shown, candidate.rule)
        if len(got) > _LONGEST:
            return Verdict(None, shown, f"{candidate.rule}: too long to be read")
        try:
            comparison = self._compare(_latex(gold), _latex(got))
        except TooSlow:
            return Verdict(None, shown, f"{candidate.rule}: not compared within {self.worker.seconds:g} s")
        if not comparison.got_is_read:
            return Verdict(None, shown, f"{candidate.rule}: no formula that can be read")
        return Verdict(comparison.is_equal, shown, candidate.rule)

    def _compare(self, gold: str, got: str | None) -> Comparison:
        if find_spec("math_verify") is None:
            raise BadInput(
                "The checker 'math' needs the library math-verify, which is not installed; install it with "
                "pip install \"chainwright[math]\", or choose another checker, such as 'number'."
            )
        return self.worker.compare(gold, got)


def stripped(text: str) -> str:
    r"""Return a formula without what surrounds it: dollar signs, `\boxed`, "x =" alone, punctuation at its end."""
    text = text.strip().strip("*_ \t\n")
    text = re.sub(r"\\f?boxed\s*(?=\{)", "", text)  # also of boxes inside
    before = None
    while before != text:
        before = text
        text = re.sub(r"\A(?:\$+|\\\(|\\\[)\s*(.*?)\s*(?:\$+|\\\)|\\\])\Z", r"\1", text, flags=re.DOTALL)
        text = re.sub(r"\A\\(?:boxed|displaystyle|left\.|,|;|!)\s*", "", text)
        if text.startswith("{") and text.endswith("}") and _is_one_group(text):
            text = text[1:-1]
        text = re.sub(r"(?<!\\)(?:[.,;:!]|\\[,;!])\s*\Z", "", text).strip()
    return text


def _is_one_group(text: str) -> bool:
    depth = 0
    for i, char in enumerate(text):
        depth += {"{": 1, "}": -1}.get(char, 0)
        if depth == 0:
            return i == len(text) - 1
    return False


def _candidates(text: str, *, is_cut: bool, is_word: bool) -> Iterator[_Candidate]:
    """Yield what may be the answer, the likeliest first."""
    is_announced = False
    for place in announcements(text):
        said = text[place.start : place.end].strip()
        if not re.search(r"[^\W_]", said):
            continue
        is_announced = True
        if place.rule == "last boxed":
            yield _Candidate(said, place.rule)
            return
        formulas = list(_FORMULA.finditer(said))
        if formulas:
            yield _Candidate(_inside(formulas[0]), place.rule)
        if not is_word and (_is_prose(said) or _is_word(said)):
            yield from _last(text[place.end :], is_word=False)
            break
        sentence = said[: next((m.start() for m in _SENTENCE_END.finditer(said) if m.start() > 0), len(said))]
        yield _Candidate(sentence, place.rule)
        if number := NUMERAL.compiled.search(plain(said)):
            yield _Candidate(number.group(), place.rule)
        break
    if not is_cut and not is_announced:
        yield from _last(text, is_word=is_word)


def _last(text: str, *, is_word: bool) -> Iterator[_Candidate]:
    """Yield the last formula or number of a text that announces nothing, or a few words where a word is wanted."""
    text = text[-_LONGEST_END:]
    formulas = list(_FORMULA.finditer(text))
    rest = plain(text[formulas[-1].end() :]) if formulas else plain(text)
    numbers = list(NUMERAL.compiled.finditer(rest))
    if formulas and not numbers:
        formula = _inside(formulas[-1])
        yield _Candidate(formula.rpartition("=")[2] or formula, "last formula")
    if numbers:
        yield _Candidate(numbers[-1].group(), "last number")
    elif is_word and text.strip() and len(text.split()) <= 3:
        yield _Candidate(text, "whole response")


def _is_prose(text: str) -> bool:
    """Return whether a line is words without a number or a formula, so that the answer comes after it."""
    return len(text.split()) > 3 and not re.search(r"[0-9=$\\^_{]", text)


def _inside(formula: re.Match[str]) -> str:
    return str(next(filter(None, formula.groups())))


def _latex(text: str) -> str:
    r"""Return a formula in LaTeX, from the signs that people type; a repeating decimal becomes a fraction."""
    text = re.sub(r"\u221a\s*\(([^()]*)\)", r"\\sqrt{\1}", text)
    text = re.sub(r"\u221a\s*([0-9.]+|[A-Za-z])", r"\\sqrt{\1}", text)
    for sign, command in _SIGNS.items():
        text = text.replace(sign, command)
    text = re.sub(r"\b(?:Rs|INR|USD|EUR)\b\.?\s*(?=[0-9])", "", text)
    return re.sub(r"([0-9]*)\.([0-9]*)\\overline\s*\{?([0-9]+)\}?", _repeating, text)


def _repeating(match: re.Match[str]) -> str:
    """Return a repeating decimal as a fraction."""
    whole, fixed, period = match.groups()
    ones = Fraction(int(period), 10 ** len(period) - 1)
    value = int(whole or 0) + (int(fixed or 0) + ones) / 10 ** len(fixed)
    return rf"\frac{{{value.numerator}}}{{{value.denominator}}}"


def _squeezed(text: str) -> str:
    """Return a formula without spacing, case of fractions and size of brackets."""
    text = re.sub(r"\\(?:left|right|displaystyle|quad|qquad)\b|\\[,;!: ]|[\s~]", "", text)
    return re.sub(r"\\[dt]frac", r"\\frac", text)


def _value(text: str) -> frozenset[tuple[object, ...]]:
    """Return the readings of a number with or without a unit; empty if there is more to it."""
    match = re.fullmatch(rf"(?P<number>{NUMERAL.regex})\s?(?P<unit>{_UNIT})", plain(text).strip(), re.IGNORECASE)
    if (
        match is None
        or ":" in match["number"]
        or re.fullmatch(r"\s*(?:[a-z]|pi|sqrt)\s*", match["unit"], re.IGNORECASE)
    ):
        return frozenset()
    return readings(match["number"])


def _is_word(text: str) -> bool:
    r"""Return whether a right answer is words, such as "Evelyn", `\text{even}` or "no solution"."""
    return _WORD.fullmatch(text) is not None and len(re.findall(r"[^\W\d_]", re.sub(r"\\[a-z]+", "", text))) > 1
