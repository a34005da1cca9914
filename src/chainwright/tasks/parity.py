"""Parity-NL: a coin is turned over by some people and left alone by others; which side is up at the end?

One hop = one person. Names repeat, so that the chain has to follow the order of the sentences and cannot look
a name up.
"""

from __future__ import annotations

from random import Random

from chainwright._registry import register
from chainwright.checkers.patterns import SIDE, WORD, choice
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
)

_FLIPS = ("flip", "flips", "flipped", "turns", "turns over")
_STAYS = ("stay", "stays", "keeps", "does not flip", "doesn't flip", "did not flip", "didn't flip", "leaves")
_ACTIONS = choice({"flips": _FLIPS, "stays": _STAYS})
_LAYOUT = {
    "short": {
        "start": "start {side}",
        "hop": "{name} {action} {state}",
        "end": "{end} {answer}",
        "answer": "answer {answer}",
    },
    "natural": {
        "start": "The coin starts {side} up.",
        "hop": "{index}. {name} {action} the coin, so it is {state} up.",
        "end": "{end}, the coin is {answer} up.",
        "answer": "Answer: {answer}",
    },
}


def _draw(random: Random, hops: int, rendering: Rendering) -> Facts:
    return {
        "start": random.choice(["heads", "tails"]),
        "people": [[random.choice(_words.NAMES), random.random() < 0.5] for _ in range(hops)],
    }


def _question(facts: Facts, rendering: Rendering) -> str:
    if rendering == "short":
        people = [f"{name} {'flips' if flips else 'stays'}" for name, flips in facts["people"]]
        return f"parity start {facts['start']} . {' . '.join(people)} ?"
    people = [f"{name.title()} {'flips' if flips else 'does not flip'} the coin." for name, flips in facts["people"]]
    start = f"A coin lies {facts['start']} up."
    return f"{start} {' '.join(people)} Which side of the coin is up now, heads or tails?"


def _write(facts: Facts, rendering: Rendering) -> Script:
    state, hops = str(facts["start"]), len(facts["people"])
    writer = Writer(_LAYOUT[rendering])
    writer.add("start", 0, side=Part(state, "initial state recall", SIDE))
    for i, (name, flips) in enumerate(facts["people"]):
        if flips:
            state = "tails" if state == "heads" else "heads"
        action = "flips" if flips else "stays" if rendering == "short" else "does not flip"
        writer.add(
            "hop",
            i,
            index=str(i + 1),
            name=Part(name if rendering == "short" else name.title(), "name recall", WORD),
            action=Part(action, "action recall", _ACTIONS),
            state=Part(state, "state update" if flips else "state recall", SIDE),
        )
    writer.close(hops, Part(state, "final state copy", SIDE), rendering)
    return Script(_question(facts, rendering), tuple(writer.lines), state)


TASK = register("task", "parity")(
    Task(
        name="parity",
        title="Parity-NL",
        error_types={
            "initial state recall": RECALL,
            "name recall": RECALL,
            "action recall": RECALL,
            "state recall": RECALL,
            "state update": COMPUTING,
            FEWER_HOPS: HOPS,
            MORE_HOPS: HOPS,
            "final state copy": COMPUTING,
        },
        goal="Follow the coin through every sentence, in order.",
        draw=_draw,
        write=_write,
        exemplars=({"start": "heads", "people": [["ann", True], ["bob", False]]},),
        unit="person",
        usual_hops={"short": (6, 10, 12, 13, 14), "natural": (10, 20, 30, 40, 50)},
        paper_order=0,
        keywords=("heads", "tails", "flips", "stays"),
        words=tuple(_words.NAMES),
    )
)
