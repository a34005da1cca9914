"""The laboratory: its models, training that is killed and resumes, and what it measures on the way."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from chainwright._errors import BadInput
from chainwright.cli import app
from chainwright.diagnose import Emergence, circuit_measures, iteration_scores
from chainwright.lab import IterationConfig, train_iteration, training
from chainwright.lab.iteration import held_out_sets
from chainwright.lab.iteration_data import iteration_problems
from chainwright.lab.iteration_model import new_iteration_model
from chainwright.models.capture import capture
from chainwright.models.load import load_model
from chainwright.traces import Trace
from reference import assert_close

SMALL = IterationConfig(
    max_length=3, modulus=3, d_model=16, n_steps=12, batch_size=8, n_warmup=2, measure_every=4, n_held_out=4
)


class Stopped(Exception):
    pass


def train(folder: Path, config: IterationConfig = SMALL, **options: object) -> Emergence:
    return train_iteration(config, folder, progress=False, **options)


def same(got: Path, want: Path) -> None:
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (got, want))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    a, b = (Emergence.load(folder / "emergence") for folder in (got, want))
    for name in ("steps", "accuracy", "token_accuracy", "measures", "maps"):
        assert torch.equal(getattr(a, name), getattr(b, name)), name
    assert torch.equal(a.loss.nan_to_num(-1), b.loss.nan_to_num(-1))


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    train(tmp_path_factory.mktemp("lab") / "straight")
    return tmp_path_factory.getbasetemp() / "lab0" / "straight"


def test_what_is_trained_is_measured_at_every_checkpoint_and_loads_as_a_model(straight: Path) -> None:
    found = Emergence.load(straight / "emergence")
    assert found.steps.tolist() == [0, 4, 8, 12] and found.tasks == ["polynomial"]
    assert found.maps.shape == (4, 1, 2, 1, 9, 9) and found.measures.shape == (4, 1, len(found.lengths), 2, 3, 2, 1)
    assert torch.isfinite(found.loss[1:]).all()
    model, tokenizer = load_model(straight)
    assert model.config.model_type == "gpt2" and tokenizer.decode([2]) == "="
    kept = sorted(path.name for path in (straight / "checkpoints").iterdir())
    assert kept == ["step-000000", "step-000004", "step-000008", "step-000012"]
    first, _ = load_model(straight / "checkpoints" / "step-000000")
    untrained = new_iteration_model(SMALL)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), untrained.parameters(), strict=True))


def test_measures_are_those_of_the_checkpoint_that_was_kept(straight: Path) -> None:
    """A forward pass of the plain Transformers model, with its own eager attention, gives the same."""
    found = Emergence.load(straight / "emergence")
    model, _ = load_model(straight)
    model.set_attn_implementation("eager")
    for i, sequences in enumerate(held_out_sets(SMALL)[0]):
        with torch.no_grad():
            output = model(sequences.input_ids, output_attentions=True)
        n = found.lengths[i]
        assert_close(found.measures[-1, 0, i], circuit_measures(torch.stack(output.attentions), n).stacked())
        right = output.logits[:, n + 1 : -1].argmax(-1) == sequences.input_ids[:, n + 2 :]
        assert float(found.accuracy[-1, 0, i]) == pytest.approx(float(right.all(1).float().mean()))
        assert float(found.token_accuracy[-1, 0, i]) == pytest.approx(float(right[:, :-1].float().mean()))
    assert_close(found.maps[-1, 0], torch.stack(output.attentions).mean(1))


@pytest.mark.parametrize("n_checkpoints", [1, 2, 3])
def test_killed_training_goes_on_to_the_same_weights_and_measures(
    straight: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, n_checkpoints: int
) -> None:
    def stop(found: Emergence) -> None:
        if len(found.steps) == n_checkpoints:
            raise Stopped

    with pytest.raises(Stopped):
        train(tmp_path / "r", on_checkpoint=stop)
    assert not (tmp_path / "r" / "model.safetensors").exists()
    train(tmp_path / "r", resume=True)
    same(tmp_path / "r", straight)


def test_a_kill_between_measures_and_state_leaves_no_double_checkpoint(
    straight: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = training.save_optimizer, []

    def save(*args: object) -> None:
        calls.append(1)
        if len(calls) == 3:
            raise Stopped
        real(*args)

    with monkeypatch.context() as patch:
        patch.setattr(training, "save_optimizer", save)
        with pytest.raises(Stopped):
            train(tmp_path / "r")
    assert Emergence.load(tmp_path / "r" / "emergence").steps.tolist() == [0, 4, 8]
    train(tmp_path / "r", resume=True)
    same(tmp_path / "r", straight)


def test_folders_are_refused_unless_they_hold_this_recipe(straight: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="already holds a training; pass --resume"):
        train(straight)
    with pytest.raises(BadInput, match="another recipe; these settings differ: lr"):
        train(straight, SMALL.replace(lr=1e-3), resume=True)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(BadInput, match="exists and holds no training"):
        train(tmp_path / "mine")


def test_training_goes_on_from_another_task(straight: Path, tmp_path: Path) -> None:
    config = SMALL.replace(tasks={"parity": 1.0}, start_from=str(straight), n_steps=4)
    found = train(tmp_path / "r", config, keep_checkpoints=False)
    assert found.tasks == ["parity"] and not (tmp_path / "r" / "checkpoints").exists()
    source = new_iteration_model(config)
    loaded, _ = load_model(straight)
    assert all(torch.equal(a, b) for a, b in zip(source.parameters(), loaded.parameters(), strict=True))
    with pytest.raises(BadInput, match="was made for another modulus or alphabet"):
        train(tmp_path / "other", config.replace(modulus=5))
    with pytest.raises(BadInput, match="length 8 have 19 tokens, more than the 9 positions of the checkpoint"):
        train(tmp_path / "long", config.replace(max_length=8))
    assert not (tmp_path / "long").exists()


def test_a_mixture_is_measured_task_by_task(tmp_path: Path) -> None:
    found = train(tmp_path / "r", SMALL.replace(tasks={"copy": 1.0, "parity": 1.0}, n_steps=2))
    assert found.tasks == ["copy", "parity"] and found.lengths == [2, 3], "one bit leaves nothing to hold out"
    assert found.accuracy.shape == (2, 2, 2)


def test_without_a_chain_of_thought_there_is_no_circuit_to_measure(tmp_path: Path) -> None:
    found = train(tmp_path / "r", SMALL.replace(chain_of_thought=False, n_steps=2))
    assert found.measures.isnan().all() and found.maps.shape[-1] == 7
    assert "without a chain of thought" in found.summary()


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({"positions": "rotary", "n_heads": 2}, "llama"),
        ({"positions": "none"}, "gpt2"),
        (
            {
                "model": {
                    "model_type": "qwen3",
                    "hidden_size": 16,
                    "intermediate_size": 16,
                    "num_hidden_layers": 1,
                    "num_attention_heads": 2,
                    "num_key_value_heads": 1,
                    "head_dim": 8,
                }
            },
            "qwen3",
        ),
    ],
)
def test_other_position_embeddings_and_other_configs(tmp_path: Path, changes: dict, kind: str) -> None:
    config = SMALL.replace(n_steps=4, **changes)

    def stop(found: Emergence) -> None:
        if len(found.steps) == 2:
            raise Stopped

    with pytest.raises(Stopped):
        train(tmp_path / "r", config, on_checkpoint=stop)
    train(tmp_path / "r", config, resume=True)
    model, _ = load_model(tmp_path / "r")
    assert model.config.model_type == kind and model.config.max_position_embeddings == 9
    if changes.get("positions") == "none":
        assert not model.transformer.wpe.weight.any(), "positions stay out while it trains"


def test_embedding_tables_are_as_wide_as_asked() -> None:
    model = new_iteration_model(SMALL.replace(d_model=64, n_positions=400, embedding_std=0.5))
    for table in (model.transformer.wte.weight, model.transformer.wpe.weight):
        assert abs(float(table.detach().std()) - 0.5) < 0.05
    assert abs(float(model.lm_head.weight.detach().std()) - 0.1) < 0.02, "the unembedding is its own"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_positions": 20, "max_length": 12}, "length 12 have 27 tokens, more than the 20 positions of the model"),
        ({"positions": "sinusoidal"}, "Unknown positions 'sinusoidal'; known: learned, rotary, none"),
        ({"max_length": 2, "min_length": 3}, "max_length must be at least min_length; got 2 and 3"),
        ({"tasks": {}}, "Setting tasks gives a weight to at least one of copy, parity, polynomial"),
        ({"tasks": {"copy": 0.0}}, "Setting tasks gives a weight to at least one of"),
        ({"held_out_share": 1.0}, "held_out_share must be a number above 0 and below 1; got 1.0"),
        ({"n_steps": 0}, "n_steps must be a whole number from 1; got 0"),
    ],
)
def test_a_recipe_that_cannot_be_trained_is_refused(changes: dict, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        IterationConfig(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tasks": {"copy": 1.0}, "max_length": 1}, "No length from 1 to 1 has a held-out sequence"),
        ({"model": {"model_type": "no-such"}}, "Setting model makes no Transformers config"),
        ({"d_model": 10, "n_heads": 3}, "These sizes make no model"),
    ],
)
def test_what_only_shows_when_it_is_made_is_refused_before_anything_is_written(
    tmp_path: Path, changes: dict, message: str
) -> None:
    with pytest.raises(BadInput, match=message):
        train(tmp_path / "r", SMALL.replace(**changes))
    assert not (tmp_path / "r").exists()


def test_the_instrument_sees_the_diagonal_that_the_laboratory_measures(straight: Path) -> None:
    """On gold chains of one length the link to the input is the diagonal score, head by head."""
    model, tokenizer = load_model(straight)
    problems = iteration_problems(SMALL, "polynomial", 3, 4)
    traces = [Trace.from_text(tokenizer, p.prompt, p.chain, problem=p) for p in problems]
    found = iteration_scores(model, tokenizer, traces)
    assert found.links == ["input"], "states alone: inputs are not said again, and s_(t-1) is where s_t is written"
    ids = torch.stack([trace.input_ids for trace in traces])
    attention = capture(model, ids, attention=True).attention
    want = circuit_measures(attention, 3)
    assert_close(found.score[found.link("input")], want.diagonal)
    assert_close(found.invariance[found.link("input")], want.diagonal_invariance)
    assert_close(found.thresholded[found.link("input")], want.diagonal_thresholded)


def test_the_command_trains_goes_on_and_says_what_is_wrong(tmp_path: Path) -> None:
    folder = tmp_path / "r"
    command = ["train", "iteration", "--out", str(folder), "--task", "copy,parity", "--quiet"]
    for name in ("max_length=3", "d_model=16", "n_steps=4", "measure_every=2"):
        command += ["--set", name]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    assert "copy: 0." in done.output and "parity: 0." in done.output and str(folder) in done.output.replace("\n", "")
    assert CliRunner().invoke(app, command).exit_code == 2
    assert CliRunner().invoke(app, [*command, "--resume"]).exit_code == 0
    wrong = CliRunner().invoke(app, ["train", "iteration", "--set", "modulus=1"])
    assert wrong.exit_code == 2 and "must be at least 2; got 1" in wrong.output


@pytest.mark.slow
def test_the_circuit_forms_on_a_short_polynomial(tmp_path: Path) -> None:
    found = train(tmp_path / "r", IterationConfig(max_length=5, modulus=5, n_steps=500), keep_checkpoints=False)
    assert float(found.exact()[-1]) > 0.95, found.summary()
    assert float(found.curve("diagonal")[-1]) > 0.5 > float(found.curve("diagonal")[0]), found.summary()
