"""The checkers `exact` and `contains`: answers that are words.

`exact`:

1. The answer is what the last announcement says: up to the end of its sentence or line, without filler words before a
   single word ("the word", "is"); then the rest must be the right answer, but for case, markup, quotation marks and
   punctuation. Numbers are compared by value, and letters with gaps ("y a j o") are put together.
2. Without an announcement, a response or last line of a few words is an answer as it is, and so is the last quoted or
   bold part of the last line.
3. If the right answer is yes or no (true or false), an announced true or false (yes or no) means the same, the first
   word of the response counts as well, and so does the only one of the two in its last sentence.

`contains` looks for the right answer, as whole words, in what is announced, or in the whole response where nothing is.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import islice

from chainwright._registry import register
from chainwright.checkers.base import PENDING, UNREAD, Checker, Verdict
from chainwright.checkers.patterns import Pattern
from chainwright.checkers.places import announcements, spoken_text
from chainwright.checkers.values import readings
from chainwright.checkers.wording import contains, normal, shortened

_FEW_WORDS, _N_ENDS = 5, 5
_PAIRS = (("yes", "no"), ("true", "false"))
_SAME = {"yes": "true", "no": "false", "true": "yes", "false": "no"}
_DOUBT = re.compile(r"\b(?:wait|actually|correction|scratch that|sorry|hmm+|on second thought)\b", re.IGNORECASE)
_FILLERS = re.compile(
    r"^(?:(?:the|a|an|is|it|that|this|final|correct|word|string|answer|result|letters?|probably|definitely|simply|just"
    r"|therefore|thus|so|hence)\b[\s,:]*)+"
)
_SENTENCE_END = re.compile(r"[.!?](?=\s|$)|\s+[-\u2013\u2014]\s|[;(]|,\s|\b(?:because|since|as|which)\b", re.IGNORECASE)
_MARKED = re.compile(r"\*\*(.+?)\*\*|\"([^\"\n]+)\"|\u201c([^\u201d\n]+)\u201d|`([^`\n]+)`|\\boxed\{([^{}]*)\}")


@register("checker", "exact")
class ExactChecker(Checker):
    """Compares words, but for case, markup and punctuation."""

    needs = "a text"

    def judge(self, response_text: str, answer: str, *, choices: Sequence[str] = (), is_cut: bool = False) -> Verdict:
        """Return whether the answer that the response gives is the right text."""
        text, gold = spoken_text(response_text, is_cut=is_cut), normal(answer)
        pair = next((pair for pair in _PAIRS if gold in pair), None)
        for i, place in enumerate(announcements(text)):
            said = text[place.start : place.end]
            if pair is not None and (verdict := _side(text, place.start, pair, gold, place.rule)):
                return verdict
            if re.search(r"[^\W_]", said):
                return _compared(said, gold, place.rule)
            if i == 0 and not re.search(r"\w", text[place.start :]):
                return PENDING
        return UNREAD if is_cut else _unannounced(text, gold, pair)


@register("checker", "contains")
class ContainsChecker(Checker):
    """Looks for the right answer in the response."""

    needs = "a text"

    def judge(self, response_text: str, answer: str, *, choices: Sequence[str] = (), is_cut: bool = False) -> Verdict:
        """Return whether the right answer is in what the response announces, or anywhere if it announces nothing."""
        text = spoken_text(response_text, is_cut=is_cut)
        place = next((p for p in announcements(text) if re.search(r"\w", text[p.start : p.end])), None)
        said = text if place is None else text[place.start : place.end]
        if not re.search(r"\w", said) or (is_cut and place is None):
            return UNREAD
        rule = "anywhere in the response" if place is None else place.rule
        is_right = contains(normal(said), normal(answer))
        return Verdict(is_right, answer if is_right else shortened(said), rule)


def says(said: str, answer: str) -> bool:
    """Return whether what is said is a right answer in words, or begins with it."""
    gold = normal(answer)
    return any(_equal(form, gold) for form in _forms(said, gold))


def _compared(said: str, gold: str, rule: str) -> Verdict:
    """Return the verdict on what is said, which may go on after the answer."""
    for form in _forms(said, gold):
        if _equal(form, gold):
            return Verdict(True, form, rule)
    return Verdict(False, shortened(_first(said)), rule)


def _forms(said: str, gold: str) -> Iterator[str]:
    """Yield what may be meant as the answer: all that is said, or its beginning."""
    yield normal(said)
    ends = [match.start() for match in islice(_SENTENCE_END.finditer(said), _N_ENDS) if match.start() > 0]
    for end in ends:
        yield normal(said[:end])
    first = _FILLERS.sub("", normal(said[: ends[0]] if ends else said))
    yield first
    yield normal(first)
    if marked := [next(filter(None, match.groups())) for match in _MARKED.finditer(said)]:
        yield normal(marked[-1])
    if " " not in gold and (
        word := re.match(r"\S+(?=\s+(?:in|and|for|to|of|with|by|when|if|after|is)\b)", normal(first))
    ):
        yield normal(word.group())


def _first(said: str) -> str:
    """Return the first sentence of what is said."""
    end = next((match.start() for match in _SENTENCE_END.finditer(said) if match.start() > 0), len(said))
    return said[:end].strip(" \t\n*_`\"'.:") or said.strip()


def _equal(got: str, gold: str) -> bool:
    if got == gold or _without_gaps(got) == _without_gaps(gold):
        return True
    has_digits = re.fullmatch(r"[-+$]?[0-9][0-9.,/ %]*", got) and re.fullmatch(r"[-+$]?[0-9][0-9.,/ %]*", gold)
    return bool(has_digits and readings(got) & readings(gold))


def _without_gaps(text: str) -> str:
    """Return single letters that are set apart as one word."""
    return re.sub(r"[\s,-]", "", text) if re.fullmatch(r"[^\W\d_](?:[\s,-]+[^\W\d_])+", text) else text


def _side(text: str, start: int, pair: tuple[str, str], gold: str, rule: str) -> Verdict | None:
    """Return the verdict on the first word of a pair after an announcement; None if its line has neither."""
    pattern = _pair_pattern((*pair, *_SAME))
    match = pattern.compiled.search(text, start)
    if match is None or "\n" in text[start : match.start()].strip():
        return None
    # "no" itself sounds like a second thought, so only other words count as one
    doubt = list(_DOUBT.finditer(text, match.end()))
    later = pattern.compiled.findall(text, doubt[-1].end()) if doubt else []
    got = str(later[-1]) if later else match.group()
    said = normal(got)
    return Verdict((said if said in pair else _SAME[said]) == gold, got, rule)


def _unannounced(text: str, gold: str, pair: tuple[str, str] | None) -> Verdict:
    lines = [line for line in text.splitlines() if re.search(r"\w", line)]
    if not lines:
        return UNREAD
    if pair is not None:
        return _side_anywhere(lines, pair, gold)
    for said, rule in ((text, "whole response"), (lines[-1], "last line")):
        if _equal(normal(said), gold):
            return Verdict(True, normal(said), rule)
    if marked := [next(filter(None, match.groups())) for match in _MARKED.finditer(lines[-1])]:
        return Verdict(_equal(normal(marked[-1]), gold), marked[-1], "last quoted or bold part")
    if len(lines[-1].split()) <= _FEW_WORDS:
        return Verdict(False, lines[-1].strip(), "whole response" if len(lines) == 1 else "last line")
    return UNREAD


def _side_anywhere(lines: list[str], pair: tuple[str, str], gold: str) -> Verdict:
    pattern = _pair_pattern(pair)
    first = pattern.compiled.match(normal(lines[0]))
    if first is not None:
        return Verdict(normal(first.group()) == gold, first.group(), "first word")
    sentence = re.split(r"(?<=[.!?])\s+", lines[-1].strip())[-1]
    sides = {match.group().casefold() for match in pattern.compiled.finditer(sentence)}
    if len(sides) != 1:
        return UNREAD
    return Verdict(sides == {gold}, sides.pop(), "last sentence")


def _pair_pattern(pair: tuple[str, ...]) -> Pattern:
    return Pattern(rf"(?<!\w)(?:{'|'.join(pair)})(?!\w)")
