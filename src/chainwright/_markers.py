r"""The markers around thinking: which are known, and which of those in a text count.

1. Find everything that may matter: markers, line ends, backticks and fences.
2. The first marker that counts decides on the pair of markers; those of other pairs are ordinary text from there on.
3. A quoted marker does not count: between quotation marks or brackets, in inline code that closes on its line, in a
   fenced block of code that closes. Nor does an opening one that is a word of a sentence ("I use <think> tags").
4. Pairs nest: thinking ends where as many markers have closed it as opened it. What follows is the summary, unless
   thinking is opened again or closed again; a closing marker after which nothing is written does not count.

A scan is resumable: its state is a value, so that a text which is being written is read on and taken back in steps, and
read in pieces gives what it gives when read at once.

Source: the chat templates and model cards of the families in `PAIRS`; OpenAI's description of the Harmony format.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

from chainwright._errors import BadInput

LINE_END = r"(?:\r\n|[\n\r\v\f\x85\u2028\u2029])"
_LONGEST = 700  # characters of the longest header; what lies further back cannot be the start of one
_SHORT = 24  # the same for those whose first character is common
_MOST = 200  # characters of a marker that a user gives


@dataclass(frozen=True)
class ThinkMarkers:
    """A pair of markers around thinking, read literally.

    Attributes:
        open: What opens the thinking, such as "<think>".
        close: What closes it, such as "</think>".

    Raises:
        BadInput: One of them is blank, has a line end, a backtick or more than 200 characters, or both are the same.
    """

    open: str
    close: str

    def __post_init__(self) -> None:
        """Check both texts."""
        for text in (self.open, self.close):
            if not isinstance(text, str) or not text.strip() or len(text) > _MOST or text.splitlines() != [text]:
                raise BadInput(
                    f"A marker of thinking is a text of 1 to {_MOST} characters on one line, got {text!r}; give a pair "
                    "such as '<think>' and '</think>'."
                )
            if "`" in text or "~~~" in text:
                raise BadInput(
                    f"A marker with marks of code looks like quoted code, in which no marker counts, got {text!r}."
                )
        if self.open == self.close:
            raise BadInput(f"The markers that open and close thinking must differ, got {self.open!r} twice.")


def as_markers(markers: ThinkMarkers | Sequence[str]) -> ThinkMarkers:
    """Return a pair of markers that was given as such or as two texts.

    Raises:
        BadInput: It is not a pair of texts.
    """
    if isinstance(markers, ThinkMarkers):
        return markers
    if isinstance(markers, str) or len(markers) != 2:
        raise BadInput(f"Markers of thinking are a pair (open, close), got {markers!r}; give ('<think>', '</think>').")
    return ThinkMarkers(*markers)


_TAGS = ("think", "thinking", "thought", "thoughts", "reasoning", "reflection", "seed:think")
PAIRS = (
    *(ThinkMarkers(f"<{tag}>", f"</{tag}>") for tag in _TAGS),
    ThinkMarkers("<|begin_of_thought|>", "<|end_of_thought|>"),
    ThinkMarkers("<|START_THINKING|>", "<|END_THINKING|>"),
    ThinkMarkers("\u25c1think\u25b7", "\u25c1/think\u25b7"),
    ThinkMarkers("[THINK]", "[/THINK]"),
)
"""The pairs of the style "think". Tags may have attributes (`<think signature="x">`) and be in capitals."""

_HARMONY_TOKENS = ("<|start|>", "<|end|>", "<|call|>", "<|channel|>", "<|constrain|>", "<|message|>")
MARKERS = (*(text for pair in PAIRS for text in (pair.open, pair.close)), *_HARMONY_TOKENS)
"""Texts that stay in a response where the tokenizer has them as special tokens."""

HARMONY, STRIPPED = "harmony", "harmony without its special tokens"

# no line end or code inside a marker: what is found first in a text that is being written must be found at once too
_INNER = r"[^<>`~\n\r\v\f\x85\u2028\u2029]"
_REST = _INNER + "{0,200}"
_CHANNEL = rf"<\|channel\|>[ \t]{{0,8}}(?P<channel>\w{{1,32}}){_REST}(?:<\|constrain\|>{_INNER}{{0,100}})?<\|message\|>"
_HEADER = (
    rf"(?:<\|start\|>(?P<role>{_REST}))?{_CHANNEL}"
    rf"|<\|start\|>(?P<other>(?!assistant)\w{_REST})<\|message\|>"
)
_END = re.compile(r"<\|(?:end|call)\|>\s{0,8}\Z")
_STRIPPED_OPEN = r"analysis(?=[^\W\da-z_]|[^\x00-\x7f])|assistant(?:analysis|commentary)(?=\S)"
_STRIPPED_CLOSE = r"assistantfinal(?=\S)"
_LINE_OR_CODE = rf"(?P<line>{LINE_END})|(?P<ticks>`+)|(?P<tildes>~{{3,}})"
# after one of these in a prompt, an earlier marker belongs to an earlier turn
_TURN = re.compile(r"<[|\uff5c][^<>\n]{1,40}[|\uff5c]>|</s>|\[/INST\]")
_LOOKALIKE = re.compile(
    r"(?:<[|/]{0,2}|\[/?|\u25c1/?)[\w:.-]{0,20}"
    r"(?:think|thought|reason|reflect|scratchpad|rationale|analysis|monologue)[\w:.-]{0,20}"
    r"(?:\s[^<>\n]{0,100})?(?:[|/]?>|\]|\u25b7)",
    re.IGNORECASE,
)
_QUOTES = dict(
    zip("\"'`(\u201c\u2018\u201e\u00ab\u300c\u300e", "\"'`)\u201d\u2019\u201c\u00bb\u300d\u300f", strict=True)
)


def _pattern(text: str, *, closes: bool) -> str:
    """Return the pattern of one marker; a tag may have attributes or spaces, and capitals."""
    tag = re.fullmatch(r"</?([\w:]+)>", text)
    if tag is None:
        return re.escape(text)
    return rf"(?i:</{tag[1]}[ \t]{{0,8}}>)" if closes else rf"(?i:<{tag[1]}(?:[ \t]{_REST})?>)"


class Events(NamedTuple):
    """What a scan looks for.

    Attributes:
        pattern: Matches line ends, backticks, tildes and markers; the name of the last group says which.
        starts: Matches the first character of anything longer than `_SHORT` characters.
        families: Name of the pair and whether it closes, by the name of the group.
    """

    pattern: re.Pattern[str]
    starts: re.Pattern[str]
    families: dict[str, tuple[str, bool]]


@cache
def events(style: str, own: ThinkMarkers | None = None) -> Events:
    """Return what to look for in a style ("auto", "think", "harmony" or "plain").

    Args:
        style: The style.
        own: The one pair of the style "think"; None takes all `PAIRS`.
    """
    parts: list[str] = [_LINE_OR_CODE]
    families: dict[str, tuple[str, bool]] = {}
    if style in ("auto", "think"):
        for i, pair in enumerate((own,) if own else PAIRS):
            opening = _pattern(pair.open, closes=False) if own is None else re.escape(pair.open)
            closing = _pattern(pair.close, closes=True) if own is None else re.escape(pair.close)
            parts += [rf"(?P<c{i}>{closing})", rf"(?P<o{i}>{opening})"]
            families |= {f"o{i}": (pair.open, False), f"c{i}": (pair.open, True)}
    if style in ("auto", "harmony"):
        parts += [f"(?P<header>{_HEADER})", f"(?P<so>{_STRIPPED_OPEN})", f"(?P<sc>{_STRIPPED_CLOSE})"]
        families |= {"header": (HARMONY, False), "so": (STRIPPED, False), "sc": (STRIPPED, True)}
    first = "".join(re.escape(text[0]) for text in {*"<[\u25c1", *((own.open[0], own.close[0]) if own else ())})
    # most characters begin nothing, which is quick to see
    begins = rf"(?=[{first}\s`~aA\x85\u2028\u2029])"
    pattern = re.compile(f"{begins}(?:{'|'.join(parts)})")
    return Events(pattern, re.compile(f"[{first}]"), families)


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
    last = state.line if _SAID.search(text, state.line, end) else state.last
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


class Borders(NamedTuple):
    """The start of the thinking, of its closing marker, and of the summary."""

    begin: int
    close: int
    border: int


_SAID = re.compile(r"\S")


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
    if core.again is not None and _SAID.search(text, core.again[1]):
        return Borders(core.begin, *core.again)
    return Borders(core.begin, core.close, core.border)


def plain_borders(state: Scan, text: str, *, complete: bool) -> Borders:
    """Return the borders of a text without markers; its summary is the last line that announces an answer."""
    if announces_answer(text, state.line, len(text)):
        answer = state.line
    elif state.answer >= 0:
        answer = state.answer
    elif complete:
        answer = state.line if _SAID.search(text, state.line) else state.last
    else:
        answer = len(text)
    return Borders(0, answer, answer)


ANNOUNCEMENT = 80  # characters at the start of a line in which it announces an answer
_ANSWER = re.compile(r"\\boxed|(?:the )?(?:final )?answer\b|therefore\b", re.IGNORECASE)
_BEFORE_ANSWERS = " \t>*_$#-"


def announces_answer(text: str, start: int, end: int) -> bool:
    """Return whether the line `text[start:end]` announces the answer, such as `Answer: 4` or `#### 4`."""
    line = text[start : min(end, start + ANNOUNCEMENT)]
    return line.lstrip().startswith("####") or _ANSWER.match(line.lstrip(_BEFORE_ANSWERS)) is not None


def prompt_family(question: str, style: str, own: ThinkMarkers | None = None) -> str | None:
    """Return the pair of markers that a question leaves open, as some chat templates do; None if it leaves none."""
    if style == "plain":
        return None
    core = scan(events(style, own), Scan(), question, len(question), final=True).core
    if core.depth == 0 or core.family == STRIPPED or _TURN.search(question, core.opened):
        return None
    return core.family


def lookalikes(text: str) -> Iterator[str]:
    """Yield tags that look like markers of thinking and are of no known pair."""
    known = events("think").pattern
    for match in _LOOKALIKE.finditer(text):
        if not known.match(match[0]):
            yield match[0]
