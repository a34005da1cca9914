"""A function of the user's own as a checker: what it may return, and what is said where it fails or hangs."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Sequence
from typing import Any

from chainwright._errors import BadInput
from chainwright.checkers.base import Checker, Verdict
from chainwright.markers.borders import said_aloud

SECONDS = 60.0
"""How long a function may take for one response."""


class FunctionChecker(Checker):
    """Calls `function(response, answer)`, with `choices=` and `is_cut=` if it takes them.

    The function sees the response without its thinking. It returns True, False, None (no answer could be read) or a
    `Verdict`. It runs in a thread, so that a function that hangs is noticed.
    """

    def __init__(self, name: str, function: Callable[..., Any], seconds: float = SECONDS):
        self.name, self.function, self.seconds = name, function, seconds
        self.takes = _parameters(name, function)
        self._in_thread = True

    def judge(self, response_text: str, answer: str, *, choices: Sequence[str] = (), is_cut: bool = False) -> Verdict:
        """Return what the function says.

        Raises:
            BadInput: It raises an error, returns something else, or takes more than its time.
        """
        spoken = response_text[slice(*said_aloud(response_text))]
        extra = {"choices": tuple(choices), "is_cut": is_cut}
        got = self._call(str(spoken), answer, **{name: extra[name] for name in self.takes})
        if isinstance(got, Verdict):
            return got
        if got is None or isinstance(got, bool) or type(got).__name__ in ("bool_", "bool"):
            return Verdict(None if got is None else bool(got), None, f"function {self.name}")
        raise BadInput(
            f"The checker {self.name} returned {_short(got)} for the answer {answer!r}; it must return True, False, "
            "None (no answer could be read) or a Verdict."
        )

    def _call(self, *passed: Any, **named: Any) -> Any:
        """Return the function's value; errors are raised in one sentence."""
        outcome: list[Any] = []

        def run() -> None:
            try:
                outcome.extend((self.function(*passed, **named), None))
            except BaseException as error:
                outcome.extend((None, error))

        if self._in_thread:
            thread = threading.Thread(target=run, daemon=True, name=f"checker {self.name}")
            thread.start()
            thread.join(self.seconds)
            if not outcome:
                raise BadInput(
                    f"The checker {self.name} has not returned within {self.seconds:g} s for the answer {passed[1]!r}; "
                    "it hangs, or is too slow for one response."
                )
            if isinstance(outcome[1], ValueError) and "signal only works in main thread" in str(outcome[1]):
                self._in_thread = False  # it guards itself, by an alarm that only the main thread may set
        if not self._in_thread:
            outcome.clear()
            run()
        value, error = outcome
        if isinstance(error, (KeyboardInterrupt, SystemExit, BadInput)):
            raise error
        if error is not None:
            raise BadInput(
                f"The checker {self.name} failed for the answer {passed[1]!r}: {type(error).__name__}: {error}."
            ) from error
        return value


def _parameters(name: str, function: Callable[..., Any]) -> tuple[str, ...]:
    """Return which of the optional arguments a function takes."""
    try:
        signature = inspect.signature(function)
        signature.bind("", "")
    except TypeError as error:
        raise BadInput(
            f"The checker {name} must be a function of (response, answer), which may also take choices and is_cut by "
            f"name: {error}."
        ) from error
    except ValueError:  # a function in C has no signature
        return ()
    kinds = signature.parameters.values()
    if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in kinds):
        return ("choices", "is_cut")
    return tuple(key for key in ("choices", "is_cut") if key in signature.parameters)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
