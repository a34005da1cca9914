"""NumS: how many intervals contain a query time (LeetCode 1450)?

One hop = one interval. An interval contains its two ends.
"""

from __future__ import annotations

from random import Random

from chainwright._registry import register
from chainwright.checkers.patterns import choice
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

_LATEST, _LARGEST_START = 99, 30
_VERDICTS = choice({"in": ("inside", "within"), "out": ("outside", "not in", "not inside", "not within")})
_LAYOUT = {
    "short": {
        "start": "start {start}",
        "hop": "{first} to {last} time {time} {verdict} : {left} + {one} = {count}",
        "end": "{end}",
        "answer": "answer {answer}",
    },
    "natural": {
        "start": "The count starts at {start}.",
        "hop": "From {first} to {last}, time {time} is {verdict}: {left} + {one} = {count}.",
        "end": "{end}, every interval is checked.",
        "answer": "Answer: {answer}",
    },
}
_FUNCTION = """def count_busy(first_times, last_times, time, count):
    for first, last in zip(first_times, last_times):
        if first <= time <= last:
            count += 1
    return count"""


def _interval(random: Random, time: int) -> list[int]:
    """Draw an interval that contains the time with probability one half."""
    if random.random() < 0.5:
        return [random.randint(0, time), random.randint(time, _LATEST)]
    if random.randint(0, _LATEST - 1) < time:
        return sorted(random.randint(0, time - 1) for _ in range(2))
    return sorted(random.randint(time + 1, _LATEST) for _ in range(2))


def _draw(random: Random, hops: int, rendering: Rendering) -> Facts:
    time = random.randint(0, _LATEST)
    start = random.randint(0, _LARGEST_START)
    return {"time": time, "start": start, "intervals": [_interval(random, time) for _ in range(hops)]}


def _question(facts: Facts, rendering: Rendering) -> str:
    time, start, intervals = facts["time"], facts["start"], facts["intervals"]
    if rendering == "short":
        return f"nums time {time} . start {start}{''.join(f' . {a} to {b}' for a, b in intervals)} ?"
    first, last = [a for a, _ in intervals], [b for _, b in intervals]
    call = f"count_busy(first_times={first}, last_times={last}, time={time}, count={start})"
    return f"{_FUNCTION}\n\nWhat does {call} return?"


def _verdict(is_inside: bool, rendering: Rendering) -> Part:
    short, natural = ("in", "inside") if is_inside else ("out", "outside")
    return Part(short if rendering == "short" else natural, "condition judgement", _VERDICTS)


def _write(facts: Facts, rendering: Rendering) -> Script:
    time, count = facts["time"], facts["start"]
    writer = Writer(_LAYOUT[rendering])
    writer.add("start", 0, start=number(count, "local result copy"))
    for hop, (first, last) in enumerate(facts["intervals"]):
        one = int(first <= time <= last)
        writer.add(
            "hop",
            hop,
            first=number(first, "time recall"),
            last=number(last, "time recall"),
            time=number(time, "time copy"),
            verdict=_verdict(one == 1, rendering),
            left=number(count, "local result copy"),
            one=number(one, "calculation logic"),
            count=number(count + one, "local calculation"),
        )
        count += one
    writer.close(len(facts["intervals"]), number(count, "local result copy"), rendering)
    return Script(_question(facts, rendering), tuple(writer.lines), str(count))


TASK = register("task", "nums")(
    Task(
        name="nums",
        title="NumS",
        error_types={
            "time recall": RECALL,
            "time copy": COMPUTING,
            "local result copy": COMPUTING,
            "local calculation": COMPUTING,
            "condition judgement": COMPUTING,
            "calculation logic": COMPUTING,
            FEWER_HOPS: HOPS,
            MORE_HOPS: HOPS,
        },
        goal="Run the Python function by hand.",
        draw=_draw,
        write=_write,
        exemplars=({"time": 47, "start": 3, "intervals": [[12, 50], [60, 71]]},),
        unit="interval",
        usual_hops={"short": (5, 8, 9, 10, 11), "natural": (5, 10, 15, 20)},
        paper_order=5,
        keywords=("time", "to", "in", "out"),
    )
)
