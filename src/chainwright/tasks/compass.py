"""Compass: a needle is turned once a minute; only the question says how far, by the last digit of the minute.

One hop = one minute. The question is short, and the chain as long as the hops say. No line says by how much the needle
turned, so every line needs the question again, and an earlier line with the same digit is of no use. In half of the
problems the answer is the direction after the first minute, otherwise that after the last.

Made for StepFlow (`lab/compass.py`); it is not one of the seven tasks of the source paper, and has the short rendering
only.
"""

from __future__ import annotations

from random import Random

from chainwright._registry import register
from chainwright.checkers.patterns import NUMBER, choice
from chainwright.tasks._script import (
    COMPUTING,
    FEWER_HOPS,
    HOPS,
    MORE_HOPS,
    Facts,
    Part,
    Rendering,
    Script,
    Task,
    Writer,
)

DIRECTIONS = ("north", "east", "south", "west")
TURNS = ("stay", "right", "half", "left")
ASKED = ("first", "last")
N_MINUTES = 60
_DIRECTION = choice({name: () for name in DIRECTIONS})
_LAYOUT = {"hop": "{minute} {direction}", "end": "{end}", "answer": "answer {answer}"}


def vocabulary() -> list[str]:
    """Return every word of the task but the digits and the line end."""
    return ["compass", "from", "to", "at", "asks", "?", "end", "answer", *DIRECTIONS, *TURNS, *ASKED]


def draw(random: Random, hops: int, rendering: Rendering = "short") -> Facts:
    """Return the facts of a problem."""
    return {
        "turns": [[digit, random.choice(TURNS)] for digit in random.sample(range(10), 10)],
        "from": random.randrange(N_MINUTES - hops + 1),
        "at": random.choice(DIRECTIONS),
        "asks": random.choice(ASKED),
        "hops": hops,
    }


def _write(facts: Facts, rendering: Rendering) -> Script:
    turns, first, hops = dict(map(tuple, facts["turns"])), facts["from"], facts["hops"]
    now, directions = DIRECTIONS.index(facts["at"]), []
    writer = Writer(_LAYOUT)
    for i in range(hops):
        minute = first + i
        now = (now + TURNS.index(turns[minute % 10])) % len(DIRECTIONS)
        directions.append(DIRECTIONS[now])
        writer.add(
            "hop",
            i,
            minute=Part(f"{minute:02d}", "minute copy", NUMBER),
            direction=Part(directions[-1], "turn", _DIRECTION),
        )
    answer = directions[0 if facts["asks"] == "first" else -1]
    writer.close(hops, Part(answer, "answer copy", _DIRECTION), rendering)
    table = " ".join(f"{digit} {turn}" for digit, turn in facts["turns"])
    span = f"from {first:02d} to {first + hops - 1:02d}"
    return Script(f"compass {table} {span} at {facts['at']} asks {facts['asks']} ?", tuple(writer.lines), answer)


TASK = register("task", "compass")(
    Task(
        name="compass",
        title="Compass",
        error_types={
            "minute copy": COMPUTING,
            "turn": COMPUTING,
            FEWER_HOPS: HOPS,
            MORE_HOPS: HOPS,
            "answer copy": COMPUTING,
        },
        goal="Follow the needle minute by minute.",
        draw=draw,
        write=_write,
        exemplars=({"turns": [[d, "stay"] for d in range(10)], "from": 1, "at": "north", "asks": "last", "hops": 2},),
        unit="minute",
        max_hops=N_MINUTES,
        renderings=("short",),
        usual_hops={"short": (8, 16, 24, 32)},
        words=tuple(vocabulary()),
    )
)
