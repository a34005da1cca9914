"""Fitting on the bundled reasoner, small: what is learnt decodes, is saved, and equals its forecast on lessons."""

import math
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from chainwright import generate, load_model, tasks
from chainwright._errors import BadInput
from chainwright.models.anatomy import anatomy
from chainwright.models.load import LoadedModel
from chainwright.repair import TCR, EntropyDetector, Repair, TrainedDetector
from chainwright.repair.tcr.candidate_heads import Candidates, find_candidates, greedy_cover
from chainwright.repair.tcr.config import CandidateConfig, ClassifierConfig, FitConfig, TrainConfig
from chainwright.repair.tcr.fit import Fitted, choice_scores, detection, exact_share, fit_tcr, look
from chainwright.repair.tcr.lora_selector import ClassifierSelector, chains_of
from chainwright.repair.tcr.repair import vote
from chainwright.repair.tcr.selector import hit_at_1, multilabel_loss
from chainwright.repair.tcr.thresholds import Decided, tuned_threshold, tuned_votes
from chainwright.repair.tcr.token_repair import Seen
from chainwright.repair.tcr.training_data import lesson_ids, lessons_of
from chainwright.repair.tcr.verifier import fit_verifier, pair_log_probs, verifier_features, weighed
from chainwright.traces import Trace

SMALL = FitConfig(
    candidates=CandidateConfig(n_contexts=6, max_heads=3, n_lessons=10),
    training=TrainConfig(n_epochs=3),
    tune_share=0.4,
)


@cache
def reasoner() -> LoadedModel:
    return load_model("reasoner", device="cpu")


@cache
def traces() -> list[Trace]:
    return generate(*reasoner(), tasks.sample("clf", 13, 30, 7), progress=False)


@cache
def fitted() -> Fitted:
    return fit_tcr(*reasoner(), traces(), config=SMALL)


def test_what_is_fitted_is_whole_and_saved(tmp_path: Path) -> None:
    found = fitted()
    repair = TCR.from_fit(found)
    assert 1 <= len(repair.heads) <= 3 and isinstance(repair.detector, TrainedDetector)
    assert found.candidates.coverage == sorted(found.candidates.coverage)
    assert found.candidates.coverage[-1] <= found.candidates.any_head <= 1
    again = Repair.from_pretrained(repair.save_pretrained(tmp_path / "repair"))
    assert again.settings() == repair.settings()
    problems = tasks.sample("clf", 13, 4, 8)
    decoded = [generate(*reasoner(), problems, repair=r, progress=False) for r in (repair, again)]
    assert decoded[0] == decoded[1]
    saved = found.candidates.save(tmp_path / "candidates")
    assert Candidates.load(saved).summary() == found.candidates.summary()
    assert found.figures["chains right, repaired"] >= found.figures["chains right, model alone"] - 1e-9


def test_fitting_again_gives_the_same_repair() -> None:
    first, again = TCR.from_fit(fitted()), TCR.fit(*reasoner(), traces(), config=SMALL)
    assert first.settings() == again.settings()
    for name, tensor in first.tensors().items():
        assert torch.equal(tensor, again.tensors()[name]), name


def test_the_paper_s_form_is_fitted_when_asked_for(tmp_path: Path) -> None:
    config = SMALL.replace(decision="vote", n_votes=3, detector="entropy", tau=0.3)
    found = fit_tcr(*reasoner(), traces(), config=config)
    repair = TCR.from_fit(found)
    assert repair.config.decision == "vote" and repair.config.n_votes == 3
    assert repair.verifier is None and repair.detector == EntropyDetector(0.3)
    assert found.figures["chains right, repaired"] == found.figures["chains right, entropy 0.3, decided by vote"]
    again = Repair.from_pretrained(repair.save_pretrained(tmp_path / "repair"))
    assert again.settings() == repair.settings()
    assert f"decided by a vote of {min(3, len(again.heads))} of" in again.describe()


