"""The recipe of the bundled reasoner: its data, its learning rate, and training that was killed and resumes."""

import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.utils.data import DataLoader

from chainwright import tasks
from chainwright._errors import BadInput
from chainwright.lab import ReasonerConfig, reasoner, train_reasoner, training
from chainwright.lab.reasoner import Batch, ReasonerData, new_reasoner, reasoner_tokenizer
from chainwright.lab.recipe import learning_rate
from chainwright.models.load import BUNDLED, load_model

TASKS = {"parity": (2, 4), "clf": (2, 3), "mdm": (1, 2)}
SMALL = ReasonerConfig(
    d_model=16, n_layers=1, n_heads=2, d_head=8, d_mlp=16, n_positions=512, batch_tokens=256, n_tokens=24 * 256,
    n_warmup=4, hops=TASKS, weights=dict.fromkeys([*TASKS, "copy"], 1.0),
)  # fmt: skip


class Stopped(Exception):
    pass


def data(config: ReasonerConfig = SMALL, first: int = 0) -> ReasonerData:
    return ReasonerData(config, reasoner_tokenizer(config), first)


def groups(config: ReasonerConfig = SMALL, first: int = 0, n_workers: int = 0) -> list[list[Batch]]:
    return list(DataLoader(data(config, first), batch_size=None, num_workers=n_workers))


def same_groups(got: list[list[Batch]], want: list[list[Batch]]) -> bool:
    pairs = [(a, b) for x, y in zip(got, want, strict=True) for a, b in zip(x, y, strict=True)]
    return all(torch.equal(i, j) for a, b in pairs for i, j in zip(a, b, strict=True))


