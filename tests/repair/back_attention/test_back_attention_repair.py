"""The back-attention repair: fitting beside a frozen model, saving, and what it refuses."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch

from chainwright import BackAttention, BadInput, Problem, Repair, generate, load_model, score
from chainwright.edits import AttendBack, edit
from chainwright.lab.knowledge import KnowledgeConfig, knowledge_tokenizer, new_model
from chainwright.models.capture import capture
from chainwright.repair import AnswerTraining
from chainwright.repair.back_attention.repair import begin
from chainwright.repair.back_attention.training import check_unsolved, rows_of
from chainwright.tasks.knowledge import World, questions, split
from families import FAMILIES, random_ids, tiny
from reference import assert_equal

_SMALL = KnowledgeConfig(n_entities=12, n_relations=3, d_model=32, n_layers=2, n_heads=2, d_head=16, d_mlp=64)
_QUICK = AnswerTraining(n_steps=4, batch_size=8)


@pytest.fixture(scope="module")
def small():
    tokenizer = knowledge_tokenizer(_SMALL)
    model = new_model(_SMALL.replace(seed=3), tokenizer).eval()
    world = _SMALL.world
    return model, tokenizer, questions(world, split(world).train, "bare")


def test_fitting_lowers_the_loss_and_leaves_the_model_alone(small):
    model, tokenizer, problems = small
    before = copy.deepcopy(model.state_dict())
    grads = [p.requires_grad for p in model.parameters()]
    from chainwright.edits import AttendBack, edit
    from chainwright.repair.back_attention.training import train

    repair = BackAttention.new(model, d_back=8)
    heads = torch.nn.ModuleList(repair.heads)
    with edit(model, AttendBack(list(heads))):
        losses = train(model, tokenizer, heads.parameters(), problems, AnswerTraining(n_steps=40, batch_size=32))
    assert sum(losses[-5:]) < sum(losses[:5])
    for name, value in model.state_dict().items():
        assert_equal(value, before[name], name)
    assert [p.requires_grad for p in model.parameters()] == grads
    assert all(p.grad is None for p in model.parameters())


def test_same_seed_same_weights(small):
    model, tokenizer, problems = small
    one, two = (BackAttention.fit(model, tokenizer, problems, training=_QUICK, progress=False) for _ in range(2))
    for name, weight in one.tensors().items():
        assert_equal(weight, two.tensors()[name], name)


@torch.no_grad()
def test_saves_loads_and_decodes_as_it_scores(small, tmp_path):
    model, tokenizer, problems = small
    repair = BackAttention.fit(
        model, tokenizer, problems, source=(0, 1), d_back=8, training=_QUICK.replace(lr=0.1), progress=False
    )
    repair.save_pretrained(tmp_path / "back")
    again = Repair.from_pretrained(tmp_path / "back")
    assert isinstance(again, BackAttention) and again.settings() == repair.settings()
    ids = random_ids(2, 6).clamp(max=len(tokenizer) - 1)
    with repair.attached(model):
        want = model(ids).logits
    with again.attached(model):
        got = model(ids).logits
    assert_equal(got, want)
    assert float((model(ids).logits - want).abs().max()) > 0
    traces = generate(model, tokenizer, problems[:3], repair=again, max_new_tokens=3, progress=False)
    for trace in traces:
        new = slice(len(trace) - 3, None)
        assert score(model, trace, repair=again).argmax[new].tolist() == trace.input_ids[new].tolist()
    assert again.cost.n_forwards == again.cost.n_extra_forwards > 0


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_a_new_one_fits_every_family_and_changes_nothing(family):
    model, ids = tiny(family), random_ids(2, 7)
    mask = torch.ones_like(ids)
    want = model(ids, attention_mask=mask).logits
    repair = BackAttention.new(model, source=-2, targets="stack")
    with repair.attached(model) as cost:
        got = model(ids, attention_mask=mask).logits
    assert repair.heads[0].source == 1 and repair.heads[0].targets == (1, 2, 3)
    assert cost.n_forwards == 1 and cost.n_extra_tokens == 14
    assert float((got - want).abs().max()) < 1e-4


def test_another_model_is_refused(small):
    model, *_ = small
    repair = BackAttention.new(model)
    with pytest.raises(BadInput, match="was made for"), repair.attached(tiny("llama")):
        pass


def test_training_data_that_cannot_train_is_refused(small):
    model, tokenizer, problems = small
    given = [replace(p, prompt=f"{p.prompt} {p.answer}") for p in problems]
    with pytest.raises(BadInput, match="hold their answer"):
        BackAttention.fit(model, tokenizer, given, training=_QUICK, progress=False)
    with pytest.raises(BadInput, match="list of problems is empty"):
        BackAttention.fit(model, tokenizer, [], training=_QUICK, progress=False)
    with pytest.raises(BadInput, match="has no tokens"):
        BackAttention.fit(model, tokenizer, [replace(problems[0], answer="")], training=_QUICK, progress=False)


def test_problems_that_the_model_answers_already_are_refused():
    model, tokenizer = load_model("world", device="cpu")
    world = World()
    single = questions(world, world.facts, "bare")
    with pytest.raises(BadInput, match="answers 256 of 256 problems already, and what it knows trains nothing"):
        BackAttention.fit(model, tokenizer, single, training=_QUICK, progress=False)
    check_unsolved(model, tokenizer, questions(world, world.compositions, "bare"))


def test_the_last_layers_output_is_read_by_default_and_the_whole_stack_when_named(small):
    model, tokenizer, problems = small
    n_layers = model.config.num_hidden_layers
    for repair in (
        BackAttention.new(model, source=(0, 1)),
        BackAttention.fit(model, tokenizer, problems, source=(0, 1), training=_QUICK, progress=False),
    ):
        assert [head.targets for head in repair.heads] == [(n_layers,), (n_layers,)]
    stack = BackAttention.new(model, source=1, targets="stack")
    assert stack.heads[0].targets == tuple(range(1, n_layers + 1))
    with pytest.raises(BadInput, match=r"must be depths such as .*, 'stack' or None; got 'top'"):
        BackAttention.new(model, targets="top")


@torch.no_grad()
@pytest.mark.parametrize("is_normed", (True, False))
def test_a_fit_starts_with_part_of_what_is_read_written_back(small, is_normed):
    model, tokenizer, problems = small
    (head,) = BackAttention.new(model, targets="stack", d_back=512, is_normed=is_normed).heads
    begin([head], model, tokenizer, problems, 0.5)
    assert_equal(head.o.weight, head.v.weight.T)
    ids = torch.tensor([row.ids for row in rows_of(tokenizer, problems[:32])])
    seen = capture(model, ids, residual=True)
    deep = torch.cat([seen.resid_pre, seen.resid_post[-1:]])[list(head.targets)]
    _, values = head.keys_values(deep)
    written = head.o(values)
    share = written.pow(2).mean(-1).sqrt().median() / seen.resid_pre[0].pow(2).mean(-1).sqrt().median()
    assert 0.4 < float(share) < 0.6  # R^T R is the identity but for noise of about sqrt(D / d')
    assert float(torch.nn.functional.cosine_similarity(written, deep, dim=-1).min()) > 0.9
    (untouched,) = BackAttention.new(model, d_back=8).heads
    begin([untouched], model, tokenizer, problems, 0.0)
    assert not untouched.o.weight.any()
    with pytest.raises(BadInput, match="start must be at least 0"):
        begin([untouched], model, tokenizer, problems, -1.0)


def test_layers_that_do_not_fit_are_refused(small):
    model, *_ = small
    with pytest.raises(BadInput, match="comes after target"):
        BackAttention.new(model, source=1, targets=(0, 2))
    with pytest.raises(BadInput, match="targets go from 0"):
        BackAttention.new(model, targets=(3,))
    with pytest.raises(BadInput, match="Layer 2 does not exist"):
        BackAttention.new(model, source=2)
    with pytest.raises(BadInput, match="d_back must be at least 1; got 0"):
        BackAttention.new(model, d_back=0)
    with pytest.raises(BadInput, match="at least one target layer"):
        BackAttention.new(model, targets=())
    with pytest.raises(BadInput, match="one head for each source layer"):
        BackAttention.new(model, source=())
    with pytest.raises(BadInput, match="first_hop_weight"):
        AnswerTraining(first_hop_weight=-1)


def test_an_answer_of_several_tokens_is_trained_whole(small):
    _, tokenizer, _ = small
    problem = Problem("made up", 1, "mother father", "boss boss", "boss boss", ())
    (row,) = rows_of(tokenizer, [problem])
    assert row.n_answer == 2 and len(row.ids) == 5


def test_the_first_hop_is_asked_for_at_the_first_relation(small):
    _, tokenizer, _ = small
    world = World(12, 3)
    problem = world.question(4, 2, 1, order="possessive")
    (row,) = rows_of(tokenizer, [problem])
    position, token = row.first_hop
    assert tokenizer.convert_ids_to_tokens(row.ids[position]) == problem.facts["r1"]
    assert tokenizer.convert_ids_to_tokens(token) == problem.facts["e2"]


@pytest.mark.parametrize("limits", [{"positions": (2,)}, {"positions": "own"}, {"tokens": (5, 7)}])
@torch.no_grad()
def test_what_may_be_read_is_part_of_the_repair(small, tmp_path, limits):
    model, tokenizer, problems = small
    options = {"d_back": 8, "training": _QUICK.replace(lr=0.1), "progress": False}
    repair = BackAttention.fit(model, tokenizer, problems, **options, **limits)
    again = Repair.from_pretrained(repair.save_pretrained(tmp_path / "back"))
    assert isinstance(again, BackAttention) and (again.positions, again.tokens) == (repair.positions, repair.tokens)
    assert any(words in again.describe() for words in ("at positions (2,)", "at its own", "the tokens [5, 7]"))
    ids = random_ids(2, 6).clamp(max=len(tokenizer) - 1)
    with edit(model, AttendBack([head.requires_grad_(False) for head in repair.heads], **limits)):
        want = model(ids).logits
    with again.attached(model):
        assert_equal(model(ids).logits, want)
    with BackAttention(repair.heads, origin=repair.origin).attached(model):
        assert float((model(ids).logits - want).abs().max()) > 0


def test_the_first_hop_is_complete_where_relation_and_entity_were_read(small):
    """In 'the boss of the mother of bado is' nothing is known of the first hop before its entity is named."""
    _, tokenizer, _ = small
    world = World(12, 3)
    for order, word in (("bare", "r1"), ("possessive", "r1"), ("nested", "e1")):
        problem = world.question(3, 0, 1, order=order)
        (row,) = rows_of(tokenizer, [problem])
        position, token = row.first_hop
        assert tokenizer.convert_ids_to_tokens([row.ids[position], token]) == [
            problem.facts[word],
            problem.facts["e2"],
        ]
