r"""The checker `choice`: the letter of an option, or the option's own text.

1. In the last announcement, the answer is a letter that stands for itself: "(B)", "B.", "**B**", "option B",
   `\boxed{B}`, `\text{(B)}`, or a capital letter alone; a small letter only in parentheses or as all that is said. "A"
   before a word in lower case is an article, and "I" in a sentence a pronoun.
2. Otherwise it is the option whose text is said: as a whole, or the only one that is in it.
3. Without an announcement: a response or last line that is a letter or an option; a first line that begins with
   "B." or "(B)"; the last "option B" or "(B) is correct" of the last paragraph; the only option in the last sentence.
4. Two different letters, as in "A or B", are no right answer.
"""

from __future__ import annotations

import re
import string
from collections.abc import Sequence

from chainwright._registry import register
from chainwright.checkers.answers import settled
from chainwright.checkers.base import PENDING, UNREAD, Checker, Verdict
from chainwright.checkers.patterns import Pattern
from chainwright.checkers.places import announcements, spoken_text
from chainwright.checkers.values import plain, readings
from chainwright.checkers.wording import contains, normal, shortened

LETTERS = string.ascii_uppercase


@register("checker", "choice")
class ChoiceChecker(Checker):
    """Compares the letter of the chosen option."""

    needs = "the letter of an option"

    def judge(self, response_text: str, answer: str, *, choices: Sequence[str] = (), is_cut: bool = False) -> Verdict:
        """Return whether the option that the response chooses is the right one."""
        text, gold = plain(spoken_text(response_text, is_cut=is_cut)), as_letter(answer)
        options = _Options(choices)
        for i, place in enumerate(announcements(text)):
            said = text[place.start : place.end]
            if verdict := options.chosen(text, place.start, place.end, gold, place.rule):
                return verdict
            if i == 0 and not re.search(r"\w", text[place.start :]):
                return PENDING
            if re.search(r"\w", said):
                break
        return UNREAD if is_cut else options.unannounced(text, gold)

    def check_gold(self, answer: str, choices: Sequence[str] = ()) -> str | None:
        """Return why a right answer is not the letter of an option."""
        letter = as_letter(answer)
        last = LETTERS[len(choices) - 1] if choices else "Z"
        if len(letter) != 1 or not "A" <= letter <= last:
            return f"is not the letter of an option (A-{last})"
        return None


def as_letter(answer: str) -> str:
    """Return "B" for "(b)", "B." and "B)"."""
    return normal(answer).strip("().: ").upper()


