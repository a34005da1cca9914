"""Bridge masses equal sums of the whole attention map; groups are taken where the first wrong token is decided."""

import pytest
import torch

from chainwright import tasks
from chainwright._errors import BadInput
from chainwright.decode.run import generate
from chainwright.diagnose import BridgeGroups, bridge_mass, compare_bridges
from chainwright.models import load_model
from chainwright.models.capture import capture
from chainwright.repair import ChosenLayers, StepFlow, choose_heads, choose_layers
from chainwright.repair.stepflow.planted_lock_in import PlantedLockIn
from chainwright.traces import Span, Trace
from families import random_ids, tiny


@pytest.mark.parametrize("family", ["llama", "mistral", "gpt_oss", "gemma2", "gpt2"])
def test_masses_are_sums_of_the_attention_map(family: str) -> None:
    model, ids = tiny(family), random_ids(1, 19)[0]
    trace = Trace(ids, Span(0, 5), Span(5, 14), Span(14, 19), [Span(0, 5), Span(5, 14), Span(14, 19)])
    masses = bridge_mass(model, trace)
    attention = capture(model, ids[None], attention=True).attention[:, 0].float()
    torch.testing.assert_close(masses[..., 5:14], attention[:, :, 5:14, :5].sum(-1), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(masses[..., 14:], attention[:, :, 14:, 5:14].sum(-1), rtol=1e-4, atol=1e-6)
    assert bool(masses[..., :5].isnan().all())


def test_a_summary_without_thinking_builds_on_nothing() -> None:
    ids = random_ids(1, 9)[0]
    trace = Trace(ids, Span(0, 4), Span(4, 4), Span(4, 9), [Span(0, 4), Span(4, 9)])
    assert bool(bridge_mass(tiny("llama"), trace).isnan().all())


@pytest.fixture(scope="module")
def judged():
    model, tokenizer = load_model("reasoner")
    traces = generate(model, tokenizer, tasks.sample("clf", 13, 24, seed=11, rendering="short"), progress=False)
    return model, traces, [bridge_mass(model, trace) for trace in traces]


def test_pairs_are_read_where_the_first_wrong_token_is_decided(judged) -> None:
    _, traces, masses = judged
    found = compare_bridges(traces, masses, max_distance=2)
    n_wrong = sum(trace.first_error is not None for trace in traces)
    assert 0 < len(found.right) and len(found.right) + found.n_unmatched == n_wrong
    deciding = [
        masses[i][..., trace.first_error_position - 1]
        for i, trace in enumerate(traces)
        if trace.first_error is not None
    ]
    assert all(any(torch.equal(one, other) for other in deciding) for one in found.wrong)
    row = next(row for row in found.rows if row["segment"] == "thinking" and row["layer"] == 2)
    right, wrong = found.of("thinking")
    assert row["n"] == len(right)
    assert row["difference"] == pytest.approx(float((wrong - right)[:, 2].mean()), abs=1e-6)
    assert row["low"] <= row["difference"] <= row["high"] and 0 <= row["p"] <= 1
    assert "pairs matched on slot and position" in found.summary()
    with pytest.raises(BadInput, match="one tensor of masses per trace; got 0 for 24"):
        compare_bridges(traces, [])


def test_planted_lock_in_is_found_in_its_layer_and_nothing_without_it() -> None:
    model, tokenizer = load_model("reasoner")
    problems = tasks.sample("clf", 8, 30, seed=21, rendering="short")
    planted = PlantedLockIn(StepFlow((), ()), 2, 8.0)
    right = [t for t in generate(model, tokenizer, problems, progress=False) if t.first_error is None]
    wrong = [
        t for t in generate(model, tokenizer, problems, repair=planted, progress=False) if t.first_error is not None
    ]
    masses = []
    for trace in wrong:
        with planted.scoring(model, [trace]):
            masses.append(bridge_mass(model, trace))
    masses += [bridge_mass(model, trace) for trace in right]
    groups = compare_bridges([*wrong, *right], masses, whole=True)
    chosen = choose_layers(groups)
    assert chosen.bridge == (2,) and chosen.momentum == () and 0.05 < chosen.floors[0] < 0.9
    repaired = generate(model, tokenizer, problems, repair=PlantedLockIn(StepFlow(*chosen), 2, 8.0), progress=False)
    assert sum(t.first_error is not None for t in repaired) < len(wrong) / 2
    same = BridgeGroups(right=groups.right, wrong=groups.right, segments=groups.segments, rows=[], n_unmatched=0)
    assert choose_layers(same) == ChosenLayers((), (), ())


def groups_of(right: torch.Tensor, wrong: torch.Tensor, segment: str) -> BridgeGroups:
    return BridgeGroups(right=right, wrong=wrong, segments=[segment] * len(right), rows=[], n_unmatched=0)


def test_layers_are_chosen_where_wrong_masses_are_lower() -> None:
    generator = torch.Generator().manual_seed(0)
    right = 0.5 + 0.1 * torch.rand(40, 4, 3, generator=generator)
    wrong = right.clone()
    wrong[:, 1] -= 0.3
    wrong[:, 2] += 0.05 * torch.randn(40, 3, generator=generator)
    wrong[:, 3] -= 0.1  # significant, but little beside layer 1
    chosen = choose_layers(groups_of(right, wrong, "thinking"))
    floor = float(right.mean(-1)[:, 1].quantile(0.75))
    assert chosen.bridge == (1,) and chosen.momentum == () and chosen.floors == (pytest.approx(floor, abs=1e-4),)
    assert choose_layers(groups_of(right, wrong, "summary")) == ((), (1,), ())
    assert choose_layers(groups_of(right[:3], wrong[:3], "thinking")) == ((), (), ())  # three pairs prove nothing
    assert choose_layers(groups_of(wrong, right, "thinking")) == ((), (), ())
    with pytest.raises(BadInput, match=r"significance must lie between 0 and 1; got 1\.5"):
        choose_layers(groups_of(right, wrong, "thinking"), significance=1.5)


def test_heads_are_chosen_one_by_one_with_floors_of_their_own() -> None:
    generator = torch.Generator().manual_seed(3)
    right = 0.4 + 0.02 * torch.rand(40, 3, 4, generator=generator)
    wrong = right + 0.02 * (torch.rand(40, 3, 4, generator=generator) - 0.5)
    wrong[:, 1, 2] -= 0.2
    wrong[:, 2, 0] -= 0.15
    wrong[:, 0, 3] -= 0.05  # lacks less than half as much as L1H2
    chosen = choose_heads(groups_of(right, wrong, "thinking"))
    floors = {(layer, head): floor for layer, head, floor in chosen}
    assert set(floors) == {(1, 2), (2, 0)}
    assert floors[1, 2] == pytest.approx(float(right[:, 1, 2].quantile(0.75)), abs=1e-3)
    assert choose_heads(groups_of(wrong, right, "thinking")) == ()
    assert choose_heads(groups_of(right, wrong, "summary")) == ()
    assert StepFlow(None, (), bridge_heads=chosen).layers(3) == ((1, 2), ())
    with pytest.raises(BadInput, match=r"significance must lie between 0 and 1; got 0"):
        choose_heads(groups_of(right, wrong, "thinking"), significance=0)
