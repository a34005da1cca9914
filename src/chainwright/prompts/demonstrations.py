"""Which worked answers go before a question, and how they are written.

1. A problem of a task gets others of the same task, drawn from its generator.
2. A problem of a set, one made by hand or a string gets others with gold solutions: those of a file in its order, or
   those of the set in one order that the seed decides. So nearly all questions share theirs, however they are split.
3. Neither the question itself nor a duplicate of it is among them, and no two are alike.
4. A solution that does not end in a form that the checker reads gets a last line "The answer is X.".
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from random import Random
from typing import NamedTuple

from chainwright._errors import BadInput, OtherRendering
from chainwright.markers.borders import marked_borders
from chainwright.markers.known import events
from chainwright.markers.scan import Scan, scan
from chainwright.prompts.asking import Asking
from chainwright.tasks.base import Problem
from chainwright.tasks.demonstrations import draw_demonstrations
from chainwright.tasks.problem_sets.source import ProblemSource


class Demonstration(NamedTuple):
    """A question with its worked answer.

    Attributes:
        question: The question.
        answer: What follows the thinking.
        reasoning: The thinking, where the solution marks it between `<think>` and `</think>`; "" without.
    """

    question: str
    answer: str
    reasoning: str = ""

    @property
    def solution(self) -> str:
        """Return thinking and answer as one text."""
        return f"<think>\n{self.reasoning}\n</think>\n\n{self.answer}" if self.reasoning else self.answer

    @property
    def message(self) -> dict[str, str]:
        """Return the assistant's message of a conversation."""
        reasoning = {"reasoning_content": self.reasoning} if self.reasoning else {}
        return {"content": self.answer, **reasoning}


@dataclass(frozen=True)
class Shots:
    """Where demonstrations come from.

    Attributes:
        asking: How many, and from where.
        listed: Problems with solutions in the order in which they are taken; empty where only generators serve.
        place: What they are called in messages.
    """

    asking: Asking
    listed: tuple[Problem, ...] = ()
    place: str = "the problems that are asked"

    @classmethod
    def of(cls, asking: Asking, pool: Sequence[Problem | str]) -> Shots:
        """Return the source of demonstrations.

        Args:
            asking: How many, and from where.
            pool: Problems that they may be chosen from.

        Raises:
            BadInput: The file of demonstrations is missing or empty.
        """
        if asking.shots_from is not None:
            listed = _of_file(asking.shots_from, _time(asking.shots_from))
            if not listed:
                raise BadInput(f"There are no demonstrations in {asking.shots_from}; name a file that has some.")
            return cls(asking, listed, asking.shots_from)
        if not asking.n_shots:
            return cls(asking)
        of_sets = [p for p in pool if isinstance(p, Problem) and not p.lines and (p.chain or p.answer)]
        solved = [p for p in of_sets if p.chain]
        if of_sets and not solved:
            warnings.warn(
                "No problem that demonstrations are chosen from has a gold solution, so they show the answer alone and "
                "the model will answer at once; name worked answers with shots_from (--shots-from FILE).",
                OtherRendering,
                stacklevel=5,
            )
        chosen = solved or of_sets
        Random(asking.shots_seed).shuffle(chosen)
        return cls(asking, tuple(chosen))

    def before(self, problem: Problem | str) -> list[Problem]:
        """Return the worked problems that go before a question.

        Raises:
            BadInput: There are too few others.
        """
        n = self.asking.n_shots
        if isinstance(problem, Problem) and problem.lines and self.asking.shots_from is None:
            return draw_demonstrations(problem, n or 0, self.asking.shots_seed, self.asking.demo_hops)
        if n is None and self.asking.shots_from is None:
            return []
        chosen = list(self._others(problem, len(self.listed) if n is None else n))
        if n is not None and len(chosen) < n:
            raise BadInput(
                f"{n} demonstrations were asked for, but {self.place} have {len(chosen)} other questions with worked "
                "answers; lower --shots, or name more with --shots-from FILE."
            )
        return chosen

    def _others(self, problem: Problem | str, n: int) -> Iterator[Problem]:
        seen = {_key(problem)}
        for candidate in self.listed:
            if n > 0 and _key(candidate) not in seen:
                seen.add(_key(candidate))
                n -= 1
                yield candidate


@lru_cache(maxsize=4)
def _of_file(path: str, time: int) -> tuple[Problem, ...]:
    """Return the problems of a file; `time` is when it was written, since each part of a run asks for them."""
    return tuple(ProblemSource(source=path).load().problems)


def _time(path: str) -> int:
    return Path(path).stat().st_mtime_ns if Path(path).is_file() else 0


@lru_cache(maxsize=20_000)
def demonstration(problem: Problem) -> Demonstration:
    """Return a problem with its worked answer, which ends in a form that its checker reads."""
    solution = _solution(problem)
    core = scan(events("auto"), Scan(), solution, len(solution), final=True).core
    if core.family != "<think>" or core.border < 0:
        return Demonstration(problem.prompt, solution)
    borders = marked_borders(core, solution)
    reasoning, answer = solution[borders.begin : borders.close].strip(), solution[borders.border :].strip()
    return Demonstration(problem.prompt, answer, reasoning)


def _solution(problem: Problem) -> str:
    chain = problem.chain.strip()
    if problem.lines:
        return chain
    closing = f"The answer is {f'({problem.answer})' if problem.choices else problem.answer}."
    if not chain:
        return problem.answer.strip() if re.search(r"\s", problem.answer.strip()) else closing
    verdict = problem.judge(chain)
    is_guessed = verdict.rule.startswith(("last ", "first ")) and verdict.rule != "last boxed"
    return chain if verdict.is_right and not is_guessed else f"{chain}\n{closing}"


@lru_cache(maxsize=20_000)
def _key(problem: Problem | str) -> str:
    """Return what two spellings of one question share; options may come in another order."""
    if isinstance(problem, str):
        return _squeezed(problem)
    text = problem.prompt
    for choice in problem.choices:
        text = re.sub(rf"^\W*[A-Z]\W{{1,3}}{re.escape(choice)}\s*$", "", text, flags=re.MULTILINE)
    return _squeezed(text)


def _squeezed(text: str) -> str:
    return " ".join(text.casefold().split())
