"""The benchmark of the server runs, and its texts agree; its figures are not looked at."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from chainwright import load_model

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "server.py"


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    spec = importlib.util.spec_from_file_location("server_benchmark", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_requests_have_every_repair_and_none(bench: ModuleType) -> None:
    requests = bench.mixed(10)
    assert {request["model"] for request in requests} == {"reasoner" + name for name in bench.NAMES}
    assert len({request["prompt"] for request in requests}) == 10


def test_one_call_of_generate_gives_a_text_for_each_request(bench: ModuleType) -> None:
    requests = bench.plain(3, 4)
    texts = bench.generated(*load_model("reasoner"), requests)
    assert len(texts) == 3 and all(text.startswith("start ") for text in texts)


@pytest.mark.slow
def test_the_table_compares_every_text(bench: ModuleType) -> None:
    text = bench.table(5, 4, 1, n_new=10)
    assert "5 of 5 texts equal" in text and "4 of 4 texts equal" in text
