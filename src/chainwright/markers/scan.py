"""Scanning a text for the markers that count: a state that is read on and taken back as the text is written."""

from __future__ import annotations

import re
from typing import NamedTuple

from chainwright.markers.known import HARMONY, STRIPPED, Events

_LONGEST = 700  # characters of the longest header; what lies further back cannot be the start of one
_SHORT = 24  # the same for those whose first character is common
_END = re.compile(r"<\|(?:end|call)\|>\s{0,8}\Z")
_QUOTES = dict(
    zip("\"'`(\u201c\u2018\u201e\u00ab\u300c\u300e", "\"'`)\u201d\u2019\u201c\u00bb\u300d\u300f", strict=True)
)


class Core(NamedTuple):
    """Which markers counted so far; what a quotation that turns out to be one is put back to.

    Attributes:
        family: The pair of markers; None as long as none counted.
        depth: How many are open.
        begin: End of an opening marker at the start of the text.
        opened: End of the latest opening marker, -1 without one.
        close: Start of the marker that closed the thinking last, -1 without one.
        border: Its end.
        again: Start and end of a further closing marker, which counts if something is written after it.
        cut: Start of the marker that opened the thinking which is open.
    """

    family: str | None = None
    depth: int = 0
    begin: int = 0
    opened: int = -1
    close: int = -1
    border: int = -1
    again: tuple[int, int] | None = None
    cut: int = 0


class Code(NamedTuple):
    """Inline code, a fence or a quotation that may turn out to be one.

    Attributes:
        mark: Its backtick, tilde or closing quotation mark.
        n: How many of them.
        before: The markers that count if it is one.
        end: Position after the mark.
    """

    mark: str
    n: int
    before: Core
    end: int = 0


class Scan(NamedTuple):
    """The state of a scan.

    Attributes:
        pos: The text before it is done with.
        line: Start of the line.
        core: The markers that count.
        inline: Inline code that is open on this line.
        quote: A quotation that is open on this line.
        fence: The fenced block that is open.
        maybe: A fence on this line: it opens a block, or closes the one that is open.
        answer: Start of the last line that announces an answer, -1 without one.
        last: Start of the last line that is not blank, 0 without one.
    """

    pos: int = 0
    line: int = 0
    core: Core = Core()
    inline: Code | None = None
    quote: Code | None = None
    fence: Code | None = None
    maybe: Code | None = None
    answer: int = -1
    last: int = 0


def scan(how: Events, state: Scan, text: str, end: int, *, final: bool = False) -> Scan:
    """Return the state after `text[:end]`.

    Unless `final`, what may read differently with more text is left for the next call.
    """
    position = state.pos
    for match in how.pattern.finditer(text, position, end):
        if match.end() >= end and not final:
            return state._replace(pos=max(position, match.start()))
        position = match.end()
        kind = match.lastgroup or ""
        if kind == "line":
            state = _at_line_end(state, text, match.start(), position)
        elif kind in ("ticks", "tildes"):
            state = _at_code(state, text, match)
        else:
            state = _at_marker(state, how, text, match, end)
    if final and state.maybe and state.fence and not text[state.maybe.end : end].strip():
        state = state._replace(core=_without(state.core, state.maybe.before), fence=None, maybe=None)
    start = how.starts.search(text, max(position, end - _LONGEST), end)
    return state._replace(pos=start.start() if start else max(position, end - _SHORT))


def _at_line_end(state: Scan, text: str, end: int, following: int) -> Scan:
    """Settle what a line was: a fence, a line that announces an answer, a blank one."""
    core, fence, maybe = state.core, state.fence, state.maybe
    if maybe is not None and fence is None:
        fence = maybe
    elif maybe is not None and not text[maybe.end : end].strip():
        core, fence = _without(core, maybe.before), None
    answer = state.line if announces_answer(text, state.line, end) else state.answer
    last = state.line if WRITTEN.search(text, state.line, end) else state.last
    return Scan(following, following, core, None, None, fence, None, answer, last)


def _at_code(state: Scan, text: str, match: re.Match[str]) -> Scan:
    """Open or close inline code or a fence."""
    mark, n, core = match[0][0], len(match[0]), state.core
    # an indented fence has few spaces before it; a longer line start is not worth looking through
    starts_line = match.start() - state.line <= 40 and not text[state.line : match.start()].strip()
    if state.fence is not None:
        if starts_line and mark == state.fence.mark and n >= state.fence.n:
            return state._replace(maybe=Code(mark, n, state.fence.before, match.end()))
        return state
    if starts_line and n >= 3:
        return state._replace(maybe=Code(mark, n, core, match.end()))
    if mark == "~":
        return state
    if state.maybe is not None and state.maybe.mark == "`":
        # a fence has no more backticks on its line, so the first were inline code
        state = state._replace(inline=state.maybe, maybe=None)
    if state.inline is None:
        return state._replace(inline=Code(mark, n, core))
    if state.inline.n == n:
        return state._replace(core=_without(core, state.inline.before), inline=None)
    return state


