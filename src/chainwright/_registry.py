"""The one registry: a kind and a name lead to the object that goes by it, which is imported only when it is asked for.

Three sources fill it, in this order:

1. The package itself. `@register("repair", "stepflow")` stands above a class or function, or
   `TASK = register("task", "clf")(Task(...))` on one line. `names` finds these by reading the source text, so that
   listing what there is imports nothing.
2. Installed plugins: entry points of the group `chainwright.plugins`, named "<kind>.<name>", such as
   `"task.stack" = "my_package.stack:TASK"`.
3. Code of the running program: the decorator in a notebook or script registers when it runs.

A name is taken once: whoever registers it a second time is refused, with both places named.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import Any, Literal, TypeVar, get_args

from chainwright._errors import BadInput, unknown_name

Kind = Literal[
    "task",
    "repair",
    "detector",
    "selector",
    "edit",
    "finding",
    "instrument",
    "study",
    "section",
    "checker",
    "model",
]
GROUP = "chainwright.plugins"
_PACKAGE = "chainwright"
_MARK = re.compile(
    r'^@register\("(?P<kind>\w+)", "(?P<name>[^"]+)"\)\n(?:@[^\n]*\n)*(?:class|def) (?P<attribute>\w+)'
    r'|^(?P<constant>\w+)(?:: [^=\n]+)? = register\("(?P<of>\w+)", "(?P<called>[^"]+)"\)',
    re.MULTILINE,
)
T = TypeVar("T")

_live: dict[tuple[str, str], Any] = {}  # what has been imported, or registered by the running program
_owners: dict[tuple[str, str], str] = {}  # the modules that registered it; a cell that runs again may do so again


def register(kind: Kind, name: str) -> Callable[[T], T]:
    """Return a decorator that makes an object known under a name; the object is returned as it is.

    Args:
        kind: What it is, such as "task" or "repair".
        name: The name under which it is asked for and saved.

    Raises:
        BadInput: An unknown kind, or a name that something else goes by.
    """
    if kind not in get_args(Kind):
        raise unknown_name("kind of plugin", kind, get_args(Kind))

    module = sys._getframe(1).f_globals["__name__"]  # an instance does not know the module that made it

    def remember(thing: T) -> T:
        known = _owners.get((kind, name)) or _places().get((kind, name), "").partition(":")[0]
        if known not in ("", module):
            raise BadInput(f"Two things register as {kind} {name!r}, in {known} and in {module}; rename one of them.")
        _live[kind, name], _owners[kind, name] = thing, module
        return thing

    return remember


def names(kind: Kind) -> list[str]:
    """Return every name of a kind, sorted; nothing is imported."""
    return sorted({name for k, name in (*_places(), *_live) if k == kind})


def load(kind: Kind, name: str) -> Any:
    """Return the object of a kind that goes by a name, imported now if it was not yet.

    Raises:
        BadInput: No such name, or a plugin that cannot be imported.
    """
    if (kind, name) in _live:
        return _live[kind, name]
    place = _places().get((kind, name))
    if place is None:
        raise unknown_name(kind, name, names(kind))
    module, _, attribute = place.partition(":")
    try:
        found = getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        if module.partition(".")[0] == _PACKAGE:
            raise
        raise BadInput(
            f"The plugin for {kind} {name!r} names {place}, which cannot be imported ({error}); install it again or "
            "uninstall it."
        ) from error
    _live[kind, name] = found
    return found


def load_all(kind: Kind) -> dict[str, Any]:
    """Return every object of a kind by its name, in the order of the names."""
    return {name: load(kind, name) for name in names(kind)}


@cache
def _places() -> dict[tuple[str, str], str]:
    """Return where everything in the package and in installed plugins is: (kind, name) -> "module:attribute"."""
    found: dict[tuple[str, str], str] = {}
    for key, place in (*_written(files(_PACKAGE), _PACKAGE), *_installed()):
        if found.setdefault(key, place) != place:
            raise BadInput(f"Two things register as {key[0]} {key[1]!r}: {found[key]} and {place}; rename one.")
    return found


def _written(folder: Traversable, package: str) -> Iterator[tuple[tuple[str, str], str]]:
    for entry in sorted(folder.iterdir(), key=lambda e: e.name):
        if entry.is_dir():
            if entry.name.isidentifier():
                yield from _written(entry, f"{package}.{entry.name}")
        elif entry.name.endswith(".py"):
            module = package if entry.name == "__init__.py" else f"{package}.{entry.name.removesuffix('.py')}"
            for mark in _MARK.finditer(entry.read_text(encoding="utf-8")):
                kind, name = mark["kind"] or mark["of"], mark["name"] or mark["called"]
                yield (kind, name), f"{module}:{mark['attribute'] or mark['constant']}"


def _installed() -> Iterator[tuple[tuple[str, str], str]]:
    for point in entry_points(group=GROUP):
        kind, dot, name = point.name.partition(".")
        if not dot or kind not in get_args(Kind):
            raise BadInput(
                f"The installed plugin entry {point.name!r} ({point.value}) does not begin with a kind of plugin; "
                f"entries are named '<kind>.<name>', with kind one of {', '.join(get_args(Kind))}."
            )
        yield (kind, name), point.value