class _Options:
    """The options of one question, and the ways to name one of them."""

    def __init__(self, choices: Sequence[str]):
        self.texts = {LETTERS[i]: normal(text) for i, text in enumerate(choices[: len(LETTERS)])}
        last = LETTERS[len(choices) - 1] if 0 < len(choices) <= len(LETTERS) else "Z"
        upper = f"[A-{last}]"
        either = f"[A-{last}a-{last.lower()}]"
        set_apart = rf"[(\[]\s*{either}\s*[)\]]"
        named = rf"\b(?i:option|choice|answer)\s+[(\[*]*{either}\b(?!\s+[a-z])"
        alone = rf"(?<![\w'\u2019]){upper}(?![\w'\u2019+^=])(?!\s+[a-z])"
        follows = r"(?=\s+(?:is|because|since|as|and|or|but|which|with|due|was|for)\b)"
        before_word = rf"(?<![\w'\u2019])(?![AI]){upper}{follows}"
        a_or_i = r"(?<![\w'\u2019])[AI](?=\s+(?:is|because|since|or|and|due)\b)"
        parts = [set_apart, named, alone, before_word, a_or_i]
        self.letters = Pattern(f"(?-i:{'|'.join(parts)})", "letters")

    def chosen(self, text: str, start: int, end: int, gold: str, rule: str) -> Verdict | None:
        """Return the verdict on what is said between two places; None if it is no option."""
        said = text[start:end]
        if letter := self._whole(said):
            return Verdict(letter == gold, letter, rule)
        match = self.letters.compiled.search(text, start, end)
        if match is not None:
            got = settled(text[:end] if _is_mere_comment(text[end:]) else text, match, self.letters)
            if got is None:
                return Verdict(None, None, "the answer is taken back")
            several = self._several(text, match, end)
            if len(several) > 1 and got == match.group():
                return Verdict(False, " and ".join(several), rule)
            return Verdict(_letter(got) == gold, _letter(got), rule)
        letter = self._by_text(said)
        return (
            None
            if letter is None
            else Verdict(letter == gold, f"{letter} ({shortened(said, 60)})", f"{rule}, by its text")
        )

    def unannounced(self, text: str, gold: str) -> Verdict:
        """Return the verdict on a response that announces no answer."""
        lines = [line for line in text.splitlines() if re.search(r"\w", line)]
        if not lines:
            return UNREAD
        for said, rule in ((text, "whole response"), (lines[-1], "last line")):
            if letter := self._whole(said):
                return Verdict(letter == gold, letter, rule)
        if first := re.match(r"\s*[*_]*(?:\(([A-Z])\)|([A-Z])[.):])(?=\s|$|[*_])", lines[0]):
            letter = first[1] or first[2]
            is_list = re.search(
                rf"^\s*[*_]*\(?{LETTERS[LETTERS.index(letter) + 1 :][:1] or '-'}[.):]", text, re.MULTILINE
            )
            if letter in (self.texts or LETTERS) and not is_list:
                return Verdict(letter == gold, letter, "first word")
        paragraph = text.rstrip().rpartition("\n\n")[2]
        named = re.findall(
            r"\b(?i:option|choice)\s+[(\[*]*([A-Z])\b(?!\s+(?:is|was)\s+(?:not|wrong|incorrect|false))"
            r"|[(\[]([A-Z])[)\]][*_]*\s+(?:is|as|must be|would be)\s+(?:the\s+)?(?:correct|right|true|best|answer)",
            paragraph,
        )
        if named:
            letter = named[-1][0] or named[-1][1]
            return Verdict(letter == gold, letter, "last option named")
        sentence = re.split(r"(?<=[.!?])\s+", paragraph.strip())[-1]
        by_text = self._by_text(sentence)
        if by_text is not None:
            return Verdict(by_text == gold, f"{by_text} ({shortened(sentence, 60)})", "option in the last sentence")
        return UNREAD

    def _whole(self, said: str) -> str | None:
        """Return the letter of what is a letter, a letter with its option's text, or an option's text, and no more."""
        whole = normal(said)
        if match := re.fullmatch(r"(?:option |choice )?[(\[]?([a-z])[)\].:]*", whole):
            letter = match[1].upper()
            return letter if letter in (self.texts or LETTERS) else None
        for letter, option in self.texts.items():
            if option and whole in (
                f"{letter.lower()}{gap}{option}" for gap in (") ", ". ", ": ", " ", " - ", ")", ".")
            ):
                return letter
            if option and whole == f"({letter.lower()}) {option}":
                return letter
        return next((letter for letter, option in self.texts.items() if option and _is_same(whole, option)), None)

    def _by_text(self, said: str) -> str | None:
        """Return the letter of the only option that is in what is said; the longer where one is part of another."""
        said = normal(said)
        there = [(letter, text) for letter, text in self.texts.items() if text and contains(said, text)]
        longest = [a for a in there if not any(a is not b and a[1] != b[1] and a[1] in b[1] for b in there)]
        return longest[0][0] if len(longest) == 1 else None

    def _several(self, text: str, match: re.Match[str], end: int) -> list[str]:
        """Return a letter with those that "and", "or" or a comma join to it."""
        letters = [_letter(match.group())]
        at = match.end()
        joint = re.compile(r"[)\]*.\s]*(?:,|and|or|&|/)\s*(?:and\s+|or\s+)?[(\[*]*([A-Z])\b(?!\s+(?!is\b|are\b)[a-z])")
        while following := joint.match(text, at, end):
            letters.append(following[1])
            at = following.end()
        return letters


def _letter(text: str) -> str:
    """Return the letter of "(b)" or "option B"."""
    return str(re.findall(r"[A-Za-z]", text)[-1]).upper()


def _is_same(got: str, option: str) -> bool:
    if got == option:
        return True
    is_number = re.compile(r"[-+$]?[0-9.][0-9.,/ ]*%?")
    return bool(is_number.fullmatch(got) and is_number.fullmatch(option) and readings(got) & readings(option))


def _is_mere_comment(rest: str) -> bool:
    """Return whether what follows an answer has no letter of an option, so that it cannot replace the answer."""
    return re.search(r"(?<!\w)[(\[]?[A-Z][)\]]?(?!\w)", rest) is None
