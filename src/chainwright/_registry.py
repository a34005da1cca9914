"""The one registry: a kind and a name lead to the object registered under it.

Nothing is imported before it is asked for: `names` lists without importing, `load` imports one module.

The kinds, and what is registered under each:

    task        a `tasks.Task`: problems with a hop dial
    repair      a subclass of `repair.Repair`; the name is its `kind`
    detector    a class that flags tokens while TCR decodes (see `repair.tcr.detector`)
    selector    a class that ranks heads for TCR (see `repair.tcr.selector`)
    edit        a subclass of `edits.Edit`
    finding     a subclass of `Finding`; the name is that of the class
    instrument  a subclass of `studies.diagnosis.units.Instrument`: one measurement of a diagnosis
    study       a subclass of `studies.Plan`; the name is its `kind`
    executor    a subclass of `studies.executors.Executor`: where the units of studies are computed
    section     a section of the report
    checker     a way of judging a final answer
    model       a `models.sources.ModelSource`: a name that `load_model` takes
    command     a function that is a command; "fit.tcr" is `chainwright fit tcr` (see `cli._command`)

Three sources fill it, in this order:

1. The package itself. `@register("repair", "stepflow")` above a class or function, or
   `TASK = register("task", "clf")(Task(...))` on one line. `names` finds these by reading the source text.
2. Installed plugins: entry points of the group `chainwright.plugins`, named "<kind>.<name>", such as
   `"task.stack" = "my_package.stack:TASK"`.
3. Code of the running program: the decorator in a notebook or script registers when it runs.

A name is taken once: a second registration is refused, and the message names both places.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points, packages_distributions
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import Any, Literal, NamedTuple, TypeVar, get_args

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
    "executor",
    "section",
    "checker",
    "model",
    "command",
]
"""The kinds of things that are found by name."""
GROUP = "chainwright.plugins"
_PACKAGE = "chainwright"
_MARK = re.compile(
    r'^@register\("(?P<kind>\w+)", "(?P<name>[^"]+)"\)\n(?:@[^\n]*\n)*(?:class|def) (?P<attribute>\w+)'
    r'|^(?P<constant>\w+)(?:: [^=\n]+)? = register\("(?P<of>\w+)", "(?P<called>[^"]+)"\)',
    re.MULTILINE,
)
T = TypeVar("T")


class Place(NamedTuple):
    """Where a registered object is defined, and the installed package that it comes from (None: Chainwright)."""

    module: str
    attribute: str
    package: str | None = None


_live: dict[tuple[str, str], Any] = {}  # what has been imported, or registered by the running program
_owners: dict[tuple[str, str], str] = {}  # the modules that registered it; a cell that runs again may do so again


def register(kind: Kind, name: str) -> Callable[[T], T]:
    """Return a decorator that registers an object under a name and returns it unchanged.

    Args:
        kind: What it is, such as "task" or "repair"; the module docstring lists the kinds.
        name: The name under which it is asked for and saved.

    Raises:
        BadInput: An unknown kind, or a name that is taken by something else.
    """
    if kind not in get_args(Kind):
        raise unknown_name("kind of plugin", kind, get_args(Kind))

    module = sys._getframe(1).f_globals["__name__"]  # an instance does not know the module that made it

    def remember(thing: T) -> T:
        known = _owners.get((kind, name))
        # for our own modules the source text was checked by a test, and reading it would slow every import
        if known is None and not _is_ours(module) and (kind, name) in _places():
            known = _places()[kind, name].module
        if known not in (None, module):
            raise BadInput(f"Two things register as {kind} {name!r}, in {known} and in {module}; rename one of them.")
        _live[kind, name], _owners[kind, name] = thing, module
        return thing

    return remember


def names(kind: Kind) -> list[str]:
    """Return every name of a kind, sorted; nothing is imported."""
    return sorted({name for k, name in (*_places(), *_live) if k == kind})


def load(kind: Kind, name: str) -> Any:
    """Return the object of a kind that is registered under a name; its module is imported if it was not yet.

    Raises:
        BadInput: No such name, or a plugin that cannot be imported.
    """
    if (kind, name) in _live:
        return _live[kind, name]
    place = _places().get((kind, name))
    if place is None:
        raise unknown_name(kind, name, names(kind))
    try:
        thing = getattr(import_module(place.module), place.attribute)
    except (ImportError, AttributeError) as error:
        if _is_ours(place.module):
            raise
        raise BadInput(
            f"The plugin for {kind} {name!r} names {place.module}:{place.attribute}, which cannot be imported "
            f"({error}); install it again or uninstall it."
        ) from error
    _live[kind, name] = thing
    return thing


def load_all(kind: Kind) -> dict[str, Any]:
    """Return every object of a kind by its name, in the order of the names."""
    return {name: load(kind, name) for name in names(kind)}


def load_saved(kind: Kind, name: str, source: str | None, what: str) -> Any:
    """Return the object that something saved needs, as `load` does.

    Args:
        kind: What it is.
        name: Its name.
        source: What `source_of` returned when it was saved.
        what: What needs it, for the message, such as "The repair in runs/x".

    Raises:
        BadInput: It is not registered here; the message names the package that it came from.
    """
    if source is None or name in names(kind):
        return load(kind, name)
    raise BadInput(
        f"{what} needs the {kind} {name!r} of {source}, which is not registered here; install that package, or import "
        "the code that registers it first."
    )


def source_of(kind: Kind, name: str) -> str | None:
    """Return where a registered name comes from: None for Chainwright itself, else its package or module."""
    place = _places().get((kind, name))
    if place is not None and place.package is not None:
        return place.package
    module = place.module if place is not None else _owners.get((kind, name), "")
    if module == "" or _is_ours(module):
        return None
    return packages_distributions().get(module.partition(".")[0], [module])[0]


def name_of(kind: Kind, thing: object) -> str | None:
    """Return the name under which an object is registered, or None if it is not."""
    live = next((name for (k, name), known in _live.items() if k == kind and known is thing), None)
    if live is not None:
        return live
    defined = (getattr(thing, "__module__", None), getattr(thing, "__qualname__", None))
    return next((name for (k, name), place in _places().items() if k == kind and place[:2] == defined), None)


def is_ours(kind: Kind, name: str) -> bool:
    """Return whether a registered name is defined in Chainwright itself; nothing is imported."""
    place = _places().get((kind, name))
    return _is_ours(_owners.get((kind, name), "") if place is None else place.module)


def _is_ours(module: str) -> bool:
    return module.partition(".")[0] == _PACKAGE


@cache
def _places() -> dict[tuple[str, str], Place]:
    """Return where everything in the package and in installed plugins is, by kind and name."""
    places: dict[tuple[str, str], Place] = {}
    for key, place in (*_written(files(_PACKAGE), _PACKAGE), *_installed()):
        if (known := places.setdefault(key, place))[:2] != place[:2]:
            raise BadInput(
                f"Two things register as {key[0]} {key[1]!r}: {known.module}:{known.attribute} and "
                f"{place.module}:{place.attribute}; rename one."
            )
    return places


def _written(folder: Traversable, package: str) -> Iterator[tuple[tuple[str, str], Place]]:
    for entry in sorted(folder.iterdir(), key=lambda e: e.name):
        if entry.is_dir():
            if entry.name.isidentifier():
                yield from _written(entry, f"{package}.{entry.name}")
        elif entry.name.endswith(".py"):
            module = package if entry.name == "__init__.py" else f"{package}.{entry.name.removesuffix('.py')}"
            for mark in _MARK.finditer(entry.read_text(encoding="utf-8")):
                kind, name = mark["kind"] or mark["of"], mark["name"] or mark["called"]
                yield (kind, name), Place(module, mark["attribute"] or mark["constant"])


def _installed() -> Iterator[tuple[tuple[str, str], Place]]:
    for point in entry_points(group=GROUP):
        kind, dot, name = point.name.partition(".")
        package = None if point.dist is None else point.dist.name
        if not dot or kind not in get_args(Kind):
            raise BadInput(
                f"The installed plugin entry {point.name!r} ({point.value}{f' of {package}' if package else ''}) does "
                f"not begin with a kind of plugin; entries are named '<kind>.<name>', with kind one of "
                f"{', '.join(get_args(Kind))}. Update Chainwright if the plugin is newer, or uninstall the plugin."
            )
        module, _, attribute = point.value.partition(":")
        yield (kind, name), Place(module, attribute, package)