@pytest.mark.parametrize("decision", ["vote", "verify"])
@pytest.mark.parametrize("positions", ["all", "last"])
def test_the_forecast_on_lessons_is_what_decoding_gives(positions: str, decision: str) -> None:
    """Forced right prefixes tell exactly which chains greedy decoding will write right."""
    model, tokenizer = reasoner()
    repair = TCR.from_fit(fitted())
    config = SMALL.replace(doubt_above=0.05, candidates=SMALL.candidates.replace(positions=positions))
    repair = type(repair)(
        repair.heads, repair.selector, EntropyDetector(0.2), layers=repair.layers, end_ids=repair.end_ids,
        config=repair.config.replace(positions=positions, n_votes=2, decision=decision), verifier=repair.verifier,
    )  # fmt: skip
    problems = tasks.sample("clf", 13, 12, 9)
    plain = generate(model, tokenizer, problems, progress=False)
    seen = look(anatomy(model), lessons_of(tokenizer, plain), repair.heads, config, lambda done, total: None)
    assert seen.chains_right(seen.is_right).tolist() == [t.first_error is None for t in plain]
    if decision == "vote":
        decided = seen.decided(choice_scores(repair.selector, seen), 2)
    else:
        decided = seen.verified(repair.verifier.p_second(seen.verifier_features))
    after = seen.chains_right(seen.repaired(seen.entropy > 0.2, decided))
    repaired = generate(model, tokenizer, problems, repair=repair, progress=False)
    assert after.tolist() == [t.first_error is None for t in repaired]
    assert any(a != b for a, b in zip(plain, repaired, strict=True)), "the repair changes nothing here"


def test_a_trained_detector_flags_only_what_its_forecast_looked_at() -> None:
    model, tokenizer = reasoner()
    fit = TCR.from_fit(fitted())
    detector = TrainedDetector(fit.detector.network, 0.01, SMALL.doubt_above)  # flags much
    config = fit.config.replace(decision="vote")
    repair = type(fit)(fit.heads, fit.selector, detector, layers=fit.layers, end_ids=fit.end_ids, config=config)
    plain = generate(model, tokenizer, tasks.sample("clf", 13, 12, 9), progress=False)
    seen = look(anatomy(model), lessons_of(tokenizer, plain), repair.heads, SMALL, lambda done, total: None)
    with torch.no_grad():
        flagged = (detector.network(seen.doubt)[:, 0].sigmoid() > 0.01) & (seen.entropy > SMALL.doubt_above)
    decided = seen.decided(choice_scores(repair.selector, seen), repair.config.n_votes)
    repaired = generate(model, tokenizer, [t.problem for t in plain], repair=repair, progress=False)
    assert seen.chains_right(seen.repaired(flagged, decided)).tolist() == [t.first_error is None for t in repaired]
    assert repair.cost.n_flagged > 10


def test_lessons_are_the_gold_chains_with_their_kinds() -> None:
    _, tokenizer = reasoner()
    trace, lesson = traces()[0], lessons_of(tokenizer, traces()[:1])[0]
    problem = trace.problem
    assert problem is not None
    assert lesson.ids == [*trace.input_ids[: lesson.n_prompt].tolist(), *lesson_ids(tokenizer, problem)]
    assert len(lesson.kinds) == len(lesson.ids) - lesson.n_prompt
    named = {kind for kind in lesson.kinds if kind != "structure"}
    assert named == {slot.error_type for slot in problem.slots}


def test_lessons_in_english_end_at_the_first_error() -> None:
    _, tokenizer = reasoner()
    problem = tasks.sample("clf", 3, 1, rendering="natural")[0]
    words = load_model("reasoner", device="cpu").tokenizer
    right = Trace.from_text(words, problem.prompt, problem.chain, problem=problem)
    (lesson,) = lessons_of(tokenizer, [right])
    assert lesson.ids == right.input_ids.tolist() and lesson.n_prompt == right.response_start


def test_the_classifier_learns_saves_and_decodes(tmp_path: Path) -> None:
    model, tokenizer = reasoner()
    seen = fitted().tune
    config = ClassifierConfig(n_epochs=6, lr=3e-3, dropout=0.0)
    k = seen.votes.shape[1] + 1
    fresh = ClassifierSelector("reasoner", "reasoner", k, config)
    usable = seen.labels.any(1)
    before = hit_at_1(choice_scores(fresh, seen)[usable], seen.labels[usable])
    contexts = [c for c, use in zip(seen.contexts, usable.tolist(), strict=True) if use]
    fresh.fit(contexts[:32], seen.labels[usable][:32])
    after = hit_at_1(choice_scores(fresh, seen)[usable][:32], seen.labels[usable][:32])
    assert after > before, "it fits what it was shown"
    repair = TCR(fitted().heads, fresh, EntropyDetector(0.3), end_ids=fitted().end_ids)
    again = Repair.from_pretrained(repair.save_pretrained(tmp_path / "repair"))
    problems = tasks.sample("clf", 13, 3, 8)
    assert generate(model, tokenizer, problems, repair=again, progress=False) == generate(
        model, tokenizer, problems, repair=repair, progress=False
    )
    assert any("lora" in name for name in repair.tensors())


