"""Pile: things are put on a pile and taken off again; what is on top at the end?

One hop = one move. The pile begins with one thing and is never empty. All words of the short rendering are in the
vocabulary of the bundled reasoner, so that it can be asked.
"""

from __future__ import annotations

from random import Random

from chainwright.tasks.writing import (
    COMPUTING,
    FEWER_HOPS,
    HOPS,
    MORE_HOPS,
    RECALL,
    WORD,
    Facts,
    Part,
    Rendering,
    Script,
    Task,
    Writer,
    choice,
)

_THINGS = "bread cloud table stone leaf flag desk wheel drum lamp silver glass window honey candy".split()
_MOVES = choice({"add": ("put on", "puts on"), "out": ("take off", "takes off")})
_LAYOUT = {
    "short": {
        "start": "start {top}",
        "hop": "{move} {thing} : {top}",
        "end": "{end} {answer}",
        "answer": "answer {answer}",
    },
    "natural": {
        "start": "The pile begins with {top}.",
        "hop": "{index}. {move} {thing}: {top} is on top.",
        "end": "{end}, the top is {answer}.",
        "answer": "Answer: {answer}",
    },
}


def _draw(random: Random, hops: int, rendering: Rendering) -> Facts:
    pile = [random.choice(_THINGS)]
    first, moves = pile[0], []
    for _ in range(hops):
        if len(pile) > 1 and random.random() < 0.5:
            moves.append(["out", pile.pop()])
        else:
            pile.append(random.choice(_THINGS))
            moves.append(["add", pile[-1]])
    return {"first": first, "moves": moves}


def _question(facts: Facts, rendering: Rendering) -> str:
    # what is taken off is not said: to know it is the task
    if rendering == "short":
        moves = [f"add {thing}" if move == "add" else "out" for move, thing in facts["moves"]]
        return f"start {facts['first']} . {' . '.join(moves)} ?"
    moves = [f"Put on {thing}." if move == "add" else "Take off the top." for move, thing in facts["moves"]]
    return f"A pile begins with {facts['first']}. {' '.join(moves)} What is on top of the pile?"


def _write(facts: Facts, rendering: Rendering) -> Script:
    pile, writer = [facts["first"]], Writer(_LAYOUT[rendering])
    words = {"add": "add", "out": "out"} if rendering == "short" else {"add": "Put on", "out": "Take off"}
    writer.add("start", 0, top=Part(pile[-1], "thing recall", WORD))
    for i, (move, thing) in enumerate(facts["moves"]):
        # what comes off is worked out from the pile, what is put on is read from the question
        kind = "thing recall" if move == "add" else "pile"
        if move == "add":
            pile.append(thing)
        else:
            pile.pop()
        writer.add(
            "hop",
            i,
            index=str(i + 1),
            move=Part(words[move], "move recall", _MOVES),
            thing=Part(thing, kind, WORD),
            top=Part(pile[-1], "top", WORD),
        )
    writer.close(len(facts["moves"]), Part(pile[-1], "final copy", WORD), rendering)
    return Script(_question(facts, rendering), tuple(writer.lines), pile[-1])


TASK = Task(
    name="pile",
    title="Pile",
    error_types={
        "move recall": RECALL,
        "thing recall": RECALL,
        "pile": COMPUTING,
        "top": COMPUTING,
        FEWER_HOPS: HOPS,
        MORE_HOPS: HOPS,
        "final copy": COMPUTING,
    },
    goal="Follow the pile move by move.",
    draw=_draw,
    write=_write,
    exemplars=({"first": "desk", "moves": [["add", "lamp"], ["out", "lamp"]]},),
    unit="move",
    usual_hops={"short": (2, 4, 6, 8), "natural": (5, 10, 20)},
    keywords=("add", "out"),
    words=tuple(_THINGS),
)
