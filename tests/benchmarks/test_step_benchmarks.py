"""The code paths of the step benchmarks, so that the scripts cannot rot."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import load_file

FOLDER = Path(__file__).parents[2] / "benchmarks"


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_step_maps_agree_with_eager_ones(tmp_path: Path) -> None:
    bench = script("step_saliency")
    rows = bench.run_all([160], tmp_path, threads=1)
    lines = bench.table(rows, tmp_path).splitlines()
    assert len(lines) == 3 and lines[2].split()[1] == "Chainwright"
    assert float(lines[2].split()[-1]) < 1e-4
    maps = load_file(tmp_path / "Chainwright-160.safetensors")["maps"]
    assert maps.shape == (4, 7, 7)


def test_decoding_is_timed_with_and_without(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    bench = script("stepflow_decoding")
    threads = torch.get_num_threads()
    options = ["--context", "80", "--new", "4", "--turns", "1", "--width", "256", "--layers", "2"]
    monkeypatch.setattr("sys.argv", ["it", *options])
    bench.main()
    torch.set_num_threads(threads)
    lines = capsys.readouterr().out.splitlines()
    assert [line[:16].strip() for line in lines[2:]] == list(bench.ways(2, None))
    assert lines[1].split() == ["way", "CPU", "ms/token", "x", "plain", "95%", "interval"]
    for line in lines[2:]:
        ratio, low, _, high = line[31:].split()
        assert 0 < float(low) <= float(ratio) <= float(high)


def test_medians_have_intervals_by_rank() -> None:
    median = script("stepflow_decoding").median
    assert median([3.0, 1.0, 2.0]) == (2.0, 1.0, 3.0)
    assert median(range(101)) == (50, 40, 60)


def test_logit_flow_is_measured_beside_its_formula() -> None:
    bench = script("logit_flow")
    rows = bench.run_all("tiny", [2], [12], "cpu", 1)
    assert rows[0]["seconds"] > 0 and rows[0]["pass"] > 0
    assert len(bench.table(rows).splitlines()) == 2


def test_lock_in_is_looked_for_where_chains_fail(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    n_threads = torch.get_num_threads()
    monkeypatch.setattr(
        "sys.argv", ["lock_in.py", "--model", "compass", "--cells", "compass:18", "compass:5", "-n", "12"]
    )
    try:
        script("lock_in").main()
    finally:
        torch.set_num_threads(n_threads)
    lines = [line.split(" | ") for line in capsys.readouterr().out.splitlines()[2:]]
    assert [line[0] for line in lines] == 4 * ["| Compass 18"] + ["| Compass 5"]
    assert [line[3] for line in lines[:4]] == ["0", "1", "2", "3"] and lines[4][2] == "0"