def test_contexts_that_continue_one_another_are_read_together_and_score_as_alone() -> None:
    torch.manual_seed(0)
    row = torch.randint(3, 180, (30,)).tolist()
    rows = [row[:12], row, [*row[:8], 5, 6], row[:12], [7, 8], row[:1]]
    assert sorted(len(chain.which) for chain in chains_of(rows)) == [1, 2, 3]
    selector = ClassifierSelector("reasoner", "reasoner", 3)
    blank = torch.zeros(len(rows), 0)
    together = selector.scores(Seen(blank, blank, rows, rows))
    alone = torch.cat([selector.scores(Seen(blank[:1], blank[:1], [r], [r])) for r in rows])
    assert (together - alone).abs().max() < 1e-4
    assert (alone[1] - alone[0]).abs().max() > 1e-2, "the tokens between them matter"


def test_a_base_that_cannot_read_the_context_is_refused(tmp_path: Path) -> None:
    from chainwright.lab.tokenizer import word_tokenizer
    from families import tiny

    tiny("llama").save_pretrained(tmp_path / "base")
    word_tokenizer(["alpha", "beta"], 64).save_pretrained(tmp_path / "base")
    selector = ClassifierSelector(str(tmp_path / "base"), "reasoner", 3)
    with pytest.raises(BadInput, match="cannot read the contexts of 'reasoner'"):
        selector.fit([fitted().tune.contexts[0]], torch.tensor([[1, 0, 0]]))
    said: list[str] = []
    with pytest.raises(BadInput, match="cannot read the contexts of 'reasoner'"):
        fit_tcr(*reasoner(), traces(), config=SMALL.replace(selector=str(tmp_path / "base")), say=said.append)
    assert not said, "refused before anything is located"


def test_greedy_cover_by_hand() -> None:
    covers = torch.tensor([[1, 0, 1], [1, 0, 0], [0, 1, 0], [0, 1, 1], [0, 0, 0]], dtype=torch.bool)
    assert greedy_cover(covers, torch.tensor([0.1, 0.2, 0.9]), 8) == [2, 1, 0]
    assert greedy_cover(covers, torch.tensor([0.3, 0.2, 0.1]), 8) == [0, 1]
    assert greedy_cover(covers, torch.tensor([0.3, 0.2, 0.1]), 1) == [0]


def test_the_vote_by_hand() -> None:
    two = torch.tensor([[[2.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0, 9.0, 0.0]]])
    assert vote(two)[0].exp().tolist() == pytest.approx(two[0, :2].softmax(-1).mean(0).tolist())
    apart = torch.tensor([[[2.0, 0.0, 0.0], [0.0, 9.0, 0.0], [0.0, 0.0, 1.0]]])
    assert vote(apart)[0].exp().tolist() == pytest.approx(apart[0, 1].softmax(-1).tolist())
    pair = torch.tensor([[[0.5, 0.0], [0.0, 3.0]]])
    assert int(vote(pair)[0].argmax()) == 1, "of two heads none has a majority"


def test_the_weighed_logits_by_hand() -> None:
    logits = torch.tensor([[3.0, 2.0, 0.0], [0.0, 1.0, 5.0]])
    best = logits.topk(2).indices
    probs = logits.softmax(-1)
    got = weighed(logits, best, torch.tensor([0.75, 0.1])).softmax(-1)
    assert got.sum(-1).tolist() == pytest.approx([1, 1])
    both = (probs[0, 0] + probs[0, 1]).item()
    assert got[0].tolist() == pytest.approx([0.25 * both, 0.75 * both, probs[0, 2].item()])
    assert got[1, 0].item() == pytest.approx(probs[1, 0].item()) and int(got[1].argmax()) == 2


