"""The benchmark of decoding with TCR: its ways decide the same tokens, and its clock sees each of them."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from chainwright.repair import TCR, TCRConfig
from chainwright.repair.tcr.selector import RandomSelector
from families import random_ids, tiny

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "tcr_decoding.py"


def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("tcr_decoding", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("n_rows", [1, 2])
def test_prefixes_run_again_decide_the_same_tokens(n_rows) -> None:
    bench = script()
    model, ids = tiny("llama"), random_ids(n_rows, 40)
    heads = [(layer, head) for layer in range(3) for head in range(2)]
    repair = TCR(heads, RandomSelector(6), bench.EveryFiftieth(), config=TCRConfig(n_votes=3))
    decode = bench.decoding(model, ids, 14)
    cached, again = bench.Way(repair), bench.Way(repair, bench.PrefixesAgain)
    plain = bench.Way(None)
    for way in (plain, cached, again, cached):
        way.run(0, decode)
    assert cached.written == again.written and cached.n_flagged == again.n_flagged == n_rows
    assert plain.n_flagged == plain.n_extra == 0 and again.n_extra == 3 * 50 * n_rows
    assert plain.n_tokens == 14 * n_rows and len(plain.seconds[0]) == 15
    assert min(cached.seconds[0]) >= 0


def test_the_vote_of_another_model_looks_at_uncertain_tokens_alone() -> None:
    bench = script()
    model, ids = tiny("llama"), random_ids(1, 12)
    repair = bench.vote_of(model)
    assert repair.positions == "last" and repair.detector.tau == 0.3
    decode = bench.decoding(model, ids, 6)
    plain, idle, voting = bench.Way(None), bench.Way(bench.never_flagging(repair)), bench.Way(repair)
    for way in (plain, idle, voting):
        way.run(0, decode)
    assert idle.written == plain.written and idle.n_flagged == 0
    # a random model is uncertain everywhere; each flag asks three heads for one token
    assert voting.n_flagged == 6 and voting.n_extra == 3 * 6
