"""LoRA for processors against PEFT, the loss of chains against whole rows, and trainings that resume or start again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, set_peft_model_state_dict
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel

from chainwright import generate, tasks
from chainwright._errors import BadInput
from chainwright._files import read_json
from chainwright.lab import HopsConfig, adapters, train_hops
from chainwright.lab.adapters import Entry, curve_of, right_by_kind
from chainwright.lab.chains import Row, chain_loss
from chainwright.lab.lora import Adapter, Layout
from chainwright.lab.smollm2 import FIRST_SEED, chat_row, draw_hops
from chainwright.models.adapters import with_adapters
from chainwright.models.load import OWN_SHOTS, load_model, load_tokenizer
from families import tiny
from instruct import instruct_model, instruct_tokenizer

ROWS = [Row([5, 6, 7, 8, 9], [10, 11]), Row([5, 6, 7, 3, 4, 2], [12, 13, 14]), Row([5, 6, 7, 1], [15])]
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def adapted(seed: int = 3, family: str = "llama") -> tuple[PreTrainedModel, Adapter]:
    """Return a tiny model with an adapter that does something."""
    model = tiny(family, 0)
    adapter = Adapter(model, rank=4, alpha=8.0, seed=seed)
    with torch.no_grad():
        for name, weight in adapter.named_parameters():
            if name.endswith("lora_B"):
                weight.copy_(torch.randn_like(weight) * 0.05)
    return model, adapter


def plain_loss(model: Any, rows: list[Row]) -> Tensor:
    """Mean cross-entropy of the chains' tokens, row by row, by the model's own forward pass."""
    losses = []
    for prompt, chain in rows:
        logits = model(input_ids=torch.tensor([[*prompt, *chain]])).logits[0]
        for i, token in enumerate(chain):
            losses.append(-logits[len(prompt) + i - 1].log_softmax(-1)[token])
    return torch.stack(losses).mean()


def test_loss_and_gradients_are_those_of_peft_on_whole_rows(tmp_path: Path) -> None:
    model, adapter = adapted()
    adapter.save(tmp_path, "base")
    # what is saved is rounded to bfloat16, so that both sides begin with what was saved
    adapter.load(tmp_path)
    result = chain_loss(model, ROWS)
    result.loss.backward()
    reference = with_adapters(tiny("llama", 0), LoraConfig.from_pretrained(str(tmp_path)))
    set_peft_model_state_dict(reference, weights_of(tmp_path))
    reference.requires_grad_(True)
    want = plain_loss(reference, ROWS)
    want.backward()
    assert float(result.loss.detach()) == pytest.approx(float(want.detach()), rel=1e-5)
    assert result.n_tokens == 6
    theirs = {name.replace(".default", ""): weight.grad for name, weight in reference.named_parameters()}
    for name, weight in adapter._by_peft_name():
        torch.testing.assert_close(weight.grad, theirs[name], rtol=1e-4, atol=1e-6)
    assert all(weight.grad is None for name, weight in model.named_parameters() if "lora" not in name)


def test_a_fresh_adapter_changes_nothing_and_is_as_large_as_pefts() -> None:
    model = tiny("llama", 0)
    want = plain_loss(model, ROWS)
    adapter = Adapter(model, rank=4, alpha=8.0, seed=0)
    assert float(chain_loss(model, ROWS).loss) == pytest.approx(float(want), rel=1e-5)
    theirs = with_adapters(tiny("llama", 0), LoraConfig(r=4, lora_alpha=8, target_modules=TARGETS))
    n_theirs = sum(weight.numel() for weight in theirs.parameters() if weight.requires_grad)
    assert sum(weight.numel() for weight in adapter.parameters()) == n_theirs


def test_a_chain_is_right_when_greedy_decoding_would_write_it() -> None:
    model, reference = tiny("llama", 0), tiny("llama", 0)
    Adapter(model, rank=4, alpha=8.0, seed=0)
    written = []
    for prompt, _ in ROWS:
        ids = list(prompt)
        for _ in range(3):
            ids.append(int(reference(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
        written.append(Row(prompt, ids[len(prompt) :]))
    assert chain_loss(model, written).is_right == [True, True, True]
    other = (written[1].chain[-1] + 1) % 30
    spoilt = [written[0], Row(written[1].prompt, [*written[1].chain[:-1], other]), written[2]]
    assert chain_loss(model, spoilt).is_right == [True, False, True]


@pytest.mark.parametrize(
    "rows", [ROWS[:1], [Row([5], [6]), Row([7], [8, 9])], [Row([5, 6], [7]), Row([5, 6], [8])]],
    ids=["one row", "nothing in common", "the same question"],
)  # fmt: skip
def test_the_common_beginning_may_have_any_length(rows: list[Row]) -> None:
    model, _ = adapted()
    whole = chain_loss(model, rows)
    parts = [chain_loss(model, [row]) for row in rows]
    want = sum(float(part.loss) * part.n_tokens for part in parts) / whole.n_tokens
    assert float(whole.loss) == pytest.approx(want, rel=1e-5)


def test_positions_of_a_layout() -> None:
    assert Layout(2, 2, 3).positions().tolist() == [[0, 1, 2, 3, 4, 2, 3, 4]]


def test_the_adapter_is_bfloat16_merges_and_fits_one_model(tmp_path: Path) -> None:
    base = tmp_path / "base"
    instruct_model().save_pretrained(base)
    instruct_tokenizer().save_pretrained(base)
    model, _ = load_model(base, dtype=torch.float32)
    adapter = Adapter(model, rank=4, alpha=8.0, seed=0)
    with torch.no_grad():
        for weight in adapter.parameters():
            weight.add_(torch.randn_like(weight) * 0.05)
    folder = tmp_path / "adapter"
    folder.mkdir()
    adapter.save(folder, "base")
    adapter.load(folder)
    assert {weight.dtype for weight in load_file(folder / "adapter_model.safetensors").values()} == {torch.bfloat16}
    merged, _ = load_model(base, adapter=folder, dtype=torch.float32)
    want = float(plain_loss(merged, ROWS).detach())
    assert float(chain_loss(model, ROWS).loss.detach()) == pytest.approx(want, rel=1e-4)
    with pytest.raises(BadInput, match=r"does not fit this model: .*lora_A.weight has shape \(4, \d+\), expected \(2,"):
        Adapter(instruct_model(), rank=2, alpha=8.0, seed=0).load(folder)
    (folder / "adapter_model.safetensors").write_bytes(b"no")
    with pytest.raises(BadInput, match="holds no adapter that can be read"):
        adapter.load(folder)


def test_a_layer_with_a_bias_is_refused() -> None:
    with pytest.raises(BadInput, match="has a bias"):
        Adapter(tiny("qwen2", 0), rank=2, alpha=4.0, seed=0)


@pytest.fixture
def base(tmp_path: Path) -> str:
    instruct_model().save_pretrained(tmp_path / "base")
    instruct_tokenizer().save_pretrained(tmp_path / "base")
    return str(tmp_path / "base")


def small(base: str, **changes: Any) -> HopsConfig:
    settings: dict[str, Any] = dict(
        base=base, rank=2, alpha=4.0, n_steps=4, n_short_steps=2, chain_tokens=60, weights={"llc": 1.0, "parity": 1.0},
        hops={"llc": (1, 2), "parity": (1, 2)},
    )  # fmt: skip
    return HopsConfig(**{**settings, **changes})


def weights_of(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "adapter_model.safetensors")


def test_a_killed_training_resumes_to_the_same_adapter(
    base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small(base)
    want = train_hops(config, tmp_path / "whole", progress=False)
    n_taken = 0

    def dying(*args: Any) -> Any:
        nonlocal n_taken
        if n_taken == 3:
            raise KeyboardInterrupt
        n_taken += 1
        return chain_loss(*args)

    monkeypatch.setattr(adapters, "chain_loss", dying)
    with pytest.raises(KeyboardInterrupt):
        train_hops(config, tmp_path / "killed", progress=False, seconds_between_checkpoints=0.0)
    monkeypatch.undo()
    assert len(read_json(tmp_path / "killed/training/progress.json")["log"]) == 3
    with pytest.raises(BadInput, match="pass --resume"):
        train_hops(config, tmp_path / "killed", progress=False)
    got = train_hops(config, tmp_path / "killed", resume=True, progress=False)
    assert read_json(got / "recipe.json") == read_json(want / "recipe.json")
    left, right = weights_of(got), weights_of(want)
    assert left.keys() == right.keys()
    assert all(torch.equal(left[name], right[name]) for name in left)
    assert any(bool(weight.any()) for name, weight in left.items() if "lora_B" in name), "something was learned"


def test_a_training_starts_from_an_adapter_and_names_what_it_comes_from(base: str, tmp_path: Path) -> None:
    first = train_hops(small(base, n_steps=2), tmp_path / "first", progress=False)
    config = small(base, start=str(first), n_steps=1, lr=1e-9, n_warmup=0, seed=7)
    second = train_hops(config, tmp_path / "second", progress=False)
    left, right = weights_of(first), weights_of(second)
    assert all(torch.allclose(left[name], right[name], atol=1e-7) for name in left), (
        "a vanishing rate keeps the start's weights"
    )
    assert (
        load_tokenizer(base, adapter=second).init_kwargs[OWN_SHOTS] == read_json(second / "recipe.json")["shots"] == 0
    )
    trainings = read_json(second / "recipe.json")["trainings"]
    assert [t["steps"] for t in trainings] == [2, 1]
    assert [t["settings"]["seed"] for t in trainings] == [0, 7]
    assert trainings[0]["chain_tokens"] > 0
    assert "start" not in trainings[1]["settings"]
    with pytest.raises(BadInput, match=r"is no folder of an adapter with a recipe\.json"):
        train_hops(small(base, start=str(tmp_path)), tmp_path / "third", progress=False)
    with pytest.raises(BadInput, match="does not fit this model"):
        train_hops(small(base, start=str(first), rank=3), tmp_path / "fourth", progress=False)


@pytest.mark.parametrize(("native", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
def test_the_base_is_trained_on_in_bfloat16_only_where_a_machine_multiplies_it(
    native: bool, dtype: torch.dtype, base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def watched(model: PreTrainedModel, rows: list[Row]) -> Any:
        seen.append(model.dtype)
        return chain_loss(model, rows)

    monkeypatch.setattr(adapters, "multiplies_bfloat16", lambda device: native)
    monkeypatch.setattr(adapters, "chain_loss", watched)
    folder = train_hops(small(base, n_steps=1), tmp_path / "trained", progress=False)
    assert seen == [dtype]
    assert read_json(folder / "recipe.json")["trainings"][0]["dtype"] == str(dtype).removeprefix("torch.")


def test_batches_follow_from_seed_and_step_and_grow_longer() -> None:
    tokenizer = instruct_tokenizer()
    config = HopsConfig(base="none", n_short_steps=40)
    drawn = [draw_hops(config, tokenizer, step) for step in range(80)]
    assert [draw_hops(config, tokenizer, step) for step in (3, 41)] == [drawn[3], drawn[41]]
    assert drawn[3] != draw_hops(config.replace(seed=1), tokenizer, 3)
    assert {int(step.kind.split()[1]) for step in drawn[:8]} == {1}
    assert max(int(step.kind.split()[1]) for step in drawn[40:]) == 5
    assert all(int(step.kind.split()[1]) <= 2 for step in drawn if step.kind.startswith("mdm"))
    assert {len(step.rows) for step in drawn} <= set(range(3, 9))


def test_training_draws_from_seeds_that_no_evaluation_uses(monkeypatch: pytest.MonkeyPatch) -> None:
    seeds = []
    sample = tasks.sample

    def watched(task: str, hops: int, n: int, seed: int, **options: Any) -> list[tasks.Problem]:
        seeds.append(seed)
        return sample(task, hops, n, seed, **options)

    monkeypatch.setattr(tasks, "sample", watched)
    steps = [draw_hops(HopsConfig(base="none"), instruct_tokenizer(), step) for step in range(150, 170)]
    assert min(seeds) >= FIRST_SEED and len(set(seeds)) == 20
    evaluated = {
        tuple(chat_row(instruct_tokenizer(), p).prompt)
        for task in HopsConfig(base="none").hops
        for p in sample(task, 2 if task == "mdm" else 5, 12, 0, rendering="natural", n_demonstrations=0)
    }
    assert not any(tuple(row.prompt) in evaluated for step in steps for row in step.rows)


def test_a_row_is_what_generate_asks_and_its_chain_closes_the_turn() -> None:
    tokenizer = instruct_tokenizer()
    (problem,) = tasks.sample("llc", 2, 1, seed=1, rendering="natural", n_demonstrations=0)
    row = chat_row(tokenizer, problem)
    assert tokenizer.decode(row.prompt) == f"<user>{problem.prompt}<eot><assistant>"
    assert tokenizer.decode(row.chain) == f"{problem.chain}<eot>"


def test_letters_of_strings_are_tokens_of_their_own() -> None:
    tokenizer = instruct_tokenizer()
    (problem,) = tasks.sample("llc", 5, 1, seed=1, rendering="natural", n_demonstrations=0)
    plain, spelled = chat_row(tokenizer, problem), chat_row(tokenizer, problem, ("concatenation",))
    assert tokenizer.decode(spelled.chain) == tokenizer.decode(plain.chain) and spelled.prompt == plain.prompt
    *before, _ = spelled.chain
    assert [tokenizer.decode([i]).strip() for i in before[-5:]] == list(problem.answer)
    config = HopsConfig(base="none", weights={"llc": 1.0}, n_short_steps=0)
    steps = [draw_hops(config.replace(spelled=names), tokenizer, 7) for names in ((), ("concatenation",))]
    first, second = ([tokenizer.decode(row.chain) for row in step.rows] for step in steps)
    assert first == second and steps[0].rows != steps[1].rows


def test_right_rows_are_counted_by_kind() -> None:
    log = [Entry("llc 2", 0.1, 8, 3, 90), Entry("objc 1", 0.2, 4, 4, 50), Entry("llc 2", 0.1, 6, 6, 70)]
    assert right_by_kind(log) == {"llc 2": (9, 14), "objc 1": (4, 4)}
    assert curve_of(log)[2] == {"steps": [3, 3], "right": {"llc 2": (6, 6)}}
    long = curve_of(log * 7)
    assert [part["steps"] for part in long][-2:] == [[16, 18], [19, 21]]
    assert sum(part["right"].get("llc 2", (0, 0))[1] for part in long) == 7 * 14


def test_every_weighted_task_needs_its_hops() -> None:
    with pytest.raises(BadInput, match="missing: objc"):
        HopsConfig(hops={"llc": (1, 2)}, weights={"objc": 1.0})


def test_the_saved_names_are_pefts(tmp_path: Path) -> None:
    """What `save` writes has PEFT's names for every layer, and nothing else."""
    model, adapter = adapted()
    adapter.save(tmp_path, "base")
    names = set(weights_of(tmp_path))
    layers = [f"base_model.model.{name}" for name, m in model.named_modules() if type(m).__name__ == "LoRALinear"]
    assert names == {f"{layer}.lora_{x}.weight" for layer in layers for x in "AB"}


@pytest.mark.real
def test_the_shipped_adapter_writes_short_chains() -> None:
    """Eleven of twelve are right by the card's figures; fewer than eight would be another adapter or another base."""
    model, tokenizer = load_model("smollm2-hops", dtype=torch.bfloat16)
    problems = [
        p for task in ("parity", "clf") for p in tasks.sample(task, 2, 6, 0, rendering="natural", n_demonstrations=0)
    ]
    traces = generate(model, tokenizer, problems)
    assert sum(trace.first_error is None for trace in traces) >= 8
