"""Which tasks there are, and what each says of itself.

Tasks are found in the registry; asking about one imports its file alone. The seven tasks of the source paper come
first, in its order, then all others by name.
"""

from __future__ import annotations

from functools import cache
from string import ascii_lowercase, digits

from chainwright import _registry
from chainwright._errors import BadInput, unknown_name
from chainwright.tasks import _words
from chainwright.tasks._script import FEWER_HOPS, HOPS, MORE_HOPS, Family, Rendering, Task
from chainwright.tasks.base import UNPARSED

# the tokenizers of the bundled models number the words of the seven tasks in this order
_ORDER_IN_TOKENIZERS = ("parity", "moas", "nums", "mdm", "objc", "llc", "clf")


def task_of(name: str) -> Task:
    """Return the task that a name or title in any case means.

    Raises:
        BadInput: There is no such task, or a plugin registered one under another name than its own.
    """
    if not isinstance(name, str):
        raise BadInput(f"A task is named by a string, got {name!r}; known: {', '.join(known())}.")
    wanted = name.strip().lower()
    if wanted in _registry.names("task"):
        return _load(wanted)
    # titles are read last, since only the tasks themselves know theirs
    for known_name in known():
        if wanted == _load(known_name).title.lower():
            return _load(known_name)
    raise unknown_name("task", name, known())


def _load(name: str) -> Task:
    task: Task = _registry.load("task", name)
    if task.name != name:
        raise BadInput(f"A task is registered under its own name; {name!r} registers one called {task.name!r}.")
    return task


@cache
def _seven() -> tuple[str, ...]:
    own = [_load(name) for name in _registry.names("task") if _registry.is_ours("task", name)]
    in_order = sorted((task.paper_order, task.name) for task in own if task.paper_order is not None)
    return tuple(name for _, name in in_order)


def names() -> list[str]:
    """Return the names of the seven tasks of the source paper, in its order; `known` has all others too."""
    return list(_seven())


def known() -> list[str]:
    """Return the names of all tasks: the seven, then the others, also those of plugins, by name."""
    return [*_seven(), *(name for name in _registry.names("task") if name not in _seven())]


def canonical(name: str) -> str:
    """Return the name of the task that a name or title in any case means.

    Raises:
        BadInput: There is no such task.
    """
    return task_of(name).name


def title(name: str) -> str:
    """Return a task's name as the source paper writes it, such as "Parity-NL"."""
    return task_of(name).title


def error_types(task: str) -> tuple[str, ...]:
    """Return every error type that a wrong slot of the task can have; "unparsed" is not among them."""
    return tuple(task_of(task).error_types)


def family(task: str, error_type: str) -> Family:
    """Return the family of an error type, as its task states it.

    "fewer or more hops" and "cannot be read" are the same for all tasks. An error type that no task states, such as one
    of a problem made by hand, is in the family "other".
    """
    if error_type == UNPARSED:
        return "cannot be read"
    if error_type in (FEWER_HOPS, MORE_HOPS):
        return HOPS
    if task not in _registry.names("task"):
        return "other"
    return _load(task).error_types.get(error_type, "other")


def usual_hops(task: str, rendering: Rendering) -> tuple[int, ...]:
    """Return the hop counts that are asked by default in a rendering.

    Raises:
        BadInput: There is no such task, it has no such rendering, or it states no usual hops for it.
    """
    spec = task_of(task)
    check_rendering(spec, rendering)
    if not spec.usual_hops.get(rendering):
        raise BadInput(
            f"The task {spec.name} states no usual hops for the {rendering} rendering; say which to ask with --hops."
        )
    return tuple(spec.usual_hops[rendering])


def fit_hops(task: str, rendering: Rendering) -> tuple[int, ...]:
    """Return the hop counts that repairs are fitted on: where a model is sometimes right and sometimes wrong.

    Raises:
        BadInput: As for `usual_hops`.
    """
    usual, own = usual_hops(task, rendering), task_of(task).fit_hops.get(rendering)
    return usual[-3:] if own is None else tuple(own)


def check_rendering(task: Task, rendering: Rendering) -> None:
    """Raise BadInput if a task does not have a rendering."""
    if rendering not in task.renderings:
        only = task.renderings[0]
        raise BadInput(f"The task {task.name} has the {only} rendering alone; drop --rendering or pass {only!r}.")


def vocabulary(*tasks: str) -> list[str]:
    """Return every token of the short rendering of some tasks; of the seven if none is named.

    The newline comes first, then symbols, digits, letters, task names, keywords and the word lists. The order for the
    seven never changes, since the tokenizers of the bundled models were made from it.

    Raises:
        BadInput: There is no such task.
    """
    specs = [task_of(name) for name in tasks or names()]
    places = {name: i for i, name in enumerate(_ORDER_IN_TOKENIZERS)}
    in_order = sorted(specs, key=lambda spec: places.get(spec.name, len(places)))
    tokens = ["\n", *_words.SYMBOLS, *digits, *ascii_lowercase, *(spec.name for spec in specs), *_words.KEYWORDS]
    tokens += [word for spec in in_order for word in spec.keywords]
    tokens += [word for spec in in_order for word in spec.words]
    return list(dict.fromkeys(tokens))