def test_batches_are_a_function_of_the_seed_and_their_number() -> None:
    first = groups()
    assert len(first) == 3 and same_groups(groups(), first)
    assert same_groups(groups(n_workers=2), first), "the number of workers changes nothing"
    assert same_groups(groups(first=1), first[1:]), "nor does where a run resumes"
    other = groups(SMALL.replace(seed=1))
    assert not any(torch.equal(a[0].input_ids, b[0].input_ids) for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize("n_steps", [1, 7, 8, 9, 23, 24])
def test_there_are_as_many_batches_as_steps(n_steps: int) -> None:
    config = SMALL.replace(n_tokens=n_steps * 256)
    assert config.n_steps == n_steps
    drawn = groups(config)
    assert sum(map(len, drawn)) == n_steps
    assert [len(group) for group in drawn[:-1]] == [8] * (len(drawn) - 1)


def test_no_batch_is_empty_where_rows_are_longer_than_a_batch() -> None:
    """With few tokens a batch one long row could reach over several, which would shift all later steps."""
    config = SMALL.replace(batch_tokens=24, n_tokens=24 * 80, hops={"mdm": (1, 6)}, weights={"mdm": 1.0, "copy": 3.0})
    drawn = groups(config)
    assert [len(group) for group in drawn] == [8] * 10
    assert all(len(batch.input_ids) > 0 for group in drawn for batch in group)


def test_rows_are_cut_evenly_and_none_is_lost() -> None:
    made, rng = data(), reasoner.random.Random(0)
    for lengths in ([5] * 40, list(range(1, 60)), [1] * 7 + [500], [3] * 8, [1] * 30 + [400, 400]):
        rows = [([7] * n, 0) for n in lengths]
        cut = made._cut(rows, rng)
        assert len(cut) == 8
        # padding has another id
        assert sum(int((batch.input_ids == 7).sum()) for batch in cut) == sum(lengths)
    even = [int((b.input_ids == 7).sum()) for b in made._cut([([7] * 5, 0)] * 40, rng)]
    assert even == [25] * 8


def test_the_loss_counts_the_chain_alone() -> None:
    tokenizer, n_seen = reasoner_tokenizer(SMALL), 0
    for batch in groups()[0]:
        for ids, labels in zip(batch.input_ids, batch.labels, strict=True):
            counted = labels != -100
            assert torch.equal(labels[counted], ids[counted])
            start, length = int(counted.float().argmax()), int((ids != tokenizer.pad_token_id).sum())
            assert counted.tolist() == [start <= i < length for i in range(len(ids))], "one block up to the end"
            assert int(ids[0]) == tokenizer.bos_token_id and int(ids[length - 1]) == tokenizer.eos_token_id
            prompt, chain = tokenizer.decode(ids[1:start]), tokenizer.decode(ids[start : length - 1])
            assert prompt.rstrip().endswith("?"), "what is masked is the question"
            if prompt.startswith("copy"):
                assert chain in prompt
                continue
            n_seen += 1
            assert any(chain.rstrip().splitlines()[-1].startswith(w) for w in ("end", "answer", "final", "total"))
    assert n_seen > 10


def test_samples_are_of_the_tasks_and_hops_that_were_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    made, rng, asked = data(), reasoner.random.Random(3), []
    real = tasks.sample

    def watched(task: str, hops: int, n: int, seed: int) -> list[tasks.Problem]:
        asked.append((task, hops))
        assert n == 1 and seed >= 2**32, "small seeds are left to evaluation"
        return real(task, hops, n, seed)

    monkeypatch.setattr(reasoner.tasks, "sample", watched)
    drawn = [made._draw(rng) for _ in range(200)]
    assert {prompt.split()[0] for prompt, _ in drawn} == {"parity", "clf", "mdm", "copy"}
    assert set(asked) == {(task, hops) for task, (low, high) in TASKS.items() for hops in range(low, high + 1)}
    copies = [(prompt, text) for prompt, text in drawn if prompt.startswith("copy")]
    assert len(copies) > 30 and all(prompt == f"copy {text} ?\n" for prompt, text in copies)


def test_positions_jump_ahead_and_never_too_far() -> None:
    n_jumping = n_rows = 0
    for batch in (batch for group in groups() for batch in group):
        for positions in batch.positions:
            steps = positions.diff()
            assert bool((steps >= 1).all()), "positions rise at each token"
            assert int(positions[0]) >= 0 and int(positions[-1]) < SMALL.n_positions
            n_rows += 1
            n_jumping += bool((steps > 1).any()) or int(positions[0]) > 0
    assert 0.3 < n_jumping / n_rows < 0.7, f"{n_jumping} of {n_rows} jump"
    made, rng = data(), reasoner.random.Random(1)
    ends = [int(made._jumping(40, rng)[-1]) for _ in range(300)]
    assert max(ends) > 450 and min(ends) >= 39 and max(ends) < SMALL.n_positions
    assert made._jumping(SMALL.n_positions, rng).tolist() == list(range(SMALL.n_positions))
    assert all(torch.equal(b.positions[0], torch.arange(b.positions.shape[1]))
               for b in groups(SMALL.replace(jump_share=0.0))[0])  # fmt: skip


def test_too_few_positions_are_said() -> None:
    with pytest.raises(BadInput, match=r"A sample has \d+ tokens, but the recipe has n_positions=20; raise that"):
        groups(SMALL.replace(n_positions=20))


def test_the_learning_rate_rises_stays_and_falls_to_zero() -> None:
    config = SMALL.replace(n_tokens=100 * 256, n_warmup=10, decay_share=0.5, lr=2.0)
    rates = [learning_rate(config, step) for step in range(100)]
    assert rates[:10] == pytest.approx([0.2 * (i + 1) for i in range(10)])
    assert rates[10:51] == [2.0] * 41
    assert rates[51:] == pytest.approx([2.0 * (100 - i) / 50 for i in range(51, 100)])
    assert rates[99] > 0 and learning_rate(config, 100) == learning_rate(config, 107) == 0.0
    assert min(rates) > 0
    assert learning_rate(config.replace(n_warmup=0), 0) == 2.0
    assert learning_rate(config.replace(n_tokens=1), 0) > 0, "one step at least"


def test_an_untrained_reasoner_is_the_same_for_the_same_seed() -> None:
    tokenizer = reasoner_tokenizer(SMALL)
    first, again, other = (new_reasoner(c, tokenizer).state_dict() for c in (SMALL, SMALL, SMALL.replace(seed=1)))
    assert all(torch.equal(first[k], again[k]) for k in first)
    assert not all(torch.equal(first[k], other[k]) for k in first)


def train(folder: Path, config: ReasonerConfig = SMALL, **options: object) -> Path:
    options = {"progress": False, "seconds_between_checkpoints": 0.0} | options
    return train_reasoner(config, folder, **options)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def same_weights(got: Path, want: Path) -> None:
    ours, theirs = weights(got), weights(want)
    assert ours.keys() == theirs.keys()
    for name in theirs:
        off = (ours[name] - theirs[name]).abs()
        assert torch.equal(ours[name], theirs[name]), (
            f"{name}: max {float(off.max()):.3g}, mean {float(off.mean()):.3g}"
        )


def log(folder: Path) -> list[dict[str, float]]:
    return json.loads((folder / "training" / "progress.json").read_text())["log"]


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tmp_path_factory.mktemp("lab") / "straight")


