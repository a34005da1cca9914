"""The benchmark of the logit flow's ranking, on a tiny model, so that the script cannot rot."""

import importlib.util
from pathlib import Path

import pytest

from chainwright import load_model

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "flow_ranking.py"


def test_both_ways_name_the_same_neurons() -> None:
    spec = importlib.util.spec_from_file_location("flow_ranking", SCRIPT)
    assert spec is not None and spec.loader is not None
    bench = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(bench)
    model, tokenizer = load_model("world")
    row = bench.compare(model, tokenizer, "vupi mother", "fine", 20)
    assert row["differ"] == 0 and row["off"] < 1e-4
    assert 40 <= row["measured"] < row["neurons"]
    assert row["flow, in full s"] - row["flow s"] == pytest.approx(row["full s"] - row["bounds s"])
    head, line = bench.table([row]).splitlines()
    assert head.split()[:3] == ["prompt", "neurons", "measured"] and line.startswith("vupi mother")
    assert bench.same({(1,): 2.0, (2,): 1.0}, {(1,): 2.5, (3,): 1.0}) == (2, 0.5)
