"""LLC: take the last letter of every word and string the letters together.

One hop = one word.
"""

from __future__ import annotations

from random import Random

from chainwright._registry import register
from chainwright.checkers.patterns import LETTER, LETTERS, WORD
from chainwright.tasks._script import (
    COMPUTING,
    FEWER_HOPS,
    HOPS,
    MORE_HOPS,
    RECALL,
    Facts,
    Part,
    Rendering,
    Script,
    Task,
    Writer,
)

_WORDS = (
    "cobra crab climb magic bread cloud table stone leaf roof flag king beach moth taxi ski rock desk wheel "
    "pearl drum farm lemon train piano echo lamp ship river silver glass moss robot forest menu window fox "
    "honey candy jazz"
).split()
_LAYOUT = {
    "short": {"hop": "{word} {letter} : {string}", "end": "{end}", "answer": "answer {answer}"},
    "natural": {
        "hop": 'The word {word} ends with "{letter}", giving "{string}".',
        "end": "{end}, every word is used.",
        "answer": "Answer: {answer}",
    },
}


def _draw(random: Random, hops: int, rendering: Rendering) -> Facts:
    return {"words": [random.choice(_WORDS) for _ in range(hops)]}


def _question(facts: Facts, rendering: Rendering) -> str:
    if rendering == "short":
        return f"llc {' '.join(facts['words'])} ?"
    return (
        f"Here is a list of words: {', '.join(facts['words'])}. "
        "What string do you get by joining the last letters of these words in order?"
    )


def _write(facts: Facts, rendering: Rendering) -> Script:
    words = facts["words"]
    writer = Writer(_LAYOUT[rendering])
    gap = " " if rendering == "short" else ""
    string = ""
    for i, word in enumerate(words):
        string = gap.join(w[-1] for w in words[: i + 1])
        writer.add(
            "hop",
            i,
            word=Part(word, "word recall", WORD),
            letter=Part(word[-1], "letter", LETTER),
            string=Part(string, "concatenation", LETTERS),
        )
    writer.close(len(words), Part(string, "concatenation", LETTERS), rendering)
    return Script(_question(facts, rendering), tuple(writer.lines), string)


TASK = register("task", "llc")(
    Task(
        name="llc",
        title="LLC",
        error_types={
            "word recall": RECALL,
            "letter": COMPUTING,
            "concatenation": COMPUTING,
            FEWER_HOPS: HOPS,
            MORE_HOPS: HOPS,
        },
        goal="Go through the words in order and build the string of their last letters.",
        draw=_draw,
        write=_write,
        exemplars=({"words": ["apple", "river"]},),
        unit="word",
        usual_hops={"short": (4, 7, 8, 9, 10), "natural": (2, 4, 6, 8, 10)},
        paper_order=2,
        words=tuple(_WORDS),
    )
)
