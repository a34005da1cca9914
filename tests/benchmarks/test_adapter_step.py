"""The two ways that the benchmark of a training step compares give one loss."""

import importlib.util
from pathlib import Path

import pytest

from chainwright.lab.chains import Row, chain_loss
from chainwright.lab.lora import Adapter
from families import tiny

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "adapter_step.py"
ROWS = [Row([5, 6, 7, 8, 9], [10, 11]), Row([5, 6, 7, 3, 4, 2], [12, 13, 14]), Row([5, 6, 7, 1], [15])]


def test_both_ways_have_one_loss() -> None:
    spec = importlib.util.spec_from_file_location("adapter_step", SCRIPT)
    bench = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(bench)
    plain, ours = tiny("llama", 0), tiny("llama", 0)
    Adapter(ours, rank=4, alpha=8.0, seed=0)
    want = float(bench.whole_rows(plain, ROWS).detach())
    assert float(chain_loss(ours, ROWS).loss.detach()) == pytest.approx(want, rel=1e-5)
    seconds, loss = bench.step(lambda: chain_loss(ours, ROWS).loss)
    assert seconds >= 0 and loss == pytest.approx(want, rel=1e-5)
