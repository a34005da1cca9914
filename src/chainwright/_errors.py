"""The errors that a user of Chainwright can meet.

Every message says what was asked, what was got, what is allowed and what to do next, in one sentence or two.
The command line prints the message alone and leaves with exit code 2 for each `ChainwrightError`.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class ChainwrightError(Exception):
    """Root of the errors below: a mistake in what was asked for, not in the program."""


class BadInput(ChainwrightError, ValueError):
    """An argument, a name or a file that cannot be used as it is."""


class TooLong(BadInput):
    """A prompt that has more tokens than the model has positions."""


class UnsupportedModel(ChainwrightError):
    """The model cannot be read or edited through the seam, and says so instead of doing nothing."""


class EditNeverFired(ChainwrightError):
    """An edit was attached, the context was left, and no (layer, head, position) site had been touched."""


class ChainwrightWarning(UserWarning):
    """Root of the warnings: what was asked is done, but may not be what was meant."""


class OtherRendering(ChainwrightWarning):
    """Problems are asked in a rendering that the model's tokenizer is not made for."""


class UnreadFields(ChainwrightWarning):
    """A file of traces has fields that are not read."""


class TraceNotes(ChainwrightWarning):
    """Something was noticed while files of traces were read: skipped records, contradicting judgements, ..."""


class ProblemSetWarning(ChainwrightWarning):
    """A problem set has records that were left out, the same question or id twice, or fewer problems than wanted."""


class UnknownMarkers(ChainwrightWarning):
    """A response has a tag that looks like a marker of thinking and is none that is known."""


class OtherWeights(ChainwrightWarning):
    """A repair was made for a checkpoint of the same shape with other weights: it runs, and may do nonsense."""


class PartlyRead(ChainwrightWarning):
    """A GGUF file holds something that is not read, so the model may compute something else than it was made for."""


class SlowDtype(ChainwrightWarning):
    """A model was loaded in a number type that this processor has to emulate, several times slower than float32."""


class BadTrace(BadInput):
    """A trace whose tokens, spans or steps contradict each other, or a file of traces that cannot be read."""


def see(heading: str) -> str:
    """Return where more is said than fits into a sentence: a heading of the page on what is refused."""
    return f"(docs/refused.md#{heading})"


def unknown_name(kind: str, got: str, allowed: Iterable[str]) -> BadInput:
    """Return the error for a name that is not in a list, with the nearest known name in it.

    Args:
        kind: What the name was to name ("task", "model", ...).
        got: The name as it was given.
        allowed: Every name that would have been accepted.
    """
    names = list(allowed)
    near = difflib.get_close_matches(got.lower(), names, n=1, cutoff=0.5)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return BadInput(f"Unknown {kind} {got!r}; known: {', '.join(names)}.{hint}")
