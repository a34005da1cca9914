"""What is asked, in tokens: problems of the tasks at their usual hop counts, counted from their text alone.

No tokenizer is read: a token of English with numbers has about 3.5 characters, and a word of the short rendering is a
token.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import takewhile
from math import ceil
from statistics import fmean
from typing import NamedTuple

from chainwright import tasks
from chainwright.planning.parts import Texts

_CHARACTERS = 3.5
_N_LOOKED_AT = 4


class Workload(NamedTuple):
    """The problems of a plan.

    Attributes:
        texts: Those that are asked, one entry per task and hop count.
        fitting: Those that repairs are fitted on.
    """

    texts: tuple[Texts, ...]
    fitting: tuple[Texts, ...]

    @property
    def tasks(self) -> list[str]:
        """Return the tasks that are asked."""
        return list(dict.fromkeys(cell.task for cell in self.texts))

    def summary(self) -> str:
        """Return in a sentence what is asked."""
        n = sum(cell.n for cell in self.texts)
        prompt = sum(cell.n * cell.prompt for cell in self.texts) / n
        answer = sum(cell.n * cell.answer for cell in self.texts) / n
        return (
            f"{n:,} problems of {len(self.tasks)} tasks, prompts of about {prompt:.0f} tokens and answers of "
            f"{answer:.0f}"
        )


def texts_of(
    cells: Mapping[str, Sequence[int]], n: int, rendering: tasks.Rendering, answer: int | None = None
) -> tuple[Texts, ...]:
    """Return the problems of some cells.

    Args:
        cells: Hop counts by task.
        n: Problems per task and hop count.
        rendering: Their wording.
        answer: Tokens of an answer; None takes those of the gold chain.

    Raises:
        BadInput: A task cannot have that many hops.
    """
    return tuple(_texts(task, h, n, rendering, answer) for task, hops in cells.items() for h in hops)


def _texts(task: str, hops: int, n: int, rendering: tasks.Rendering, answer: int | None) -> Texts:
    some = tasks.sample(task, hops, _N_LOOKED_AT, 0, rendering=rendering)
    chain = max(n_tokens(problem.chain, rendering) for problem in some)
    return Texts(
        task=task,
        n=n,
        prompt=round(fmean(n_tokens(problem.prompt, rendering) for problem in some)),
        answer=answer or chain,
        limit=answer or ceil(1.5 * chain) + 16,
        shared=n_tokens(_common_start([problem.prompt for problem in some]), rendering),
    )


def _common_start(texts: Sequence[str]) -> str:
    """Return what all texts begin with."""
    same = takewhile(lambda letters: len(set(letters)) == 1, zip(*texts, strict=False))
    return "".join(letters[0] for letters in same)


def n_tokens(text: str, rendering: tasks.Rendering) -> int:
    """Return about how many tokens a text has."""
    return len(text.split()) if rendering == "short" else ceil(len(text) / _CHARACTERS)
