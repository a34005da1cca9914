"""The benchmark's own code path, without the other tools, so that the script cannot rot."""

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest
import torch

from chainwright.reproduce.back_attention.cost import CostSettings, back_cost

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "knockout_sweep.py"


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    spec = importlib.util.spec_from_file_location("knockout_sweep", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_way_of_our_own_agrees_with_plain_hooks(bench: ModuleType, tmp_path: Path) -> None:
    bench.make_case(tmp_path, quick=True)
    ours = [way for way in bench.WAYS if way not in bench.OTHERS]
    found = {}
    for way in ours:
        bench.run_one(way, tmp_path, threads=1)
        one = json.loads((tmp_path / f"{way}.json").read_text())
        assert one["seconds"] > 0 and one["peak_mib"] > 0
        cpu, wall = [one["cpu_seconds"]], [one["seconds"]]
        found[way] = {"seconds": wall, "cpu_seconds": cpu, "peak_mib": one["peak_mib"], "failed": None}
    found["nnsight"] = {"seconds": [], "cpu_seconds": [], "peak_mib": 0.0, "failed": "No module named 'nnsight'"}
    lines = bench.table(found, tmp_path).splitlines()
    assert lines[0].split() == "way CPU s wall s x plain x tool x any MiB disagrees".split()
    assert lines[-2].split(maxsplit=1) == ["nnsight", "cannot run: No module named 'nnsight'"]
    by_way = {line[:38].strip(): line[38:].split() for line in lines[1:-1]}
    for way in (bench.PLAIN_CUT, bench.EXACT, bench.LAST):
        assert float(by_way[way][-1]) <= 1e-5, way
    assert lines[-1].startswith("largest effect: ")


def test_recall_is_said_for_three_models(bench: ModuleType, tmp_path: Path) -> None:
    lines = bench.recall_table(tmp_path, quick=True).splitlines()
    assert len(lines) == 1 + 3 * len(bench.ESTIMATES)
    for line in lines[1:]:
        assert all(0 <= float(recall) <= 1 for recall in line[44:62].split())


def test_recall_counts_the_ten_largest_of_each_row(bench: ModuleType) -> None:
    exact = torch.arange(40.0).reshape(2, 4, 5)
    assert bench.recall_at_10(exact, exact) == 1.0
    assert bench.recall_at_10(-exact, exact) == 0.0
    moved = exact.clone()
    moved[0, 3, 4] = -1.0  # one of the ten of the first row
    assert bench.recall_at_10(moved, exact) == pytest.approx(0.95)


def test_a_way_that_cannot_run_is_named_with_its_reason(
    bench: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "__file__", str(tmp_path / "missing.py"))
    found = bench.run_all([bench.PLAIN], tmp_path, repeats=1, threads=1)
    assert "missing.py" in found[bench.PLAIN]["failed"]
    assert "cannot run: " in bench.table(found, tmp_path)


def test_the_cost_of_back_attention_is_set_beside_the_formula() -> None:
    script = SCRIPT.parent / "back_attention.py"
    spec = importlib.util.spec_from_file_location("back_attention_bench", script)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    settings = CostSettings(layers=2, d_model=32, d_back=4, tokens=8, new=2, repeats=1, sources=(0, 1))
    rows = back_cost(settings)
    assert [row["source"] for row in rows] == ["none", 0, 1] and [row["formula"] for row in rows] == [1.0, 2.0, 1.5]
    for row in rows:
        assert row["token ratio"] == pytest.approx(row["token ms"] / rows[0]["token ms"])
        assert row["token / formula"] == pytest.approx(row["token ratio"] / row["formula"])
    lines = module.table(rows)
    assert len(lines) == 5 and lines[3].startswith("| 0 | ")
