"""The final answer of a response: where it is, and when it was taken back.

1. Thinking is not judged: what counts is the text after the last marker that closes thinking (`</think>` and its
   relatives), or in Harmony's final channel. A response that is cut while it thinks has said nothing.
2. The answer is the value after the last word that announces one ("Answer:", "####", a box ...). What is cut is no
   answer: a box that is never closed, and, if the token limit ended the response, a value that its end touches.
3. A value that is denied ("not 5 but 7"), struck out, or taken back later ("5. Wait, it is 7") gives way to the one
   that replaces it. Taken back without a replacement, it is no answer.
"""

from __future__ import annotations

import re
from fractions import Fraction
from typing import NamedTuple

from chainwright.checkers.patterns import MINUS, NUMBER, SIDE, Pattern
from chainwright.markers.borders import said_aloud

MARK = re.compile(
    r"(?:\banswer\b[\s*_]*(?:is\b|[:=])"
    r"|^(?:[^\w\n]|[0-9_]|step\b)*(?:so\s+)?(?:the\s+)?(?:final\s+)?answer\b"
    r"|(?<=\banswer)[ ]+(?=(?:can(?:no|['\u2019])t|could(?:n['\u2019]t|\s+not)|isn['\u2019]t|wasn['\u2019]t)\b)"
    r"|^[ \t]*####"
    r"|\\boxed\{)",
    re.IGNORECASE | re.MULTILINE,
)
_BOX = re.compile(r"\\boxed\{")
_LATEX_FRACTION = re.compile(r"\\[dt]?frac\{([0-9]+)\}\{([0-9]+)\}")
STRUCK_OUT = re.compile(r"~~[^~\n]+~~")
_DENIED = re.compile(
    r"(?:\b(?:not|cannot|neither|nor|rather\s+than|instead\s+of)|n['\u2019]t)"
    r"(?:\s+(?:be|actually|really|equal|equal\s+to))?[\s*_`$\"']*$",
    re.IGNORECASE,
)
_SENTENCE = r"(?:^|[.!?\n]\s*)(?:(?:hmm+|oh|ah|no|but|however)[,.]?\s+)*"
_TAKEN_BACK = re.compile(
    r"\b(?:(?<!the\s)wait(?!\s+(?:time|for)\b)|actually|correction|scratch\s+that|oops|hold\s+on|i\s+mean"
    r"|sorry(?!\s+for\s+the\s+(?:wait|delay|length|long))|on\s+second\s+thought|hmm+"
    r"|no(?:,|[.!](?=\s|$))"
    r"|let\s+me\s+(?:re-?(?:check|do|consider|think|calculate|compute|count|examine)|(?:check|try|think|start)\b.{0,20}?"
    r"\b(?:again|over))"
    r"|(?:(?:made|my|found)\s+(?:an?\s+|the\s+)?(?:\w+\s+)?(?:mistake|error)))(?!\w)"
    rf"|{_SENTENCE}(?:that|this|it)(?:['\u2019]s|\s+(?:is|was))\s+(?:wrong|incorrect|not\s+(?:right|correct)|a\s+mistake)\b",
    re.IGNORECASE,
)
_REPLACED = re.compile(
    r"(?:\b(?:it|that|this|answer|result)(?:['\u2019]s|\s+(?:is|was|comes\s+to|should\s+be|must\s+be))|=|\bbut)[\s*_`$:\"']*",
    re.IGNORECASE,
)
_CONFIRMED = re.compile(r"\b(?:yes|correct|right|confirmed|indeed|stands|fine)\b", re.IGNORECASE)
_SMALL_WORDS = "the an is it final string word result text not".split()
_LETTER = r"[^\W\d_]"
_FRACTION = rf"{NUMBER.regex}(?:\.[0-9]+)?(?:[ ]?/[ ]?[0-9]+(?![0-9.]))?"
ANY_NUMBER = Pattern(_FRACTION, "number")
"""A number as an answer: other than in a chain, it may have decimals or be a fraction."""


def answer_pattern(answer: str) -> Pattern:
    """Return what a final answer may look like, judged by the right one."""
    if ANY_NUMBER.compiled.fullmatch(answer):
        return ANY_NUMBER
    if answer.casefold() in ("heads", "tails"):
        return SIDE
    small = "|".join(word for word in _SMALL_WORDS if word != answer.casefold())
    letters = rf"{_LETTER}(?:[ \t-]{{1,3}}{_LETTER}(?!\w))*(?!\w)"
    return Pattern(rf"(?<!\w)(?!(?:{small})(?!\w))(?:{letters}|\w+)", "letters")


def means_the_same(got: str, answer: str) -> bool:
    """Return whether two spellings of an answer mean the same: numbers by value, 0.50 and 1/2 too."""
    pattern = answer_pattern(answer)
    if pattern is not ANY_NUMBER:
        return pattern.meaning(got) == pattern.meaning(answer)
    return _value(got) == _value(answer)


