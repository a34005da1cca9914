"""What the file of a task is written with, from inside or outside of the package.

1. `Task` is what the file states, registered under the kind "task" (see `chainwright.plugins`).
2. `Task.draw` draws facts; `Task.write` turns them into a `Script`: a question, lines and an answer. A `Writer` makes
   the lines from templates; a `Part` in a template is a slot, a decision with its error type.
3. Patterns say what may be in a slot at all, so that a wrong value is still read as the value of that slot.

`clf.py` is a short example to start from; `docs/extending.md` walks through another.
"""

from chainwright.checkers.patterns import (
    FINALLY,
    LETTER,
    LETTERS,
    NUMBER,
    SIDE,
    SIGN,
    STEP,
    WORD,
    Pattern,
    choice,
)
from chainwright.tasks._script import (
    COMPUTING,
    FEWER_HOPS,
    HOPS,
    MORE_HOPS,
    RECALL,
    Facts,
    Family,
    Line,
    Part,
    Rendering,
    Script,
    Task,
    Writer,
    fill,
    number,
)

__all__ = [
    "COMPUTING",
    "FEWER_HOPS",
    "FINALLY",
    "HOPS",
    "LETTER",
    "LETTERS",
    "MORE_HOPS",
    "NUMBER",
    "RECALL",
    "SIDE",
    "SIGN",
    "STEP",
    "WORD",
    "Facts",
    "Family",
    "Line",
    "Part",
    "Pattern",
    "Rendering",
    "Script",
    "Task",
    "Writer",
    "choice",
    "fill",
    "number",
]