def stop_after(monkeypatch: pytest.MonkeyPatch, n_checkpoints: int) -> None:
    real, seen = training.Training.save, []

    def save(self: training.Training, **recorded: object) -> None:
        real(self, **recorded)
        seen.append(self.step)
        if len(seen) == n_checkpoints:
            raise Stopped

    monkeypatch.setattr(training.Training, "save", save)


@pytest.mark.parametrize("n_checkpoints", [1, 2, 3])
def test_killed_training_goes_on_to_the_same_weights(
    straight: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, n_checkpoints: int
) -> None:
    with monkeypatch.context() as patch:
        stop_after(patch, n_checkpoints)
        with pytest.raises(Stopped):
            train(tmp_path / "r")
    assert not (tmp_path / "r" / "model.safetensors").exists()
    train(tmp_path / "r", resume=True, n_workers=1 if n_checkpoints == 1 else 0)
    same_weights(tmp_path / "r", straight)
    assert log(tmp_path / "r") == log(straight)


def test_training_takes_the_steps_of_the_recipe_and_ends_at_rate_zero(straight: Path, tmp_path: Path) -> None:
    assert [entry["step"] for entry in log(straight)] == [8, 16, 24]
    assert log(straight)[-1]["lr"] == 0.0 and all(math.isfinite(entry["loss"]) for entry in log(straight))
    odd = train(tmp_path / "odd", SMALL.replace(n_tokens=11 * 256))
    assert [entry["step"] for entry in log(odd)] == [8, 11] and log(odd)[-1]["lr"] == 0.0
    before = weights(odd)
    train(tmp_path / "odd", SMALL.replace(n_tokens=11 * 256), resume=True)
    after = weights(odd)
    assert all(torch.equal(before[name], after[name]) for name in before), "a finished training has nothing left to do"
    assert len(log(odd)) == 2


