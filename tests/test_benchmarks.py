"""The benchmark's own code path, without the other tools, so that the script cannot rot."""

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "knockout_sweep.py"


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
        found[way] = {"seconds": [one["seconds"]], "peak_mib": one["peak_mib"], "failed": None}
    found["nnsight"] = {"seconds": [], "peak_mib": 0.0, "failed": "No module named 'nnsight'"}
    lines = bench.table(found, tmp_path).splitlines()
    assert lines[0].split() == "way seconds x plain x fastest MiB disagrees recall@10".split()
    assert lines[-1].split(maxsplit=1) == ["nnsight", "cannot run: No module named 'nnsight'"]
    by_way = {line[:38].strip(): line[38:].split() for line in lines[1:]}
    for way in (bench.PLAIN_CUT, bench.EXACT, bench.LAST):
        assert float(by_way[way][4]) <= 1e-5, way


def test_a_way_that_cannot_run_is_named_with_its_reason(
    bench: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "__file__", str(tmp_path / "missing.py"))
    found = bench.run_all([bench.PLAIN], tmp_path, repeats=1, threads=1)
    assert "missing.py" in found[bench.PLAIN]["failed"]
    assert "cannot run: " in bench.table(found, tmp_path)
