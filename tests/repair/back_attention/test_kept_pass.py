"""Training with the first pass read once: the same losses as with both passes, on the model's own layers."""

from __future__ import annotations

import copy

import pytest
import torch

from chainwright import BackAttention, BadInput
from chainwright.diagnose.heads._sweep import half_products
from chainwright.edits import AttendBack, BackHead, edit
from chainwright.lab.knowledge import KnowledgeConfig, knowledge_tokenizer, new_model
from chainwright.models.anatomy import anatomy
from chainwright.repair import AnswerTraining
from chainwright.repair.back_attention import kept_pass
from chainwright.repair.back_attention.training import rows_of, train
from chainwright.tasks.knowledge import World, questions, split

_SMALL = KnowledgeConfig(n_entities=12, n_relations=3, d_model=32, n_layers=3, n_heads=2, d_head=16, d_mlp=64)
_TRAINING = AnswerTraining(n_steps=6, batch_size=8, lr=0.05, is_kept=True)


@pytest.fixture(scope="module")
def small():
    tokenizer = knowledge_tokenizer(_SMALL)
    model = new_model(_SMALL.replace(seed=3), tokenizer).eval()
    world: World = _SMALL.world
    # wordings of several lengths, so that rows are padded
    mixed = [*questions(world, split(world).train, "bare"), *questions(world, split(world).train, "nested")]
    return model, tokenizer, mixed


def head(seed: int = 0) -> BackHead:
    torch.manual_seed(seed)
    one = BackHead(32, 1, (2, 3), d_back=8)
    one.write_back(0.5)
    return one


@pytest.mark.parametrize("positions, tokens", [(None, None), ("own", None), ((1, 2), None), (None, (5, 6, 7, 8, 9))])
def test_the_losses_are_those_of_training_with_both_passes(small, monkeypatch, positions, tokens):
    model, tokenizer, problems = small
    monkeypatch.setattr(kept_pass, "can_halve", lambda parts: False)
    ours, theirs = head(), head()
    got = kept_pass.train_kept(model, tokenizer, [ours], problems, _TRAINING, positions=positions, tokens=tokens)
    with edit(model, AttendBack([theirs], positions=positions, tokens=tokens)):
        want = train(model, tokenizer, theirs.parameters(), problems, _TRAINING)
    assert got == pytest.approx(want, abs=1e-4)
    assert len(set(want)) > 1
    for name, weight in ours.state_dict().items():
        assert (weight - theirs.state_dict()[name]).abs().max() < 1e-3, name


def test_in_bfloat16_it_learns_the_same(small, monkeypatch):
    model, tokenizer, problems = small
    before = copy.deepcopy(model.state_dict())
    monkeypatch.setattr(kept_pass, "can_halve", lambda parts: True)
    training = _TRAINING.replace(n_steps=40, batch_size=32, lr=2e-3)
    losses = kept_pass.train_kept(model, tokenizer, [head()], problems, training)
    with edit(model, AttendBack([theirs := head()])):
        want = train(model, tokenizer, theirs.parameters(), problems, training)
    assert losses == pytest.approx(want, rel=0.05)
    assert sum(losses[-5:]) < sum(losses[:5])
    assert model.dtype == torch.float32
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_fit_takes_it(small):
    model, tokenizer, problems = small
    options = {"source": 1, "targets": "stack", "d_back": 8, "progress": False, "tokens": (5, 6)}
    one = BackAttention.fit(model, tokenizer, problems, training=_TRAINING.replace(n_steps=2), **options)
    assert one.tokens == (5, 6) and one.heads[0].targets == (1, 2, 3)
    assert all(not weight.requires_grad for weight in one.heads[0].parameters())


def test_several_sources_are_refused(small):
    model, tokenizer, problems = small
    with pytest.raises(BadInput, match="one source layer; got 2"):
        BackAttention.fit(model, tokenizer, problems, source=(0, 1), training=_TRAINING, progress=False)


def test_a_decoder_that_gives_another_end_is_refused(small, monkeypatch):
    model, tokenizer, problems = small
    real = kept_pass._cut
    # one layer too few: what a family that does more in front of its layers would amount to
    monkeypatch.setattr(kept_pass, "_cut", lambda parts, source: real(parts, source + 1))
    run = kept_pass._Upper(anatomy(model), head(), None, None)
    with pytest.raises(Exception, match="is_kept=False"):
        run.read(rows_of(tokenizer, problems))


def test_bfloat16_is_taken_only_where_it_is_faster(small):
    model, *_ = small
    cut = kept_pass._cut(anatomy(model), 1)
    halved = next(cut.parameters()).dtype == torch.bfloat16
    assert halved == half_products.can_halve(anatomy(model))