def test_a_training_killed_while_its_checkpoint_was_replaced_goes_on(
    straight: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        stop_after(patch, 2)
        with pytest.raises(Stopped):
            train(tmp_path / "r")
    (tmp_path / "r" / "training").rename(tmp_path / "r" / ".training.12-0123abcd.old")
    steps: list[int] = []
    real = training.Training._take
    monkeypatch.setattr(training.Training, "_take", lambda self, loss: steps.append(self.step) or real(self, loss))
    train(tmp_path / "r", resume=True)
    assert steps == list(range(16, 24)), "it does not start over"
    same_weights(tmp_path / "r", straight)


KILLED = """
import json, sys, time
from pathlib import Path
from chainwright.lab import ReasonerConfig, train_reasoner, training
real = training.Training.save
def save(self, **recorded):
    real(self, **recorded)
    print(self.step, flush=True)
    time.sleep(1)
training.Training.save = save
config = ReasonerConfig(**json.loads(sys.argv[2]))
train_reasoner(config, Path(sys.argv[1]), progress=False, seconds_between_checkpoints=0.0)
"""


@pytest.mark.slow
def test_sigkill_and_going_on_gives_the_same_weights(straight: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", KILLED, str(tmp_path / "r"), json.dumps(SMALL.record())]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env)
    assert process.stdout is not None and process.stdout.readline() == "8\n"
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    process.stdout.close()
    train(tmp_path / "r", resume=True)
    same_weights(tmp_path / "r", straight)


def test_folders_are_refused_unless_they_hold_this_recipe(straight: Path, tmp_path: Path) -> None:
    before = {p: p.read_bytes() for p in straight.rglob("*") if p.is_file()}
    with pytest.raises(BadInput, match=r"straight already holds a training; pass --resume to resume it"):
        train(straight)
    with pytest.raises(BadInput, match=r"another recipe; these settings differ: hops, lr"):
        train(straight, SMALL.replace(lr=1e-3, hops={**TASKS, "parity": (2, 5)}), resume=True)
    assert {p: p.read_bytes() for p in straight.rglob("*") if p.is_file()} == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "model.safetensors").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for name in ("mine", "file"):
        for resume in (False, True):
            with pytest.raises(BadInput, match="exists and holds no training; choose an empty or new folder"):
                train(tmp_path / name, resume=resume)
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["model.safetensors"]
    assert (tmp_path / "file").read_text() == "mine"


def test_resuming_where_nothing_was_begun_begins(straight: Path, tmp_path: Path) -> None:
    same_weights(train(tmp_path / "r", resume=True), straight)


def test_a_damaged_checkpoint_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        stop_after(patch, 1)
        with pytest.raises(Stopped):
            train(tmp_path / "r")
    state = tmp_path / "r" / "training" / "state.safetensors"
    content = state.read_bytes()
    state.write_bytes(content[: len(content) // 2])
    with pytest.raises(BadInput, match=r"state\.safetensors is missing or damaged"):
        train(tmp_path / "r", resume=True)
    (tmp_path / "r" / "training" / "progress.json").write_text("{")
    with pytest.raises(BadInput, match=r"progress\.json is no readable JSON"):
        train(tmp_path / "r", resume=True)


def test_what_was_trained_is_loaded_like_any_model(straight: Path) -> None:
    model, tokenizer = load_model(straight)
    assert model.config.model_type == "qwen3" and model.config.hidden_size == 16
    assert model.config.eos_token_id == tokenizer.eos_token_id == 2
    assert len(tokenizer) == model.config.vocab_size
    (problem,) = tasks.sample("parity", 3, 1)
    assert tokenizer.decode(tokenizer(problem.chain, add_special_tokens=False)["input_ids"]) == problem.chain


def test_the_bundled_reasoner_was_made_by_the_recipe_that_lies_beside_it() -> None:
    recipe = json.loads((BUNDLED / "reasoner" / "recipe.json").read_text())
    config = ReasonerConfig(**recipe)
    model, tokenizer = load_model("reasoner")
    made = new_reasoner(config, reasoner_tokenizer(config))
    assert {k: v.shape for k, v in made.state_dict().items()} == {k: v.shape for k, v in model.state_dict().items()}
    assert tokenizer.get_vocab() == reasoner_tokenizer(config).get_vocab()
    assert sum(p.stat().st_size for p in (BUNDLED / "reasoner").iterdir()) < 20 * 2**20


@pytest.mark.slow
def test_two_hundred_steps_reduce_the_loss(tmp_path: Path) -> None:
    size = {"d_model": 64, "n_layers": 2, "n_heads": 4, "d_head": 16, "d_mlp": 128}
    config = ReasonerConfig(**size, n_tokens=200 * 1024, batch_tokens=1024, n_warmup=20)
    folder = train(tmp_path / "r", config, seconds_between_checkpoints=60.0)
    losses = [entry["loss"] for entry in log(folder)]
    first, last = losses[0], sum(losses[-3:]) / 3
    assert first > 4.0, "guessing among some 180 words costs about 5.2 nats"
    assert last < 0.5 * first, f"the loss went from {first:.2f} to {last:.2f}"