def test_a_verifier_learns_from_the_runs_without_heads() -> None:
    generator = torch.Generator().manual_seed(0)
    pairs = torch.randn(400, 3, 2, generator=generator) - 2
    doubt = torch.randn(400, 5, generator=generator)
    is_second = pairs[:, 1, 1] > pairs[:, 1, 0]
    features = verifier_features(doubt, pairs)
    assert features.shape == (400, 5 + 3 * 3)
    verifier = fit_verifier(features[:300], ~is_second[:300], is_second[:300])
    right = (verifier.p_second(features[300:]) > 0.5) == is_second[300:]
    assert right.float().mean() > 0.85
    with pytest.raises(BadInput, match=r"second choice is right at none of 400 doubtful tokens.*--decision vote"):
        fit_verifier(features, torch.ones(400, dtype=torch.bool), torch.zeros(400, dtype=torch.bool))
    log_probs = pair_log_probs(torch.tensor([[[1.0, 2.0, 3.0]]]), torch.tensor([[2, 0]]))
    assert log_probs[0, 0].tolist() == pytest.approx(torch.tensor([1.0, 2.0, 3.0]).log_softmax(0)[[2, 0]].tolist())


def test_one_head_votes_only_where_that_is_clearly_better() -> None:
    seen = fitted().tune
    wrong = torch.zeros(len(seen.doubtful), dtype=torch.bool)
    by = {3: wrong, 1: ~wrong}
    clear = SimpleNamespace(
        is_right=seen.is_right, decided=lambda scores, n: by[n],
        repaired=seen.repaired, chains_right=seen.chains_right,
    )  # fmt: skip
    assert tuned_votes(clear, torch.zeros(1)) == 1
    by[3] = ~wrong
    assert tuned_votes(clear, torch.zeros(1)) == 3


def test_fewer_flags_are_taken_where_they_cost_little() -> None:
    seen = fitted().tune
    fixes = torch.ones(len(seen.doubtful), dtype=torch.bool)
    decided = Decided(torch.zeros(1), fixes, None, None)
    every, none = ~seen.is_right, torch.zeros_like(seen.is_right)
    assert tuned_threshold(seen, [every, every, none], decided, 0.0) == 1
    assert tuned_threshold(seen, [every, every, none], decided, 0.99) == 2


def test_the_loss_by_hand() -> None:
    scores, labels = torch.tensor([[1.0, 2.0, 0.0]]), torch.tensor([[1, 0, 1]])
    want = -math.log((math.e + 1) / (math.e + math.e**2 + 1))
    assert float(multilabel_loss(scores, labels)) == pytest.approx(want)
    assert hit_at_1(scores, labels) == pytest.approx(math.exp(-want))


def test_detection_counts_first_errors_only() -> None:
    seen = fitted().tune
    every = torch.ones(len(seen.is_right), dtype=torch.bool)
    wrong = ~seen.is_right
    n_chains = int((~seen.chains_right(seen.is_right)).sum())
    got = detection(seen, every)
    assert got.recall == 1 and got.rate == 1
    assert detection(seen, wrong).precision == 1 and detection(seen, wrong).recall == 1
    assert got.precision * sum(1 for _ in every) >= n_chains * 0.99
    assert detection(seen, ~every).recall == 0
    assert exact_share(seen, wrong, torch.ones(len(seen.doubtful), dtype=torch.bool)) == 1.0


@pytest.mark.parametrize(
    ("hops", "words"),
    [(2, "None of the 6 traces has a known first error"), (None, "There are no traces to fit on")],
)
def test_traces_that_teach_nothing_are_refused(hops: int | None, words: str) -> None:
    asked = [] if hops is None else generate(*reasoner(), tasks.sample("clf", hops, 6), progress=False)
    with pytest.raises(BadInput, match=words):
        fit_tcr(*reasoner(), asked, config=SMALL)


def test_traces_without_a_right_prediction_are_refused() -> None:
    model, tokenizer = load_model("reasoner", device="cpu")
    model.model.norm.weight.data.zero_()  # all logits are equal, and no right token is the first of the vocabulary
    hopeless = generate(model, tokenizer, tasks.sample("clf", 3, 6), max_new_tokens=4, progress=False)
    with pytest.raises(BadInput, match="predicts no right token at all in these traces"):
        fit_tcr(model, tokenizer, hopeless, config=SMALL)


def test_too_few_errors_of_a_type_and_bad_settings_are_refused() -> None:
    with pytest.raises(BadInput, match="No key error type has 500 first errors"):
        find_candidates(*reasoner(), traces(), config=CandidateConfig(min_errors=500))
    prompt = Trace.from_text(reasoner().tokenizer, "clf", "x")
    with pytest.raises(BadInput, match="Trace 0 has no problem"):
        lessons_of(reasoner().tokenizer, [prompt])
