"""The benchmark of tensor parallelism, on a tiny model, so that the script cannot rot."""

import importlib.util
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "tensor_parallel.py"


@pytest.mark.slow
def test_both_ways_return_the_same() -> None:
    spec = importlib.util.spec_from_file_location("tensor_parallel", SCRIPT)
    assert spec is not None and spec.loader is not None
    bench = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(bench)
    found = bench.measure("quick", 2, 1)
    assert len(found.rows) == 6 and all(row["differs"] < 1e-4 for row in found.rows)
    assert found.mib["one"] / 2 < found.mib["ranks"] < found.mib["one"]
    assert bench.table(found).splitlines()[0].split() == ["work", "one", "s", "ranks", "s", "x", "one", "differs"]
