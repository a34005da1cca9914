"""Evidence and alternatives on traces of the bundled reasoner, against other ways to the same numbers."""

import math
from pathlib import Path

import pytest
import torch

from chainwright import tasks
from chainwright._errors import BadInput
from chainwright._finding import Finding
from chainwright.decode.run import generate
from chainwright.diagnose import (
    Alternatives,
    HeadEvidence,
    RoleFinding,
    alternatives,
    correct_contexts,
    erroneous_contexts,
    first_errors,
    head_evidence,
    head_roles,
)
from chainwright.diagnose.heads.evidence import named_heads
from chainwright.diagnose.other_tokens import score_with_alternatives
from chainwright.edits import KnockOut, edit
from chainwright.models.load import LoadedModel, load_model
from chainwright.scoring import TokenScores, score_all
from chainwright.traces import Trace
from reference import assert_close


@pytest.fixture(scope="module")
def reasoner() -> LoadedModel:
    return load_model("reasoner")


@pytest.fixture(scope="module")
def traces(reasoner: LoadedModel) -> list[Trace]:
    return generate(*reasoner, tasks.sample("parity", 13, 40), progress=False)


@pytest.fixture(scope="module")
def scores(reasoner: LoadedModel, traces: list[Trace]) -> list[TokenScores]:
    return score_all(reasoner.model, traces)


@pytest.fixture(scope="module")
def found(reasoner: LoadedModel, traces: list[Trace]) -> RoleFinding:
    kind = first_errors(traces).key_types["parity"][0]
    wrong = erroneous_contexts(reasoner.tokenizer, traces, "parity", kind, 64).take(slice(0, None, 2))
    right = correct_contexts(traces, wrong, 6)
    return RoleFinding.of("parity", kind, head_roles(reasoner.model, right, wrong))


@pytest.fixture(scope="module")
def evidence(reasoner: LoadedModel, traces: list[Trace], found: RoleFinding) -> HeadEvidence:
    return head_evidence(*reasoner, traces, found, n_heads=5)


def test_the_whole_model_says_what_it_wrote(
    evidence: HeadEvidence, traces: list[Trace], scores: list[TokenScores]
) -> None:
    for i, (trace, at) in enumerate(evidence.sites):
        assert int(evidence.top_ids[i, 0, 0]) == int(traces[trace].input_ids[at])
        assert math.log(evidence.p_top[i, 0, 0]) == pytest.approx(float(scores[trace].logprob[at]), abs=1e-4)
        assert bool(evidence.is_right[i, 0]) != bool(evidence.is_erroneous[i])


def test_without_a_head_it_says_what_a_plain_knockout_says(
    reasoner: LoadedModel, evidence: HeadEvidence, traces: list[Trace]
) -> None:
    trace, at = evidence.sites[0]
    for k, (layer, head) in enumerate(evidence.heads, start=1):
        with edit(reasoner.model, KnockOut({(layer, head)})), torch.no_grad():
            probs = reasoner.model(input_ids=traces[trace].input_ids[None, :at]).logits[0, -1].softmax(-1)
        assert_close(evidence.p_top[0, k], probs.topk(5).values, "p_top")
        assert evidence.top_ids[0, k].tolist() == probs.topk(5).indices.tolist()
        assert float(evidence.p_right[0, k]) == pytest.approx(float(probs[evidence.right_ids[0]]), abs=1e-5)


def test_roles_keep_what_each_head_does_in_each_context(evidence: HeadEvidence, found: RoleFinding) -> None:
    roles = found
    assert roles.first_erroneous is not None and roles.p_right is not None and roles.right_erroneous is not None
    assert_close(
        (roles.first_erroneous == roles.right_erroneous[:, None, None]).float().mean(0), roles.corrected, "fixed"
    )
    gains = (roles.p_right - roles.p_right_whole[:, None, None]).mean(0)
    assert_close(gains, roles.rectification, "gains")
    for i, site in enumerate(roles.sites_erroneous):
        row = evidence.sites.index(site)
        for k, (layer, head) in enumerate(evidence.heads, start=1):
            assert int(evidence.top_ids[row, k, 0]) == int(roles.first_erroneous[i, layer, head])
            assert float(evidence.p_right[row, k]) == pytest.approx(float(roles.p_right[i, layer, head]), abs=1e-4)


def test_seen_and_held_out_contexts_are_told_apart(evidence: HeadEvidence, found: RoleFinding) -> None:
    wrong = [site for site, is_wrong in zip(evidence.sites, evidence.is_erroneous, strict=True) if is_wrong]
    seen = [site for site, is_seen in zip(evidence.sites, evidence.is_seen, strict=True) if is_seen]
    assert [site for site in wrong if site in seen] == sorted(found.sites_erroneous)
    rows = evidence.counts(seen=True)
    best = found.best_head
    assert (rows[0]["layer"], rows[0]["head"]) == best
    assert rows[0]["n_fixed"] == round(float(found.corrected[best]) * found.n_erroneous)
    held_out = evidence.counts(seen=False)[0]
    assert held_out["n_erroneous"] == len(wrong) - found.n_erroneous
    assert f"{held_out['n_fixed']} of {held_out['n_erroneous']} wrong contexts held out" in evidence.summary()


