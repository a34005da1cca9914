"""The registry finds what is written in the package without importing it, and takes each name once."""

from __future__ import annotations

import pkgutil
import subprocess
import sys
from importlib import import_module

import pytest

import chainwright
from chainwright import BadInput, _registry
from chainwright._registry import load, names, register


@pytest.fixture(autouse=True)
def forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_registry, "_live", dict(_registry._live))
    monkeypatch.setattr(_registry, "_owners", dict(_registry._owners))


def test_a_name_that_the_running_program_registers_is_found() -> None:
    @register("checker", "sevens")
    def sevens() -> int:
        return 7

    assert "sevens" in names("checker")
    assert load("checker", "sevens") is sevens


def test_a_cell_that_runs_again_replaces_its_own_name() -> None:
    first, second = object(), object()
    register("checker", "again")(first)
    register("checker", "again")(second)
    assert load("checker", "again") is second


def test_two_owners_of_one_name_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    register("checker", "twice")(object())
    monkeypatch.setitem(_registry._owners, ("checker", "twice"), "elsewhere")
    with pytest.raises(BadInput, match="Two things register as checker 'twice', in elsewhere and in test_registry"):
        register("checker", "twice")(object())


def test_an_unknown_kind_or_name_is_refused_with_the_nearest() -> None:
    with pytest.raises(BadInput, match=r"Unknown kind of plugin 'taks'.*Did you mean 'task'"):
        register("taks", "x")  # type: ignore[arg-type]
    with pytest.raises(BadInput, match="Unknown checker 'nosuch'"):
        load("checker", "nosuch")


def test_marks_are_read_off_the_source() -> None:
    source = (
        '@register("repair", "one-way")\n@dataclass\nclass OneWay:\n'
        'TASK = register("task", "stack")(\n    Task(\n'
        'TYPED: Task = register("task", "typed")(Task())\n'
        '@register("finding", "Found")\ndef found():\n'
        '    @register("task", "inner")\n'
    )
    marks = [tuple(filter(None, m.groups())) for m in _registry._MARK.finditer(source)]
    assert marks == [
        ("repair", "one-way", "OneWay"),
        ("TASK", "task", "stack"),
        ("TYPED", "task", "typed"),
        ("finding", "Found", "found"),
    ]


def test_listing_names_imports_no_torch() -> None:
    check = "import sys; from chainwright._registry import names; names('repair'); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_what_registers_when_it_is_imported_is_found_without_importing() -> None:
    for module in pkgutil.walk_packages(chainwright.__path__, "chainwright."):
        if not module.name.endswith("__main__"):
            import_module(module.name)
    ours = {key for key, owner in _registry._owners.items() if owner.startswith("chainwright.")}
    assert ours <= set(_registry._places())


def test_everything_written_in_the_package_can_be_loaded() -> None:
    for kind, name in _registry._places():
        assert load(kind, name) is not None  # type: ignore[arg-type]


class Plugin:
    """An entry point as importlib.metadata gives it."""

    def __init__(self, name: str, value: str):
        self.name, self.value = name, value


def _with(monkeypatch: pytest.MonkeyPatch, *plugins: Plugin) -> None:
    monkeypatch.setattr(_registry, "entry_points", lambda group: plugins)
    monkeypatch.setattr(_registry, "_places", _registry._places.__wrapped__)


def test_entry_points_are_found_and_a_broken_one_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    _with(monkeypatch, Plugin("checker.loads", "json:loads"), Plugin("checker.gone", "no_such_module:x"))
    assert {"gone", "loads"} <= set(names("checker"))
    assert load("checker", "loads")("[1]") == [1]
    with pytest.raises(BadInput, match="plugin for checker 'gone' names no_such_module:x, which cannot be imported"):
        load("checker", "gone")


def test_an_entry_point_without_a_kind_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    _with(monkeypatch, Plugin("loads", "json:loads"))
    with pytest.raises(BadInput, match=r"'loads' .* does not begin with a kind of plugin"):
        names("checker")
