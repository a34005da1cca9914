"""Which problem a response answers: the one of the same id, else the one whose question it was asked."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from chainwright import checkers
from chainwright.tasks.base import Problem
from chainwright.traces._entries import Entry, Label

_SPACE = re.compile(r"\s+")
_START = 32  # characters of a question by which it is looked up inside a longer prompt
_NUMBER = re.compile(r"[-+]?[$€£]?[\d,]*\.?\d+%?")
_ANNOUNCED = re.compile(r"^(?:(?:the )?(?:final )?answer(?: is)?|a)\s*:?\s+", re.IGNORECASE)
_LETTER = re.compile(r"\(?([A-Z])\)?")


class Match(NamedTuple):
    """A problem and its number in the set."""

    number: int
    problem: Problem


class ProblemIndex:
    """Problems by id and by the text of their question."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = problems
        self._by_id: dict[str, int | None] = {}
        self._by_text: dict[str, int] = {}
        self._by_start: dict[str, list[int]] = {}
        self._texts = [_plain(problem.prompt) for problem in problems]
        for i, problem in enumerate(problems):
            if (own := problem.labels.get("id")) is not None:
                # an id that two problems share names neither
                self._by_id[str(own)] = None if str(own) in self._by_id else i
            for text in {self._texts[i], _plain(str(problem.facts.get("question", "")))} - {""}:
                self._by_text.setdefault(text, i)
            self._by_start.setdefault(self._texts[i][:_START], []).append(i)
        self._lengths = sorted({len(start) for start in self._by_start}, reverse=True)

    def find(self, entry: Entry) -> Match | None:
        """Return the problem that an entry answers, None if it is not among them.

        Where the id names one problem and the text is that of another, the text decides.
        """
        by_text = next((i for text in _texts(entry) if (i := self._by_text.get(_plain(text))) is not None), None)
        by_id = None if entry.id is None else self._by_id.get(str(entry.id))
        if by_text is not None and (by_id is None or self._texts[by_id] != self._texts[by_text]):
            found: int | None = by_text
        elif by_id is not None:
            found = by_id
        else:
            found = next((i for text in _texts(entry) if (i := self._inside(_plain(text))) is not None), None)
        return None if found is None else Match(found, self.problems[found])

    def _inside(self, text: str) -> int | None:
        """Return the problem whose question comes last in a prompt, after demonstrations for example."""
        for at in range(len(text), -1, -1):
            for n in self._lengths:
                for i in self._by_start.get(text[at : at + n], ()) if n else ():
                    if text.startswith(self._texts[i], at):
                        return i
        return None


def _texts(entry: Entry) -> Iterator[str]:
    """Yield what an entry was asked, the barest form first."""
    if entry.question is not None:
        yield entry.question
    if entry.turns:
        yield from (turn["content"] for turn in reversed(entry.turns) if turn["role"] == "user")
    if entry.prompt is not None:
        yield entry.prompt


def _plain(text: str) -> str:
    return _SPACE.sub(" ", text).strip()


def problem_of(entry: Entry, name: str, checker: str | None) -> Problem | None:
    """Return the problem that the answer in a record makes; None if it has none.

    Args:
        entry: The record's question and answer.
        name: What the set of such problems is called.
        checker: Who judges; None goes by the answer: a letter is a choice, a number a number, and anything else is
            compared as the tasks do.
    """
    if entry.answer is None:
        return None
    answer = final_answer_of(entry.answer)
    chain = str(entry.answer) if answer != str(entry.answer).strip() else ""
    question = entry.question or next(_texts(entry), "")
    labels = {**({} if entry.id is None else {"id": entry.id}), **entry.labels}
    kind = _checker_of(answer) if checker is None else checkers.name_of(checker)
    return Problem(name, 0, question, chain, answer, (), rendering="natural", checker=kind, labels=labels)


def final_answer_of(answer: Label) -> str:
    """Return the final answer in what a record calls its answer, which may be a whole solution."""
    if not isinstance(answer, str):
        return f"{answer:g}" if isinstance(answer, float) else str(answer)
    if "####" in answer:
        return answer.rpartition("####")[2].strip()
    boxed = answer.rfind("\\boxed{")
    if boxed >= 0 and (inner := _braced(answer, boxed + len("\\boxed"))) is not None:
        return inner.strip()
    last = answer.strip().rpartition("\n")[2]
    return _ANNOUNCED.sub("", last).strip() if "\n" in answer.strip() else answer.strip()


def _braced(text: str, start: int) -> str | None:
    """Return what is inside the braces that open at `start`; None if they do not close."""
    depth = 0
    for at in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[at], 0)
        if depth == 0:
            return text[start + 1 : at]
    return None


def _checker_of(answer: str) -> str:
    return "choice" if _LETTER.fullmatch(answer) else "number" if _NUMBER.fullmatch(answer) else ""
