"""What of an answer may be sent while it is written, and thinking apart from what follows it.

Nothing is sent that may still change: the beginning of a stop string, of a marker of thinking, or of a character.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from chainwright.integrations.server.choice import Choice, Failure, Finish, Written
from chainwright.markers.borders import marked_borders, prompt_family
from chainwright.markers.known import events
from chainwright.markers.scan import Core, Scan, scan
from chainwright.prompts.templates import thinks
from chainwright.traces.offsets import decode_with_markers


class Snapshot(NamedTuple):
    """An answer at one moment.

    Attributes:
        text: The text that will not change any more.
        written: The tokens; there may be more of them by now.
        n_written: How many there were.
        finish: Why it ended, None while it has not.
        failure: What went wrong, if something did.
    """

    text: str
    written: Sequence[Written]
    n_written: int
    finish: Finish | None
    failure: Failure | None


def snapshot(choice: Choice) -> Snapshot:
    """Return an answer as it is now; called in the thread that writes it."""
    return Snapshot(_sure_text(choice), choice.written, len(choice.written), choice.finish, choice.failure)


def _sure_text(choice: Choice) -> str:
    if choice.finish is not None:
        return choice.text[choice.begin : choice.stop[0] if choice.stop else None]
    text = choice.text[choice.begin : choice.n_whole]
    return text[: len(text) - _n_begun(text, choice.stops)]


def _n_begun(text: str, stops: Sequence[str]) -> int:
    """Return how many characters at the end of a text may be the beginning of a stop string."""
    longest = max((len(stop) for stop in stops), default=1)
    starts = range(min(longest - 1, len(text)), 0, -1)
    return next((n for n in starts if any(stop.startswith(text[-n:]) for stop in stops)), 0)


class Parts(NamedTuple):
    """The thinking of an answer, and what follows it."""

    reasoning: str
    content: str


class Splitter:
    """Splits an answer that grows: where its prompt opens the thinking, or it begins with a marker that does.

    Attributes:
        splits: Whether anything is split: the model thinks, or the prompt opens the thinking.

    Args:
        tokenizer: The model's tokenizer.
        prompt: The tokens of the question, which may leave the thinking open.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, prompt: Sequence[int]):
        family = prompt_family(decode_with_markers(tokenizer, prompt), "auto")
        self.splits = family is not None or thinks(tokenizer)
        self._is_open = family is not None
        self._state = Scan(core=Core(family=family, depth=int(family is not None)))

    def parts(self, text: str, *, is_over: bool) -> Parts:
        """Return thinking and content of a text; unless it is over, without what a marker may still change."""
        if not self.splits:
            return Parts("", text)
        how = events("auto")
        self._state = scan(how, self._state, text, len(text))
        end = len(text) if is_over else self._state.pos
        core = scan(how, self._state, text, end, final=True).core
        # a stray marker further on would turn into thinking what was sent as the answer
        if not self._is_open and core.begin == 0:
            return Parts("", text[:end])
        begin, close, border = marked_borders(core, text[:end])
        return Parts(text[begin:close].strip(), text[border:end].lstrip())
