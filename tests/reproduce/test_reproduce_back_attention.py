"""The study of back attention on a tiny world, from the command line to the finding."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from chainwright import BadInput, Repair, bundled_repairs, load_model
from chainwright._files import read_json
from chainwright.cli import app
from chainwright.lab import back_world
from chainwright.lab.knowledge import (
    KnowledgeConfig,
    answers,
    knowledge_tokenizer,
    known_compositions,
    new_model,
    read_recipe,
    recipe_for,
    train_knowledge,
)
from chainwright.lab.two_hop import with_prefixes
from chainwright.reproduce.back_attention.from_scratch import VARIANTS, FromScratch, _new, train_arithmetic
from chainwright.reproduce.back_attention.low_rank import low_rank, trained_parameters
from chainwright.reproduce.back_attention.study import (
    ReproduceBackAttention,
    ReproduceBackAttentionConfig,
    run_back_attention,
)
from chainwright.reproduce.back_attention.variants import depths
from chainwright.studies import Study
from chainwright.tasks.knowledge import questions
from families import tiny

_TINY = KnowledgeConfig(
    n_entities=10, n_relations=3, d_model=32, n_layers=2, n_heads=2, d_head=16, d_mlp=64, n_steps=60, batch_size=32
)
_STUDY = dict(seeds=(0,), dims=(64,), n_steps=2, batch_size=8, scratch_steps=0, n=20, n_flow=2, cost_repeats=0)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return train_knowledge(_TINY, tmp_path_factory.mktemp("models") / "world", progress=False)


def test_training_goes_on_where_it_stopped(world, tmp_path, monkeypatch):
    """A training that is killed at a checkpoint ends with the same weights."""
    from chainwright.lab import knowledge, training

    monkeypatch.setattr(training, "_SECONDS_BETWEEN_CHECKPOINTS", 0.0)
    steps = iter(range(30))
    real = knowledge._loss

    def dying(*args):
        next(steps)
        return real(*args)

    monkeypatch.setattr(knowledge, "_loss", dying)
    with pytest.raises((StopIteration, RuntimeError)):
        train_knowledge(_TINY, tmp_path / "again", progress=False)
    monkeypatch.setattr(knowledge, "_loss", real)
    train_knowledge(_TINY, tmp_path / "again", resume=True, progress=False)
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == (world / "model.safetensors").read_bytes()


def test_what_is_learned_by_heart_is_kept_from_the_fit():
    known, parts = known_compositions(KnowledgeConfig(known_share=0.4))
    assert known and not set(known) & {*parts.train, *parts.held_out, *parts.new_first, *parts.new_second}


def test_the_study_runs_stops_and_goes_on(world, tmp_path):
    config = ReproduceBackAttentionConfig(model=str(world), **_STUDY)
    found = run_back_attention(config, tmp_path / "study")
    assert [row["variant"] for row in found.rows][:3] == ["no change", "back attention", "LoRA of equal size"]
    assert {"source 1", "sources 0 and 1", "whole stack", "no prefixes, first relation only"} <= {
        r["variant"] for r in found.rows
    }
    assert found.conflict["before"]["n"] <= 2 and found.readings["positions"] == ["<bos>", "e1", "r1", "r2"]
    assert read_json(tmp_path / "study" / "base" / "figures.json")["one hop"]["right"] <= 1
    assert [row["variant"] for row in found.failures] == ["no change", "back attention", "LoRA of equal size"]
    assert all(abs(sum(v for k, v in row.items() if k != "variant") - 1) < 1e-6 for row in found.failures)
    again = run_back_attention(config, tmp_path / "study")
    assert again.rows == found.rows
    known = Study.open(tmp_path / "study").manifest
    resumed = ReproduceBackAttention.resumed(known)
    assert resumed.config == known.config and resumed.source == known.model
    with pytest.raises(BadInput):
        run_back_attention(config.replace(n_steps=3), tmp_path / "study")


def test_from_the_command_line(world, tmp_path):
    settings = [item for name, value in _STUDY.items() for item in ("--set", f"{name}={list(value)}"
                if isinstance(value, tuple) else f"{name}={value}")]  # fmt: skip
    command = ["reproduce", "back-attention", "--model", str(world), "--out", str(tmp_path / "s"), "--quiet"]
    result = CliRunner().invoke(app, [*command, *settings])
    assert result.exit_code == 0, result.output
    assert (tmp_path / "s" / "report.html").is_file()


def test_a_model_of_another_kind_is_refused(tmp_path):
    tiny("llama").save_pretrained(tmp_path / "other")
    with pytest.raises(BadInput, match=r"no recipe\.json"):
        read_recipe(str(tmp_path / "other"))
    with pytest.raises(BadInput, match="scratch_steps must be 0 or at least 50"):
        ReproduceBackAttentionConfig(scratch_steps=10)
    with pytest.raises(BadInput, match="seeds must be a list of different whole numbers"):
        ReproduceBackAttentionConfig(seeds=())


def test_variants_from_scratch_have_the_parameters_they_should():
    config = FromScratch(d_model=32, d_back=8)
    n = {}
    for name in VARIANTS:
        model, head = _new(name, 20, config)
        own = {id(p): p.numel() for p in (*model.parameters(), *(head.parameters() if head else ()))}
        n[name] = sum(own.values())
    assert n["one layer"] == n["one layer twice"] < n["two layers"]
    assert n["one layer + back attention"] == n["own position fed back"] == n["one layer"] + 4 * 32 * 8


def test_a_shared_layer_stays_shared_while_training():
    model, _ = _new("one layer twice", 20, FromScratch(d_model=32))
    first, second = model.model.layers
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(torch.arange(6)[None]).logits.sum().backward()
    optimizer.step()
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert a is b


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_few_steps_from_scratch_lower_the_loss(variant):
    config = FromScratch(n_steps=50, batch_size=16, d_model=16, d_back=4, held_out=50)
    found = train_arithmetic(variant, 0, config)
    assert found["curve"][-1][0] == 50 and 0 <= found["accuracy"] <= 1
    assert found == train_arithmetic(variant, 0, config)


@torch.no_grad()
def test_low_rank_updates_stand_beside_a_copy_and_change_nothing_before_training():
    model = new_model(_TINY, knowledge_tokenizer(_TINY)).eval()
    ids = torch.arange(5)[None]
    want = model(ids).logits
    adapted = low_rank(model, 4 * 32 * 8)
    assert torch.equal(adapted(input_ids=ids).logits, want)
    updates = trained_parameters(adapted)
    assert 0 < sum(p.numel() for p in updates) <= 4 * 32 * 8
    assert {id(p) for p in updates} == {id(p) for p in adapted.parameters() if p.requires_grad}
    for update in updates:
        update.normal_()
    assert not torch.equal(adapted(input_ids=ids).logits, want)
    assert torch.equal(model(ids).logits, want)


def test_copies_with_a_word_in_front_ask_the_same():
    world = _TINY.world
    asked = questions(world, world.compositions, "bare")
    more = with_prefixes(world, asked, 2)
    assert more[: len(asked)] == asked and len(more) == 3 * len(asked)
    for copied, problem in zip(more[len(asked) :], asked * 2, strict=True):
        word, _, rest = copied.prompt.partition(" ")
        assert rest == problem.prompt and word not in (problem.answer, problem.facts["r1"])


def test_depths_are_named_from_the_top():
    assert [depths(name, 1, 4) for name in ("top", "last input", "upper half", "stack")] == [
        (4,), (3,), (2, 3, 4), (1, 2, 3, 4)
    ]  # fmt: skip


@torch.no_grad()
def test_answers_are_single_words(world):
    from transformers import AutoModelForCausalLM

    tokenizer = knowledge_tokenizer(_TINY)
    model = AutoModelForCausalLM.from_pretrained(world).eval()
    asked = [_TINY.world.question(*fact, order="bare") for fact in _TINY.world.facts]
    assert set(answers(model, tokenizer, asked)) <= set(tokenizer.get_vocab())


def test_fitting_from_the_command_line_gives_what_the_study_fits(world, tmp_path):
    """The weights are those of the study's main unit, and the figures are of questions that are not in the fit."""
    steps = ["--set", "n_steps=2", "--set", "batch_size=8"]
    command = ["fit", "back-attention", "--model", str(world), "--out", str(tmp_path / "back"), "--quiet", *steps]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    repair = Repair.from_pretrained(tmp_path / "back")
    config = ReproduceBackAttentionConfig(model=str(world), **{**_STUDY, "sweep_seeds": ()})
    run_back_attention(config, tmp_path / "study")
    for name, weight in load_file(
        tmp_path / "study" / "fit" / "back-attention" / "seed-0" / "heads.safetensors"
    ).items():
        assert torch.equal(weight, repair.tensors()[name]), name
    assert [row["questions"] for row in repair.origin.figures][:2] == ["single facts", "held-out compositions"]
    assert "->" in result.output


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--source", "one"], "--source takes different whole numbers"),
        (["--source", "2", "--targets", "1"], "Layer 2 does not exist"),
        (["--source", "1", "--targets", "0,2"], "Source layer 1 comes after target 0"),
        (["--size", "0"], "d_back must be at least 1; got 0"),
        (["--set", "lr=0"], "lr must be a number above 0; got 0"),
        (["--questions", "nowhere.json"], "There is no file nowhere.json"),
        (["--model", "reasoner"], "not one of a made-up world"),
    ],
    ids=["source", "layer", "order", "size", "rate", "file", "model"],
)
def test_bad_input_of_fitting_is_one_sentence(world, tmp_path, options, words):
    command = ["fit", "back-attention", "--model", str(world), "--out", str(tmp_path / "back"), "--quiet"]
    result = CliRunner().invoke(app, [*command, *options])
    assert result.exit_code == 2 and words in " ".join(result.output.split()), result.output
    assert not (tmp_path / "back").exists()


def test_another_wording_is_refused(world, tmp_path):
    model, tokenizer = load_model(world, device="cpu")
    recipe = {**read_json(world / "recipe.json"), "order": "nested"}
    with pytest.raises(BadInput, match="asks bare questions, and this model was trained on nested ones"):
        ReproduceBackAttention(model, tokenizer, recipe, ReproduceBackAttentionConfig(**_STUDY))


def test_the_shipped_repair_mends_held_out_compositions_of_the_bundled_world():
    assert "back-world" in bundled_repairs()
    repair = Repair.from_pretrained("back-world")
    model, tokenizer = load_model("world", device="cpu")
    recipe = recipe_for("world")
    _, parts = known_compositions(recipe)
    held_out = questions(recipe.world, parts.held_out[:100], "bare")
    assert not {p.prompt for p in held_out} & {p.prompt for p in back_world.world_problems(recipe)}
    assert sum(got == p.answer for got, p in zip(answers(model, tokenizer, held_out), held_out, strict=True)) <= 2
    with repair.attached(model):
        assert sum(got == p.answer for got, p in zip(answers(model, tokenizer, held_out), held_out, strict=True)) >= 45
