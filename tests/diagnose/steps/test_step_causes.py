"""Cutting step pairs: effects equal single passes by hand; groups are matched on slot and position."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from chainwright import tasks
from chainwright._errors import BadInput
from chainwright.decode.run import generate
from chainwright.diagnose import compare_steps, step_causes, step_saliency
from chainwright.edits import Cut, CutAttention, edit
from chainwright.models import load_model
from chainwright.scoring import score
from chainwright.traces import Span, Trace
from families import random_ids, tiny


def trace_of(n_tokens: int = 23, seed: int = 0) -> Trace:
    steps = [Span(a, b) for a, b in pairwise([0, 5, 6, 10, 13, 17, n_tokens])]
    return Trace(random_ids(1, n_tokens, seed)[0], steps[0], Span(5, 17), Span(17, n_tokens), steps)


def test_effects_are_what_single_cuts_take_from_the_summary(monkeypatch: pytest.MonkeyPatch) -> None:
    model, traces = tiny("gemma2"), [trace_of(), trace_of(21, 1)]
    monkeypatch.setattr("chainwright.diagnose.steps.causal_check._TOKENS_AT_ONCE", 60)
    found = step_causes(model, traces, n_pairs=12, n_bands=2, seed=4)
    assert found.bands == [[0, 1], [1, 3]] and len(found.pairs) == 12
    for row, (i, step, earlier) in enumerate(found.pairs):
        trace = traces[i]
        for b, band in enumerate(found.bands):
            cut = Cut(tuple(trace.steps[step]), tuple(trace.steps[earlier]))
            own = score(model, trace).logprob[17:].mean()
            with edit(model, CutAttention([cut], range(*band))):
                without = score(model, trace).logprob[17:].mean()
            assert float(found.effect[row, b]) == pytest.approx(float(own - without), abs=2e-5)
            want = step_saliency(model, trace, target="span").map[band[0] : band[1], step, earlier].mean()
            assert float(found.saliency[row, b]) == pytest.approx(float(want), rel=1e-4)
    assert found.summary().startswith("Rank correlation of saliency with causal effect over 12 step pairs: layers 0-0")
    assert found.to_frame().num_rows == 24


def test_pairs_that_matter_are_told_from_the_others() -> None:
    found = step_causes(tiny("llama"), [trace_of(), trace_of(21, 1)], n_pairs=12, n_bands=2, seed=4)
    made = replace(
        found,
        effect=torch.tensor([[0.5, 0.0], [0.02, 0.0], [1e-7, 0.0], [-0.3, 0.0]]),
        saliency=torch.tensor([[4.0, 1.0], [2.0, 2.0], [2.0, 3.0], [1.0, 4.0]]),
    )
    first, second = made.separation().tolist()
    assert first == [2, (1 + 1 + 0.5 + 1) / 4] and second[0] == 0 and second[1] != second[1]
    low, high = found.intervals(n_resamples=20).T
    assert bool((low <= high).all()) and bool((low >= -1).all()) and bool((high <= 1).all())
    alone = step_causes(tiny("llama"), [trace_of()], n_pairs=6)
    assert bool(alone.intervals().isnan().all())


def test_what_cannot_be_cut_is_refused() -> None:
    model, trace = tiny("llama"), trace_of()
    with pytest.raises(BadInput, match="got 0 traces"):
        step_causes(model, [])
    with pytest.raises(BadInput, match="1 to 3 bands of layers; got 1 traces, n_pairs=40 and n_bands=4"):
        step_causes(model, [trace], n_bands=4)
    unfinished = Trace(trace.input_ids, trace.question, Span(5, 23), Span(23, 23), [*trace.steps[:4], Span(13, 23)])
    with pytest.raises(BadInput, match="Trace 1 has no summary"):
        step_causes(model, [trace, unfinished])


@pytest.fixture(scope="module")
def judged():
    model, tokenizer = load_model("reasoner")
    traces = generate(model, tokenizer, tasks.sample("clf", 13, 24, seed=11, rendering="short"), progress=False)
    return traces, step_saliency(model, traces)


def test_partners_fill_the_same_slot_at_the_same_place(judged) -> None:
    traces, maps = judged
    found = compare_steps(traces, maps, max_distance=2, n_resamples=50)
    n_wrong = sum(trace.first_error is not None for trace in traces)
    assert 0 < len(found.right) <= n_wrong and len(found.right) + found.n_unmatched == n_wrong
    assert len(found.rows) == 3 * 4 and "matched on slot and position" in found.summary()
    for row in found.rows:
        assert -1 <= row["low"] <= row["effect"] <= row["high"] <= 1 and 0 <= row["p"] <= 1
    row = next(r for r in found.rows if r["measure"] == "on_question" and r["layer"] == 1)
    a, b = found.right[:, 1, 2], found.wrong[:, 1, 2]
    assert row["right"] == pytest.approx(float(a.mean()))
    signs = torch.sign(b[:, None] - a[None])
    assert row["effect"] == pytest.approx(float(signs.mean()))
    assert row["u"] == pytest.approx(float((signs > 0).sum() + 0.5 * (signs == 0).sum()))


def test_groups_without_partners_are_refused(judged) -> None:
    traces, maps = judged
    with pytest.raises(BadInput, match="one step map per trace; got 0 maps"):
        compare_steps(traces, [])
    with pytest.raises(BadInput, match="pass traces that have one"):
        compare_steps([replace(traces[0], problem=None)], maps[:1])
    wrong = [i for i, trace in enumerate(traces) if trace.first_error is not None]
    with pytest.raises(BadInput, match="No wrong trace has a right partner"):
        compare_steps([traces[i] for i in wrong], [maps[i] for i in wrong])