def _without(core: Core, before: Core) -> Core:
    """Return the markers that count once a quotation has closed; no code reaches across Harmony's messages."""
    return core if core.family in (HARMONY, STRIPPED) else before


def _at_marker(state: Scan, how: Events, text: str, match: re.Match[str], end: int) -> Scan:
    """Count a marker, unless it is quoted, a word of a sentence, or of another pair."""
    family, closes = how.families[match.lastgroup or ""]
    core, start, stop = state.core, match.start(), match.end()
    if core.family not in (None, family):
        return state
    before, after = text[start - 1 : start], text[stop : min(stop + 1, end)]
    if before in _QUOTES and after == _QUOTES[before]:
        return state
    if family in (HARMONY, STRIPPED):
        if match[0] == "analysis" and (start > _SHORT or text[:start].strip()):
            return state  # a word
        if family == HARMONY:
            if match["channel"] is None:
                return state  # the message of a tool, which is neither thinking nor an answer
            closes = match["channel"] == "final" and (match["role"] or "assistant").strip().startswith("assistant")
        return state._replace(core=_message(core._replace(family=family), text, start, stop, closes=closes))
    if state.quote is not None and after == state.quote.mark:
        return state._replace(core=_without(core, state.quote.before), quote=None)
    if before in _QUOTES and state.quote is None:
        state = state._replace(quote=Code(_QUOTES[before], 1, core))
    if closes:
        return state._replace(core=_closed(core._replace(family=family), text, start, stop))
    if _is_word(text, state.line, start, after):
        return state
    return state._replace(core=_opened(core._replace(family=family), text, start, stop))


def _is_word(text: str, line: int, start: int, after: str) -> bool:
    """Return whether an opening marker is a word in the middle of a sentence."""
    if not after or not (after in " \t" or after in ",.;:!?)"):
        return False
    lead = text[max(line, start - 40) : start]
    words = lead.rstrip()
    return len(words) < len(lead) and (words[-1:].isalnum() or words[-1:] in tuple(",;-\u2013\u2014"))


def _message(core: Core, text: str, start: int, stop: int, *, closes: bool) -> Core:
    """Count a Harmony header: the first of the last final ones closes the thinking, any other opens it."""
    end = _END.search(text, max(0, start - 20), start)  # the end of the message before belongs to the marker
    start = end.start() if end else start
    is_first = core.opened < 0 and core.border < 0 and core.depth == 0
    at_start = is_first and not text[:start].strip()
    if not closes:
        cut = core.cut if core.depth else start
        return core._replace(depth=1, opened=stop, begin=stop if at_start else core.begin, cut=cut)
    if at_start:
        # a final header with no analysis before it belongs to the question: there is no thinking
        return core._replace(begin=stop, close=stop, border=stop)
    return core._replace(depth=0, close=start, border=stop) if core.depth or is_first else core


def _opened(core: Core, text: str, start: int, stop: int) -> Core:
    """Count an opening marker."""
    is_first = core.opened < 0 and core.border < 0
    if is_first and not text[:start].strip():
        return core._replace(depth=1, begin=stop, opened=stop)
    if core.depth and core.opened >= 0 and not text[core.opened : start].strip():
        return core._replace(opened=stop)  # opened twice in a row
    return core._replace(depth=core.depth + 1, opened=stop, cut=core.cut if core.depth else start)


def _closed(core: Core, text: str, start: int, stop: int) -> Core:
    """Count a closing marker."""
    if core.depth > 1:
        return core._replace(depth=core.depth - 1)
    if core.depth == 1 or core.border < 0:
        return core._replace(depth=0, close=start, border=stop, again=None)
    if core.again is not None and text[core.again[1] : start].strip():
        core = core._replace(close=core.again[0], border=core.again[1])
    return core._replace(again=(start, stop))


WRITTEN = re.compile(r"\S")
ANNOUNCEMENT = 80  # characters at the start of a line in which it announces an answer
_ANSWER = re.compile(r"\\boxed|(?:the )?(?:final )?answer\b|therefore\b", re.IGNORECASE)
_BEFORE_ANSWERS = " \t>*_$#-"


def announces_answer(text: str, start: int, end: int) -> bool:
    """Return whether the line `text[start:end]` announces the answer, such as `Answer: 4` or `#### 4`."""
    line = text[start : min(end, start + ANNOUNCEMENT)]
    return line.lstrip().startswith("####") or _ANSWER.match(line.lstrip(_BEFORE_ANSWERS)) is not None
