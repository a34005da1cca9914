"""The names that the package exports are there, and are what they say."""

from __future__ import annotations

import subprocess
import sys

import chainwright
import public_names


def test_every_public_name_can_be_had_and_has_a_docstring() -> None:
    for name in chainwright.__all__:
        assert getattr(chainwright, name).__doc__, name


def test_every_public_name_of_every_public_module_has_a_docstring() -> None:
    assert len(public_names.public_modules()) > 15 and len(public_names.documented_in()) > 250
    assert public_names.undocumented() == []


def test_a_name_without_a_docstring_would_be_found() -> None:
    assert public_names.docstring("chainwright.checkers.patterns._DIGITS") is None
    assert public_names.docstring("chainwright.tasks.base.UNPARSED")


def test_names_are_the_same_in_whatever_order_they_are_asked_for() -> None:
    check = (
        "import chainwright.studies.diagnosis.run, chainwright as c; print(callable(c.evaluate), callable(c.capture))"
    )
    command = [sys.executable, "-c", check]
    assert subprocess.run(command, capture_output=True, text=True).stdout.split() == ["True", "True"]


def test_an_unknown_name_is_an_attribute_error() -> None:
    try:
        chainwright.no_such_name  # noqa: B018
    except AttributeError as error:
        assert "no_such_name" in str(error)
    else:
        raise AssertionError("no error")
