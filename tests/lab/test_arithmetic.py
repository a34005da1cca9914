"""The recipe of the small model of composite arithmetic, and the one that comes with the package."""

from __future__ import annotations

import pytest
import torch
from typer.testing import CliRunner

from chainwright import BadInput, generate, load_model
from chainwright._files import read_json
from chainwright.cli import app
from chainwright.lab import ArithmeticConfig, arithmetic, train_arithmetic, training
from chainwright.lab.arithmetic import _Rows, accuracies, arithmetic_tokenizer, greedy_answers, wrong_by_signs
from chainwright.models.load import BUNDLED
from chainwright.tasks.arithmetic import all_composite_problems, composite_problems, held_out_composites

_TINY = ArithmeticConfig(d_model=16, n_layers=1, n_heads=2, d_head=8, d_mlp=16, n_steps=12, batch_size=16, n_warmup=2)


def test_every_expression_is_in_one_part():
    trained, held_out = held_out_composites(share=0.2, seed=1)
    prompts = {p.prompt for p in trained} | {p.prompt for p in held_out}
    assert len(trained) + len(held_out) == len(prompts) == 6561 and len(held_out) == 1312
    assert prompts == {p.prompt for p in all_composite_problems(3)} >= {p.prompt for p in composite_problems(30)}
    assert len(all_composite_problems(2)) == 243
    problem = next(p for p in held_out if p.prompt.startswith("( 3 - 9 ) *"))
    assert problem.facts["before"] == "- 6" and "before" not in all_composite_problems(2)[0].facts
    with pytest.raises(BadInput, match="share must be"):
        held_out_composites(share=1.0)
    with pytest.raises(BadInput, match="needs 2 to 4 operands"):
        all_composite_problems(5)


def test_batches_never_hold_what_is_held_out():
    tokenizer = arithmetic_tokenizer()
    rows = _Rows(_TINY, tokenizer)
    ids, labels = rows.batch(3)
    assert torch.equal(ids, rows.batch(3)[0]) and not torch.equal(ids, rows.batch(4)[0])
    _, held_out = held_out_composites(share=_TINY.held_out_share, seed=_TINY.split_seed)
    texts = {tokenizer.decode(row.ids, skip_special_tokens=True) for row in (*rows.two, *rows.three)}
    assert len(texts) == 243 + 5249
    assert not texts & {f"{p.prompt} {p.answer}" for p in held_out}
    # the answer and the end token are judged, nothing else
    row = ids[0][ids[0] != tokenizer.pad_token_id].tolist()
    judged = labels[0][labels[0] >= 0].tolist()
    assert judged == row[-len(judged) :] and judged[-1] == tokenizer.eos_token_id
    assert row[-len(judged) - 1] == tokenizer.convert_tokens_to_ids("=")


def test_training_goes_on_where_it_stopped(tmp_path, monkeypatch):
    whole = train_arithmetic(_TINY, tmp_path / "whole", progress=False)
    monkeypatch.setattr(training, "_SECONDS_BETWEEN_CHECKPOINTS", 0.0)
    real, left = arithmetic._loss, iter(range(5))

    def dying(*arguments):
        next(left)
        return real(*arguments)

    monkeypatch.setattr(arithmetic, "_loss", dying)
    with pytest.raises((StopIteration, RuntimeError)):
        train_arithmetic(_TINY, tmp_path / "again", progress=False)
    monkeypatch.setattr(arithmetic, "_loss", real)
    train_arithmetic(_TINY, tmp_path / "again", resume=True, progress=False)
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


def test_from_the_command_line(tmp_path):
    small = [f"{name}={getattr(_TINY, name)}" for name in ("d_model", "n_layers", "n_heads", "d_head", "d_mlp")]
    settings = [item for text in (*small, "n_steps=2", "batch_size=8") for item in ("--set", text)]
    command = ["train", "arithmetic", "--out", str(tmp_path / "a"), "--quiet", *settings]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0 and "three, held out: 0 of 1312 right" in result.output, result.output
    again = CliRunner().invoke(app, command)
    assert again.exit_code == 2 and "already holds a training" in again.output
    with pytest.raises(BadInput, match="n_steps must be a whole number from 1; got 0"):
        _TINY.replace(n_steps=0)
    with pytest.raises(BadInput, match=r"held_out_share must be a number from 0 to 1; got 1\.5"):
        _TINY.replace(held_out_share=1.5)


def test_the_bundled_model_is_as_good_as_its_card_says():
    loaded = load_model("arithmetic", device="cpu")
    recipe = read_json(BUNDLED / "arithmetic" / "recipe.json")
    config = ArithmeticConfig.from_record(recipe)
    found = accuracies(loaded.model, loaded.tokenizer, config)
    card = (BUNDLED / "arithmetic" / "README.md").read_text(encoding="utf-8")
    for name, row in (("two operands", "two operands"), ("three, held out", "three operands, held out")):
        assert f"| {row} | {sum(found[name])} of {len(found[name])}" in card
    wrong = wrong_by_signs(config, found["three, held out"])
    assert sum(n for _, n in wrong.values()) == 1312
    said = " ".join(card.split())
    assert all(f"`{signs}` {k} of {n}" in said for signs, (k, n) in wrong.items() if k)
    some = composite_problems(20, seed=5)
    decoded = generate(loaded.model, loaded.tokenizer, some, progress=False)
    assert [t.response == p.answer for t, p in zip(decoded, some, strict=True)] == greedy_answers(*loaded, some)
