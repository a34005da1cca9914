r"""Where a response announces its final answer, for checkers of any form of answer.

1. Thinking is not judged, struck-out text does not count, and a base model that invents the next question after its
   answer is read up to there.
2. An answer is announced by a box (`\boxed{...}`), by "####", by words ("The answer is", "Answer:", "A:" as the last
   line, their translations). The last announcement counts.
3. An announcement reaches to the end of its box, or of the first line with something on it, and never into the next.
4. Where the token limit ended the response, the word that its end touches may lack its rest and is taken away, and only
   announced answers count.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from chainwright.checkers.answers import MARK, STRUCK_OUT, open_box, rule_of, without_last_word
from chainwright.markers.borders import said_aloud

_MORE_MARKS = (
    r"|^[ \t*_]*A:(?=[^\n]*\s*\Z)"
    r"|\b(?:antwort|r\u00e9ponse|respuesta|risposta|resposta|\u043e\u0442\u0432\u0435\u0442)\b[\s*_]*"
    r"(?:ist\b|est\b|es\b|\u00e8\b|\u00e9\b|[:=])"
    r"|(?:\u7b54\u6848|\u7b54\u3048|\uc815\ub2f5|\ub2f5)[*_]*[ \t]*(?:\u662f|\u4e3a|\u70ba|\u306f|\uc740|[:\uff1a])"
)
_MARKS = re.compile(MARK.pattern + _MORE_MARKS, re.IGNORECASE | re.MULTILINE)
_VERB = re.compile(r"[\s*_]*(?:(?:is|are|was|(?:should|would|must|will)\s+be)\b|[:=\uff1a])[\s*_:]*", re.IGNORECASE)
_NEXT_QUESTION = re.compile(
    r"^[ \t]*(?:#{1,6}[ \t]+|\*\*)?(?:question|problem|q|human|user|exercise|instruction)(?:[ \t]+\d+)?[ \t]*[:.]"
    r"|^[ \t]*<\|?(?:im_start|user|endoftext)",
    re.IGNORECASE | re.MULTILINE,
)
_WRITTEN = re.compile(r"[^\W_]|\\[a-zA-Z]")
_MOST_PLACES = 50
_BOXED = re.compile(r"\\f?boxed\s*\{|\\fbox\s*\{")
_SHORT_BOX = re.compile(r"\\boxed\s+([^\s${}\\]+|\\[a-zA-Z]+)")


class Place(NamedTuple):
    """An announcement: what is announced lies in `text[start:end]`.

    Attributes:
        start: First character after the announcement.
        end: End of the box, or of the line.
        rule: How it is announced.
    """

    start: int
    end: int
    rule: str


def spoken_text(response_text: str, *, is_cut: bool = False) -> str:
    """Return the part of a response that is judged, as plain text."""
    text = str(response_text[slice(*said_aloud(response_text))]).replace("\r\n", "\n")
    text = STRUCK_OUT.sub(" ", text)
    text = _SHORT_BOX.sub(r"\\boxed{\1}", _BOXED.sub(r"\\boxed{", text))
    text = _before_next_question(text)
    text = text[: open_box(text)]
    return without_last_word(text) if is_cut else text


def announcements(text: str) -> Iterator[Place]:
    """Yield where a spoken text announces an answer, the last place first."""
    marks = list(_MARKS.finditer(text))
    boxes = [(mark.end(), _closing_brace(text, mark.end())) for mark in marks if mark.group().endswith("{")]
    n_yielded, following = 0, len(text)
    for mark in reversed(marks):
        if any(start < mark.end() < end for start, end in boxes):
            continue  # a box in a box, or a word in one: the outer box is the answer
        if mark.group().endswith("{"):
            yield Place(mark.end(), _closing_brace(text, mark.end()), rule_of(mark.group()))
        else:
            rest = _VERB.match(text, mark.end(), following)
            start = rest.end() if rest else mark.end()
            yield Place(start, _end_of_line(text, start, following), rule_of(mark.group()))
        following, n_yielded = mark.start(), n_yielded + 1
        if n_yielded == _MOST_PLACES:  # a response that repeats itself without an end
            return


def _before_next_question(text: str) -> str:
    """Return the text up to a question that follows an announced answer."""
    first = next(_MARKS.finditer(text), None)
    if first is None:
        return text
    following = _NEXT_QUESTION.search(text, first.end())
    is_written = following is not None and re.search(r"\w", text[first.end() : following.start()])
    return text[: following.start()] if following is not None and is_written else text


def _closing_brace(text: str, start: int) -> int:
    """Return where the box that is open at `start` is closed."""
    depth = 1
    for brace in re.compile(r"\\.|[{}]", re.DOTALL).finditer(text, start):
        depth += {"{": 1, "}": -1}.get(brace.group(), 0)
        if depth == 0:
            return brace.start()
    return len(text)


def _end_of_line(text: str, start: int, following: int) -> int:
    """Return the end of the first line after `start` on which a word or number is written, or the next announcement."""
    written = _WRITTEN.search(text, start, following)
    if written is None:
        return following
    end = text.find("\n", written.start(), following)
    return following if end < 0 else end


def boxed_texts(text: str) -> list[str]:
    r"""Return what is in each closed `\boxed{}` of a text, in order; of nested boxes, the outer one."""
    text = _SHORT_BOX.sub(r"\\boxed{\1}", _BOXED.sub(r"\\boxed{", text))
    text = text[: open_box(text)]
    boxes, end = [], 0
    for box in re.finditer(r"\\boxed\{", text):
        if box.start() >= end:
            end = _closing_brace(text, box.end())
            boxes.append(text[box.end() : end])
    return boxes
