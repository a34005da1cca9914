"""What an engine is asked and what it returns."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import NamedTuple

from chainwright.decode.sampling import Sampling


class Wanted(NamedTuple):
    """One response to write.

    Attributes:
        ids: The prompt, as the local model would be given it.
        limit: Most tokens of the response.
        seed: Decides what is drawn, together with the engine.
    """

    ids: list[int]
    limit: int
    seed: int


class Written(NamedTuple):
    """What an engine wrote.

    Attributes:
        ids: The tokens of the response, with the token that ended it where the engine reports that.
        logprobs: Log-probability of each of them; None where one is unknown.
        ended: Whether it came to its end, by an end token.
        is_text: Whether the engine returned text alone, of which the local tokenizer made these tokens.
    """

    ids: list[int]
    logprobs: list[float | None]
    ended: bool
    is_text: bool = False


class Engine(ABC):
    """Writes responses of a model from the tokens of prompts.

    Attributes:
        name: What it is called in messages and traces.
    """

    name: str

    @abstractmethod
    def write(self, wanted: Sequence[Wanted], sampling: Sampling, done: Callable[[int], None]) -> list[Written]:
        """Return a response to each prompt, in their order.

        Args:
            wanted: The prompts.
            sampling: How tokens are drawn; stop strings are looked for afterwards.
            done: Called with the number of responses that have come since the last call.

        Raises:
            BadInput: It cannot be reached, refuses something, or returns something else than was asked.
        """
