"""CLF: a log of folder operations (LeetCode 1598); how deep in the tree is the last folder?

One hop = one operation: `x/` goes into a folder, `../` to its parent (not from the root), `./` stays.
"""

from __future__ import annotations

from random import Random

from chainwright._registry import register
from chainwright.checkers.patterns import STEP, Pattern
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

_FOLDERS = "src/ lib/ docs/ bin/ tests/ data/ img/ tmp/ logs/ conf/ assets/ build/ web/ core/".split()
_PARENT, _STAY = "../", "./"
_DEEPEST = 20
_WEIGHTS = {"into": 0.45, _PARENT: 0.35, _STAY: 0.20}
_OPERATION = Pattern(r"(?<!\w)(?:\.{1,2}|[^\W\d][\w-]*)/(?!\w)")
_LAYOUT = {
    "short": {
        "hop": "{operation} {depth} {step} = {new}",
        "same": "{operation} {depth} = {new}",
        "end": "{end} {answer}",
        "answer": "answer {answer}",
    },
    "natural": {
        "hop": "{index}. Operation {operation}: depth {depth} {step} = {new}.",
        "same": "{index}. Operation {operation}: depth {depth}, no change, still {new}.",
        "end": "{end}, the depth is {answer}.",
        "answer": "Answer: {answer}",
    },
}
_FUNCTION = """def folder_depth(operations):
    depth = 0
    for operation in operations:
        if operation == "../":
            depth = max(depth - 1, 0)
        elif operation != "./":
            depth += 1
    return depth"""


def _next_depth(operation: str, depth: int) -> int:
    if operation == _PARENT:
        return max(depth - 1, 0)
    return depth if operation == _STAY else depth + 1


def _draw(random: Random, hops: int, rendering: Rendering) -> Facts:
    operations: list[str] = []
    depth = 0
    for _ in range(hops):
        kinds = list(_WEIGHTS)[1 if depth == _DEEPEST else 0 :]
        kind = random.choices(kinds, [_WEIGHTS[kind] for kind in kinds])[0]
        operations.append(random.choice(_FOLDERS) if kind == "into" else kind)
        depth = _next_depth(operations[-1], depth)
    return {"operations": operations}


def _question(facts: Facts, rendering: Rendering) -> str:
    if rendering == "short":
        return f"clf {' '.join(facts['operations'])} ?"
    quoted = ", ".join(f'"{operation}"' for operation in facts["operations"])
    return f"{_FUNCTION}\n\nWhat does folder_depth([{quoted}]) return?"


def _write(facts: Facts, rendering: Rendering) -> Script:
    operations, depth = facts["operations"], 0
    writer = Writer(_LAYOUT[rendering])
    for i, operation in enumerate(operations):
        new = _next_depth(operation, depth)
        step = f"{'+' if new > depth else '-'} 1"
        writer.add(
            "hop",
            i,
            "same" if new == depth else "hop",
            index=str(i + 1),
            operation=Part(operation, "operation recall", _OPERATION),
            depth=number(depth, "depth copy"),
            step=Part(step, "local calculation", STEP),
            new=number(new, "local calculation"),
        )
        depth = new
    writer.close(len(operations), number(depth, "final depth copy"), rendering)
    return Script(_question(facts, rendering), tuple(writer.lines), str(depth))


TASK = register("task", "clf")(
    Task(
        name="clf",
        title="CLF",
        error_types={
            "operation recall": RECALL,
            "depth copy": COMPUTING,
            "local calculation": COMPUTING,
            FEWER_HOPS: HOPS,
            MORE_HOPS: HOPS,
            "final depth copy": COMPUTING,
        },
        goal="Run the Python function by hand.",
        draw=_draw,
        write=_write,
        exemplars=({"operations": ["src/", "./", "../"]},),
        unit="operation",
        usual_hops={"short": (6, 10, 12, 13, 14), "natural": (10, 20, 30)},
        paper_order=3,
        words=(*_FOLDERS, _PARENT, _STAY),
    )
)
