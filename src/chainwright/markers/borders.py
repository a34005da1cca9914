"""Where thinking and summary begin, by the markers that count, and which part of a response is judged."""

from __future__ import annotations

import re
from typing import NamedTuple

from chainwright.markers.known import STRIPPED, ThinkMarkers, events
from chainwright.markers.scan import WRITTEN, Core, Scan, announces_answer, scan

# after one of these in a prompt, an earlier marker belongs to an earlier turn
_TURN = re.compile(r"<[|\uff5c][^<>\n]{1,40}[|\uff5c]>|</s>|\[/INST\]")


class Borders(NamedTuple):
    """The start of the thinking, of its closing marker, and of the summary."""

    begin: int
    close: int
    border: int


class Spoken(str):
    """A text that is known to have no thinking, so that no marker counts in it."""

    __slots__ = ()


class Aloud(NamedTuple):
    """The part of a response that is not thinking: its first character, and one past its last."""

    start: int
    end: int


def said_aloud(text: str, style: str = "auto", own: ThinkMarkers | None = None, family: str | None = None) -> Aloud:
    """Return the part of a response that is judged.

    That is what follows the thinking. Thinking that is opened again and cut leaves what was said before it; thinking
    that was never closed leaves nothing.

    Args:
        text: The response.
        style: "auto", "think", "harmony" or "plain".
        own: The one pair of the style "think"; None takes all `PAIRS`.
        family: The pair that the prompt left open, as `prompt_family` names it.
    """
    if style == "plain" or isinstance(text, Spoken):
        return Aloud(0, len(text))
    first = Scan(core=Core(family=family, depth=int(family is not None)))
    core = scan(events(style, own), first, text, len(text), final=True).core
    if core.depth:
        return Aloud(core.border, core.cut) if core.border >= 0 else Aloud(len(text), len(text))
    border = marked_borders(core, text).border
    trailing = core.again is not None and core.again[0] >= border
    return Aloud(border, core.again[0] if trailing and core.again else len(text))


def marked_borders(core: Core, text: str) -> Borders:
    """Return the borders of a text whose markers were counted; without any, all of it is summary."""
    if core.depth > 0:
        return Borders(core.begin, len(text), len(text))
    if core.border < 0:
        return Borders(core.begin, core.begin, core.begin)
    if core.again is not None and WRITTEN.search(text, core.again[1]):
        return Borders(core.begin, *core.again)
    return Borders(core.begin, core.close, core.border)


def plain_borders(state: Scan, text: str, *, complete: bool) -> Borders:
    """Return the borders of a text without markers; its summary is the last line that announces an answer."""
    if announces_answer(text, state.line, len(text)):
        answer = state.line
    elif state.answer >= 0:
        answer = state.answer
    elif complete:
        answer = state.line if WRITTEN.search(text, state.line) else state.last
    else:
        answer = len(text)
    return Borders(0, answer, answer)


def prompt_family(question: str, style: str, own: ThinkMarkers | None = None) -> str | None:
    """Return the pair of markers that a question leaves open, as some chat templates do; None if it leaves none."""
    if style == "plain":
        return None
    core = scan(events(style, own), Scan(), question, len(question), final=True).core
    if core.depth == 0 or core.family == STRIPPED or _TURN.search(question, core.opened):
        return None
    return core.family
