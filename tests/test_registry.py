"""The registry finds what is written in the package without importing it, and takes each name once."""

from __future__ import annotations

import json
import pkgutil
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from types import SimpleNamespace

import pytest

import chainwright
from chainwright import BadInput, _registry
from chainwright._finding import Finding
from chainwright._registry import load, names, register
from chainwright.edits import Edit
from chainwright.repair.base import Repair
from chainwright.repair.tcr.detector import EntropyDetector
from chainwright.studies.plan import Plan


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

    def __init__(self, name: str, value: str, dist: object = None):
        self.name, self.value, self.dist = name, value, dist


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


@pytest.mark.parametrize(
    ("kind", "base", "name_of"),
    [
        ("finding", Finding, lambda thing: thing.__name__),
        ("repair", Repair, lambda thing: thing.kind),
        ("study", Plan, lambda thing: thing.kind),
    ],
)
def test_classes_are_registered_under_the_name_that_they_are_saved_by(
    kind: _registry.Kind, base: type, name_of: Callable[[type], str]
) -> None:
    things = _registry.load_all(kind)
    assert things and all(issubclass(thing, base) and name_of(thing) == name for name, thing in things.items())


def test_edits_are_registered_under_their_names() -> None:
    edits = _registry.load_all("edit")
    assert {"attend-back", "bridge", "cut-attention", "knock-out", "momentum"} <= edits.keys()
    assert all(issubclass(edit, Edit) for edit in edits.values())


def test_loading_one_name_imports_only_its_module() -> None:
    check = (
        "import sys; from chainwright._registry import load; load('finding', 'Accuracy'); "
        "print([m for m in sys.modules if m.startswith(('chainwright.repair', 'chainwright.diagnose'))])"
    )
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_names_and_sources_lead_back() -> None:
    assert _registry.name_of("detector", EntropyDetector) == "entropy"
    assert _registry.name_of("detector", object) is None
    assert _registry.source_of("detector", "entropy") is None

    @register("detector", "of this file")
    class Own:
        pass

    assert _registry.name_of("detector", Own) == "of this file"
    assert _registry.source_of("detector", "of this file") == "test_registry"


def test_the_source_of_a_plugin_is_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    package = SimpleNamespace(name="some-package")
    _with(
        monkeypatch, Plugin("checker.loads", "json:loads", package), Plugin("checker.JSONDecoder", "json:JSONDecoder")
    )
    assert _registry.source_of("checker", "loads") == "some-package"
    assert _registry.name_of("checker", json.loads) == "loads"


def test_what_a_saved_thing_lacks_is_named_with_its_package() -> None:
    assert _registry.load_saved("detector", "entropy", None, "It") is EntropyDetector
    with pytest.raises(BadInput, match="It needs the detector 'spikes' of chainwright-spikes, which is not registered"):
        _registry.load_saved("detector", "spikes", "chainwright-spikes", "It")