def test_named_heads_are_different_and_begin_with_the_best(found: RoleFinding) -> None:
    heads = named_heads(found, 8)
    assert len({tuple(head) for head in heads}) == len(heads) == 8
    assert heads[0] == list(found.best_head)
    assert heads[1] == found.erroneous_processing[0] or heads[0] == found.erroneous_processing[0]


def test_findings_come_back_from_disk_as_they_were(evidence: HeadEvidence, tmp_path: Path) -> None:
    evidence.save(tmp_path / "evidence")
    read = Finding.load(tmp_path / "evidence")
    assert isinstance(read, HeadEvidence)
    assert read.to_frame().equals(evidence.to_frame())
    assert read.to_frame().num_rows == len(evidence.sites) * 6


def test_numbers_below_one_are_refused(reasoner: LoadedModel, traces: list[Trace], found: RoleFinding) -> None:
    with pytest.raises(BadInput, match="n_heads must be at least 1; got 0"):
        head_evidence(*reasoner, traces, found, n_heads=0)
    with pytest.raises(BadInput, match="got 0 traces"):
        alternatives(*reasoner, [])


@pytest.fixture(scope="module")
def others(reasoner: LoadedModel, traces: list[Trace]) -> Alternatives:
    return alternatives(*reasoner, traces)


def test_alternatives_stand_at_every_slot_and_wherever_the_model_was_unsure(
    others: Alternatives, traces: list[Trace], scores: list[TokenScores]
) -> None:
    places = set(zip(others.trace.tolist(), others.position.tolist(), strict=True))
    for i, (trace, own) in enumerate(zip(traces, scores, strict=True)):
        wanted = {slot.start for slot in trace.slots if slot.end > slot.start}
        after = range(trace.response_start, len(trace))
        wanted |= {at for at in after if own.entropy[at] >= 0.1001 or own.argmax[at] != trace.input_ids[at]}
        kept = {at for trace_at, at in places if trace_at == i}
        assert wanted <= kept
        assert all(at in wanted or own.entropy[at] >= 0.0999 for at in kept)


def test_alternatives_agree_with_the_scores(
    others: Alternatives, traces: list[Trace], scores: list[TokenScores]
) -> None:
    for i, (trace, at) in enumerate(zip(others.trace.tolist(), others.position.tolist(), strict=True)):
        assert int(others.top_ids[i, 0]) == int(scores[trace].argmax[at])
        own = int(traces[trace].input_ids[at])
        if own in others.top_ids[i].tolist():
            rank = others.top_ids[i].tolist().index(own)
            assert math.log(others.p_top[i, rank]) == pytest.approx(float(scores[trace].logprob[at]), abs=1e-3)
        if int(others.expected_ids[i]) == own:
            assert math.log(others.p_expected[i]) == pytest.approx(float(scores[trace].logprob[at]), abs=1e-3)


def test_alternatives_are_those_of_each_trace_alone_and_cost_no_pass_of_their_own(
    reasoner: LoadedModel, traces: list[Trace]
) -> None:
    model, some = reasoner.model, traces[:5]
    assert len({len(trace) for trace in some}) > 1, "rows are padded"
    passes: list[str] = []
    watching = model.get_decoder().register_forward_hook(lambda *_: passes.append("a pass"))
    plain = score_all(model, some)
    n_plain = len(passes)
    scores, found = score_with_alternatives(*reasoner, some, n_top=3)
    watching.remove()
    assert n_plain > 0 and len(passes) == 2 * n_plain
    for own, alone in zip(scores, plain, strict=True):
        assert torch.equal(own.argmax, alone.argmax) and torch.equal(own.logprob[1:], alone.logprob[1:])
    for i, trace in enumerate(some):
        with torch.no_grad():
            probs = model(trace.input_ids[None]).logits[0].softmax(-1)
        mine = found.trace == i
        best = probs[found.position[mine] - 1].topk(3)
        torch.testing.assert_close(found.p_top[mine], best.values, rtol=0, atol=1e-5)


def test_at_a_first_error_the_expected_token_is_another(others: Alternatives, traces: list[Trace]) -> None:
    places = {place: i for i, place in enumerate(zip(others.trace.tolist(), others.position.tolist(), strict=True))}
    n_known = 0
    for i, trace in enumerate(traces):
        if trace.first_error_position is None or trace.first_error is None:
            continue
        place = places[i, trace.first_error_position]
        expected = int(others.expected_ids[place])
        if expected >= 0:
            n_known += 1
            assert expected != int(trace.input_ids[trace.first_error_position])
            assert others.token_strs[str(expected)].strip() == trace.first_error.expected
            assert 0 <= float(others.p_expected[place]) < 0.5
    assert n_known > 5


def test_a_trace_without_a_problem_has_no_expected_tokens(reasoner: LoadedModel) -> None:
    (trace,) = generate(*reasoner, ["parity start heads . mia flips ?\n"], max_new_tokens=8, progress=False)
    found = alternatives(*reasoner, [trace], least_entropy=0.0, n_top=2)
    assert found.position.tolist() == list(range(trace.response_start, len(trace)))
    assert set(found.expected_ids.tolist()) == {-1}
    assert bool(found.p_expected.isnan().all())
    assert found.to_frame().num_rows == 2 * len(found.position)
    assert "At 0 of 0 slots" in found.summary()
