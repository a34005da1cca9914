"""The markers that are known, and the patterns that find them: the ten pairs, Harmony's, a pair of a user's own."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

from chainwright._errors import BadInput

LINE_END = r"(?:\r\n|[\n\r\v\f\x85\u2028\u2029])"
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
# no line end, code or beginning of another marker inside a marker: what is found first in a text that is being written
# must be found at once too
_INNER = r"[^<>\[\u25c1`~\n\r\v\f\x85\u2028\u2029]"
_REST = _INNER + "{0,200}"
_CHANNEL = rf"<\|channel\|>[ \t]{{0,8}}(?P<channel>\w{{1,32}}){_REST}(?:<\|constrain\|>{_INNER}{{0,100}})?<\|message\|>"
_HEADER = (
    rf"(?:<\|start\|>(?P<role>{_REST}))?{_CHANNEL}"
    rf"|<\|start\|>(?P<other>(?!assistant)\w{_REST})<\|message\|>"
)
_STRIPPED_OPEN = r"analysis(?=[^\W\da-z_]|[^\x00-\x7f])|assistant(?:analysis|commentary)(?=\S)"
_STRIPPED_CLOSE = r"assistantfinal(?=\S)"
_LINE_OR_CODE = rf"(?P<line>{LINE_END})|(?P<ticks>`+)|(?P<tildes>~{{3,}})"
_LOOKALIKE = re.compile(
    r"(?:<[|/]{0,2}|\[/?|\u25c1/?)[\w:.-]{0,20}"
    r"(?:think|thought|reason|reflect|scratchpad|rationale|analysis|monologue)[\w:.-]{0,20}"
    r"(?:\s[^<>\n]{0,100})?(?:[|/]?>|\]|\u25b7)",
    re.IGNORECASE,
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


def lookalikes(text: str) -> Iterator[str]:
    """Yield tags that look like markers of thinking and are of no known pair."""
    known = events("think").pattern
    for match in _LOOKALIKE.finditer(text):
        if not known.match(match[0]):
            yield match[0]
