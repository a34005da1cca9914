"""ObjC: sentences that each bring some objects; how many objects are there in all?

One hop = one sentence. Totals of the short rendering stay at 99 or below; the natural one counts up to 20
objects per sentence, without a limit on the total.
"""

from __future__ import annotations

from random import Random

from chainwright._registry import register
from chainwright.checkers.patterns import WORD
from chainwright.tasks import _words
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
    number,
)

_VERBS = "has buys finds gets brings makes picks wins".split()
_OBJECTS = "apples pears coins books cups stamps shells pens kites keys hats socks plates eggs bells rings".split()
_LARGEST_START, _LARGEST_TOTAL = 30, 99
_MOST_OBJECTS = {"short": 9, "natural": 20}
_LAYOUT = {
    "short": {
        "start": "start {start}",
        "hop": "{name} {verb} {k} {object} : {left} + {right} = {total}",
        "end": "{end}",
        "answer": "answer {answer}",
    },
    "natural": {
        "start": "The count starts at {start}.",
        "hop": "{name} {verb} {k} {object}: {left} + {right} = {total}.",
        "end": "{end}, every sentence is counted.",
        "answer": "Answer: {answer}",
    },
}


def _number_of_objects(random: Random, room: int, hops_left: int) -> int:
    """Draw how many objects a short sentence brings, leaving those after it about an equal share."""
    most = min(_MOST_OBJECTS["short"], 2 * room // hops_left, room)
    return random.randint(1, most) if most >= 1 else 0


def _draw(random: Random, hops: int, rendering: Rendering) -> Facts:
    total = start = random.randint(0, _LARGEST_START)
    sentences = []
    for i in range(hops):
        words = [random.choice(words) for words in (_words.NAMES, _VERBS, _OBJECTS)]
        if rendering == "short":
            k = _number_of_objects(random, _LARGEST_TOTAL - total, hops - i)
        else:
            k = random.randint(1, _MOST_OBJECTS["natural"])
        total += k
        sentences.append([words[0], words[1], k, words[2]])
    return {"start": start, "sentences": sentences}


def _question(facts: Facts, rendering: Rendering) -> str:
    start = facts["start"]
    if rendering == "short":
        sentences = "".join(f" . {name} {verb} {k} {thing}" for name, verb, k, thing in facts["sentences"])
        return f"objc start {start}{sentences} ?"
    sentences = " ".join(f"{name.title()} {verb} {k} {thing}." for name, verb, k, thing in facts["sentences"])
    return f"There are {start} objects on the table. {sentences} How many objects are there in all, of any kind?"


def _write(facts: Facts, rendering: Rendering) -> Script:
    total, information = facts["start"], "object information recall"
    writer = Writer(_LAYOUT[rendering])
    writer.add("start", 0, start=number(total, "local result copy"))
    for hop, (name, verb, k, thing) in enumerate(facts["sentences"]):
        writer.add(
            "hop",
            hop,
            name=Part(name if rendering == "short" else name.title(), "name recall", WORD),
            verb=Part(verb, information, WORD),
            k=number(k, information),
            object=Part(thing, information, WORD),
            left=number(total, "local result copy"),
            right=number(k, information),
            total=number(total + k, "local calculation"),
        )
        total += k
    writer.close(len(facts["sentences"]), number(total, "local result copy"), rendering)
    return Script(_question(facts, rendering), tuple(writer.lines), str(total))


TASK = register("task", "objc")(
    Task(
        name="objc",
        title="ObjC",
        error_types={
            "name recall": RECALL,
            "object information recall": RECALL,
            "local result copy": COMPUTING,
            "local calculation": COMPUTING,
            FEWER_HOPS: HOPS,
            MORE_HOPS: HOPS,
        },
        goal="Count the objects of all sentences together.",
        draw=_draw,
        write=_write,
        exemplars=({"start": 5, "sentences": [["ann", "has", 3, "apples"], ["bob", "buys", 7, "pears"]]},),
        unit="sentence",
        usual_hops={"short": (5, 8, 9, 10, 11), "natural": (10, 20, 30, 40, 50)},
        paper_order=6,
        words=(*_words.NAMES, *_VERBS, *_OBJECTS),
    )
)
