"""What a checker is: it reads the final answer of a response and compares it with the right one.

A verdict has three values. An answer that cannot be read is not a wrong one: it says something about the layout of the
response or about the checker, so it is counted apart. A right answer that the checker cannot read is a fault of the
data, which `check_gold` names before any model is asked.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

__all__ = ["PENDING", "UNREAD", "Checker", "Verdict"]


@dataclass(frozen=True)
class Verdict:
    """What a checker says of a response.

    Attributes:
        is_right: Whether the final answer is right; None if no answer could be read.
        extracted: The answer as the response writes it, shortened if it is long; None if there is none.
        rule: How it was found, such as "after ####", "the answer is", "last boxed" or "last number"; for an answer that
            could not be read, what was tried.
    """

    is_right: bool | None
    extracted: str | None
    rule: str


UNREAD = Verdict(None, None, "no answer is announced")
"""The verdict on a response that gives no answer."""

PENDING = Verdict(None, None, "an answer is announced and not given")
"""The verdict on a response that ends where its answer should be."""


class Checker(ABC):
    """A way of judging final answers, registered as `@register("checker", "name")` above the class.

    An instance is made without arguments, once per process.

    Attributes:
        needs: What a right answer must be for this checker, for messages: "a number".
    """

    needs: ClassVar[str] = "an answer"

    @abstractmethod
    def judge(self, response_text: str, answer: str, *, choices: Sequence[str] = (), is_cut: bool = False) -> Verdict:
        """Return the verdict on a response.

        Args:
            response_text: The response. Thinking in it is not judged.
            answer: The right answer; for choices, the letter of the right one.
            choices: The options in the order of their letters, without them.
            is_cut: Whether the token limit ended the response: then only an answer that is announced and complete
                counts.
        """

    def check_gold(self, answer: str, choices: Sequence[str] = ()) -> str | None:
        """Return why a right answer cannot be judged by this checker, such as "is not a number"; None if it can."""
        return None if answer.strip() else "is empty"
