"""From a name to a checker: registered ones, and functions of the user's own.

A function has one of two names: "folder/file.py:function" or "package.module:function". A function that is passed as
it is gets the second kind of name, and is found by it as long as this program runs, wherever it was written.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from importlib import import_module, util
from itertools import count
from pathlib import Path
from typing import Any

from chainwright import _registry
from chainwright._errors import BadInput, unknown_name
from chainwright.checkers._function import FunctionChecker
from chainwright.checkers.base import Checker

_loaded: dict[str, Checker] = {}


def names() -> list[str]:
    """Return the names of all registered checkers, sorted."""
    return _registry.names("checker")


def load(name: str) -> Checker:
    """Return the checker of a name, the same object every time.

    Args:
        name: A registered name, "file.py:function", or "package.module:function".

    Raises:
        BadInput: No such checker, file, module or function, or something that is none.
    """
    checker = _loaded.get(name)
    if checker is None:
        checker = _loaded[name] = _as_checker(name, _thing(name))
    return checker


def name_of(checker: str | Checker | Callable[..., Any]) -> str:
    """Return the name under which `load` finds a checker; a function of the running program is remembered by it.

    Raises:
        BadInput: It is no name, function or checker.
    """
    if isinstance(checker, str):
        load(checker)
        return checker
    if isinstance(checker, Checker) or (isinstance(checker, type) and issubclass(checker, Checker)):
        kind = checker if isinstance(checker, type) else type(checker)
        name = _registry.name_of("checker", kind) or f"{kind.__module__}:{kind.__qualname__}"
    elif callable(checker):
        module = getattr(checker, "__module__", None) or "__main__"
        name = _free_name(f"{module}:{getattr(checker, '__qualname__', type(checker).__name__)}", checker)
    else:
        raise BadInput(
            f"A checker is a name ({', '.join(names())}), a function of (response, answer) or a Checker; got "
            f"{checker!r}."
        )
    _loaded[name] = _as_checker(name, checker)
    return name


def _free_name(name: str, function: Callable[..., Any]) -> str:
    """Return a name that no other function has: two lambdas of a module are called the same.

    A function of a module's top level replaces an earlier one of its name, as where a cell of a notebook runs again.
    """
    is_top_level = "<" not in name and hasattr(function, "__qualname__")
    numbered = (f"{name}#{i}" if i > 1 else name for i in count(1))
    return next(each for each in numbered if is_top_level or _function_of(each) in (None, function))


def _function_of(name: str) -> Any:
    return getattr(_loaded.get(name), "function", None)


def _as_checker(name: str, thing: Any) -> Checker:
    if isinstance(thing, type) and issubclass(thing, Checker):
        return thing()
    if isinstance(thing, Checker):
        return thing
    if callable(thing) and not isinstance(thing, type):
        return FunctionChecker(name, thing)
    raise BadInput(f"The checker {name!r} is a {type(thing).__name__}; it must be a function or a Checker.")


def _thing(name: str) -> Any:
    """Return what a name leads to."""
    place, colon, attribute = name.rpartition(":")
    if not colon or name in names():
        if name not in names():
            error = unknown_name("checker", name, names())
            raise BadInput(f"{error} A function of your own is named 'file.py:function' or 'package.module:function'.")
        return _registry.load("checker", name)
    if not place or not attribute:
        raise BadInput(f"A checker's function is named 'file.py:function' or 'package.module:function'; got {name!r}.")
    module = _module_of_file(Path(place)) if place.endswith(".py") else _module(place, name)
    thing: Any = module
    for part in attribute.split("."):
        thing = getattr(thing, part, None)
    if thing is None:
        raise BadInput(f"There is no {attribute!r} in {place}, which the checker {name!r} names.")
    return thing


def _module_of_file(path: Path) -> Any:
    if not path.is_file():
        raise BadInput(f"There is no file {path}, which the checker names; give its path as 'file.py:function'.")
    spec = util.spec_from_file_location(f"_checker_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses in it look their module up
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # whatever the user's file does
        raise BadInput(f"{path} cannot be imported for its checker: {type(error).__name__}: {error}.") from error
    return module


def _module(place: str, name: str) -> Any:
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.append(os.getcwd())  # a module beside the notebook or in the working folder
    try:
        return import_module(place)
    except Exception as error:  # whatever importing the user's module does
        raise BadInput(
            f"The module of the checker {name!r} cannot be imported: {type(error).__name__}: {error}."
        ) from error
