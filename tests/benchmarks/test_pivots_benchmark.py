"""The benchmark's own code path, on one task and on made-up values, so that the script cannot rot."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "pivots.py"


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    spec = importlib.util.spec_from_file_location("pivots_benchmark", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_simulation_counts_what_is_right(
    bench: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench, "N_RUNS", 3)
    bench.main(["--simulate"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 + len(bench.PROFILES)
    clean = [cell.strip() for cell in lines[2].strip("|").split("|")]
    assert clean[:6] == ["falls from 1 to 0", "100%", "0%", "100%", "100%", "100%"]


@pytest.mark.slow
def test_every_way_searches_the_same_responses(bench: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    bench.main(["--tasks", "llc", "--n", "1", "--fixed", "2", "3"])
    out = capsys.readouterr().out
    for way in ("2 per step end", "3 per step end", "sequential", "gold chain"):
        assert f"| {way} | 1 |" in out
    assert out.count("CPU seconds") == 2