def _value(text: str) -> Fraction | str:
    """Return a number's value; its text where it has none (3/0) or is too long to be computed with."""
    plain = re.sub(rf"^{MINUS}", "-", re.sub(r"[\s,]", "", text))
    try:
        above, _, below = plain.partition("/")
        return Fraction(above) / Fraction(below or 1)
    except (ValueError, ZeroDivisionError):
        return plain


class Found(NamedTuple):
    """A final answer as the response writes it, and the rule that led to it."""

    text: str
    rule: str


def final_answer(
    text: str, answer: str, *, may_guess: bool, is_first: bool = False, is_cut: bool = False
) -> Found | None:
    """Return the final answer of a response, or None if it gives none.

    Args:
        text: The response.
        answer: The right answer, which says what an answer looks like.
        may_guess: Whether the last value counts where no word announces an answer.
        is_first: Whether it is the first value instead, as for a response that is to be the answer alone.
        is_cut: Whether the token limit ended the response, so that a value at its very end may lack its rest.
    """
    spoken = STRUCK_OUT.sub(lambda match: " " * len(match.group()), text[slice(*said_aloud(text))])
    spoken = _LATEX_FRACTION.sub(r"\1/\2", spoken[: open_box(spoken)])
    pattern = answer_pattern(answer)
    if is_cut and pattern is not SIDE and not is_first:
        spoken = without_last_word(spoken)
    marks = list(MARK.finditer(spoken))
    for mark in reversed(marks):
        match = pattern.compiled.search(spoken, after_equation(spoken, mark.end(), pattern))
        if match:
            got = settled(spoken, match, pattern)
            return None if got is None else Found(got, rule_of(mark.group()))
    is_announced = bool(marks) and not re.search(r"\w", spoken[marks[-1].end() :])
    values = [match.group() for match in pattern.compiled.finditer(spoken)] if may_guess and not is_announced else []
    if not values:
        return None
    return Found(values[0], "first value") if is_first else Found(values[-1], "last value")


def rule_of(mark: str) -> str:
    """Return the name of the rule that a word announcing an answer stands for."""
    if "boxed" in mark:
        return "last boxed"
    if mark.strip(" \t*_") == "A:":
        return "after A:"
    return "after ####" if "####" in mark else "the answer is"


def open_box(text: str) -> int:
    """Return where a box begins that is never closed, or the length of the text."""
    for box in _BOX.finditer(text):
        depth = 1
        for brace in re.finditer(r"[{}]", text[box.end() :]):
            depth += 1 if brace.group() == "{" else -1
            if depth == 0:
                break
        if depth:
            return box.start()
    return len(text)


def without_last_word(text: str) -> str:
    """Return a text without the word or number that its end touches."""
    if not re.match(r"\w", text[-1:]):
        return text
    end = len(text)
    while end and (text[end - 1] in ".,/" or re.match(r"\w", text[end - 1])):  # in linear time, unlike an expression
        end -= 1
    return text[:end]


def after_equation(text: str, start: int, pattern: Pattern) -> int:
    """Return where the value of an announced answer begins: after the line's last "=", unless that is explained.

    "2 * 3 = 6" gives its right side, and "6 = 2 * 3" its left one.
    """
    equation = re.compile(r"[^\n]*=").match(text, start)
    if equation is None or _TAKEN_BACK.search(equation.group()):
        return start
    left, right = text[start : text.index("=", start)], text[equation.end() :].partition("\n")[0]
    is_explained = pattern.sort == "number" and re.search(r"[0-9]\s*[-+*/\u2212\u00d7\u00f7]\s*[0-9]", right)
    if is_explained and pattern.compiled.fullmatch(left.strip(" \t*_$`:")):
        return start
    return equation.end()


def settled(text: str, match: re.Match[str], pattern: Pattern) -> str | None:
    """Return the value that counts in the end: `match`, or what a denial or a second thought puts in its place."""
    while _DENIED.search(text, 0, match.start()):
        later = pattern.compiled.search(text, _after_but(text, match.end()))
        if later is None:
            return None
        match = later
    taken_back = list(_TAKEN_BACK.finditer(text, match.end()))
    if not taken_back:
        return match.group()
    rest = text[taken_back[-1].end() :]
    values = (pattern.compiled.match(rest, cue.end()) for cue in _REPLACED.finditer(rest))
    replaced = [value for value in values if value and not _CONFIRMED.fullmatch(value.group())]
    if replaced:
        return replaced[-1].group()
    if (pattern.sort == "number" or pattern == SIDE) and (others := pattern.compiled.findall(rest)):
        return str(others[-1])
    return match.group() if _CONFIRMED.search(rest) else None


def _after_but(text: str, end: int) -> int:
    """Return where the value begins that replaces a denied one."""
    but = re.compile(r"[^\n.]*?\bbut\b", re.IGNORECASE).match(text, end)
    return but.end() if but else end
