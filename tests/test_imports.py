"""The rooms of the package and what they import; the order of the layers is in pyproject.toml (`lint-imports`)."""

from __future__ import annotations

from functools import cache

import grimp
import pytest

LAZY = (
    "chainwright",
    "chainwright.diagnose",
    "chainwright.repair",
    "chainwright.evaluation",
    "chainwright.prompts",
    "chainwright.decode",
)


@cache
def graph() -> grimp.ImportGraph:
    return grimp.build_graph("chainwright", exclude_type_checking_imports=True, cache_dir=None)


@pytest.mark.parametrize("package", LAZY)
def test_nothing_inside_imports_from_a_lazy_package(package):
    """Inside, names come from the module that defines them: a lazy package would hide which way imports point."""
    assert graph().find_modules_that_directly_import(package) == set()
