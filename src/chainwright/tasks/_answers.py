"""The final answer of a response: where it is, and when it was taken back.

1. Thinking is not judged: what counts is the text after the last `</think>` or in Harmony's final channel. A response
   that is cut while it thinks has said nothing.
2. The answer is the value after the last word that announces one ("Answer:", "####", a box ...).
3. A value that is denied ("not 5 but 7") or taken back later ("5. Wait, it is 7") gives way to the one that replaces
   it. Taken back without a replacement, it is no answer.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from chainwright.tasks._patterns import NUMBER, SIDE, Pattern

_CLOSED = re.compile(r"</think>|<\|channel\|>\s*final\b[^<]*(?:<\|constrain\|>[^<]*)?<\|message\|>")
_OPENED = re.compile(r"^\s*<think>|<\|channel\|>\s*analysis\b", re.MULTILINE)
_MARK = re.compile(
    r"(?:\banswer\b[\s*_]*(?:is\b|[:=])"
    r"|^(?:[^\w\n]|[0-9_]|step\b)*(?:so\s+)?(?:the\s+)?(?:final\s+)?answer\b"
    r"|^[ \t]*####"
    r"|\\boxed\{)",
    re.IGNORECASE | re.MULTILINE,
)
_DENIED = re.compile(r"\b(?:not|isn['\u2019]t|rather\s+than|instead\s+of)[\s*_`$\"']*$", re.IGNORECASE)
_TAKEN_BACK = re.compile(
    r"\b(?:wait|actually|correction|scratch\s+that|oops|sorry|hold\s+on|no,|i\s+mean|on\s+second\s+thought)(?!\w)",
    re.IGNORECASE,
)
_REPLACED = re.compile(
    r"(?:\b(?:it|that|this|answer|result)(?:['\u2019]s|\s+(?:is|was|comes\s+to|should\s+be|must\s+be))|=|\bbut)[\s*_`$:\"']*",
    re.IGNORECASE,
)
_CONFIRMED = re.compile(r"\b(?:yes|correct|right|confirmed|indeed|stands|fine)\b", re.IGNORECASE)
_SMALL_WORDS = "the an is it final string word result text not".split()
_LETTER = r"[^\W\d_]"


class Aloud(NamedTuple):
    """The part of a response that is not thinking: its first character, and one past its last."""

    start: int
    end: int


def said_aloud(text: str) -> Aloud:
    """Return the part of a response that is judged: after the last thinking, and before one that is cut."""
    closings = [match.end() for match in _CLOSED.finditer(text)]
    start = closings[-1] if closings else 0
    opened = _OPENED.search(text, start)
    return Aloud(start, opened.start() if opened else len(text))


def answer_pattern(answer: str) -> Pattern:
    """Return what a final answer may look like, judged by the right one."""
    if NUMBER.compiled.fullmatch(answer):
        return NUMBER
    if answer.casefold() in ("heads", "tails"):
        return SIDE
    small = "|".join(word for word in _SMALL_WORDS if word != answer.casefold())
    letters = rf"{_LETTER}(?:[ \t-]{{1,3}}{_LETTER}(?!\w))*(?!\w)"
    return Pattern(rf"(?<!\w)(?!(?:{small})(?!\w))(?:{letters}|\w+)", "letters")


def final_answer(text: str, answer: str, *, may_guess: bool, is_first: bool = False) -> str | None:
    """Return the text of the final answer in a response, or None if it gives none.

    Args:
        text: The response.
        answer: The right answer, which says what an answer looks like.
        may_guess: Whether the last value counts where no word announces an answer.
        is_first: Whether it is the first value instead, as for a response that is to be the answer alone.
    """
    spoken = text[slice(*said_aloud(text))]
    pattern = answer_pattern(answer)
    for mark in reversed(list(_MARK.finditer(spoken))):
        equation = re.compile(r"[^\n]*=").match(spoken, mark.end())
        start = equation.end() if equation and not _TAKEN_BACK.search(equation.group()) else mark.end()
        match = pattern.compiled.search(spoken, start)
        if match:
            return _last_word(spoken, match, pattern)
    values = [match.group() for match in pattern.compiled.finditer(spoken)] if may_guess else []
    if not values:
        return None
    return values[0] if is_first else values[-1]


def _last_word(text: str, match: re.Match[str], pattern: Pattern) -> str | None:
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
    if pattern in (NUMBER, SIDE) and (others := pattern.compiled.findall(rest)):
        return str(others[-1])
    return match.group() if _CONFIRMED.search(rest) else None


def _after_but(text: str, end: int) -> int:
    """Return where the value begins that replaces a denied one."""
    but = re.compile(r"[^\n.]*?\bbut\b", re.IGNORECASE).match(text, end)
    return but.end() if but else end
