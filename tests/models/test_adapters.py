"""Adapters: merged into the weights, remembered, and refused where they do not fit."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import IA3Config, LoraConfig, PeftModel, PrefixTuningConfig, PromptTuningConfig, get_peft_model
from safetensors.torch import load_file, save_file
from test_load import save, word_tokenizer
from transformers import PreTrainedModel

from chainwright._errors import BadInput, PartlyRead
from chainwright.models import fetch, known_models, load_model, provenance, sources
from chainwright.models.adapters import WEIGHTS, with_adapters
from chainwright.models.load import load_as, load_tokenizer
from chainwright.prompts.rendering import rendering_for
from command_line import call
from families import random_ids, tiny
from gguf_files import small_llama, write_gguf
from reference import assert_close


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tiny("llama"), tmp_path_factory.mktemp("models") / "base")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHAINWRIGHT_CACHE", str(tmp_path / "cache"))


def trained(folder: Path, model: PreTrainedModel | None = None, config: Any = None, **settings: Any) -> Path:
    """Save an adapter with random weights."""
    config = config or LoraConfig(**{"r": 4, "target_modules": "all-linear", "task_type": "CAUSAL_LM", **settings})
    wrapped = with_adapters(tiny("llama") if model is None else model, config)
    torch.manual_seed(1)
    with torch.no_grad():
        for name, weight in wrapped.named_parameters():
            if "lora_" in name or "ia3_" in name:
                weight.copy_(torch.randn_like(weight) * 0.3)
    wrapped.save_pretrained(folder)
    return folder


def logits(model: PreTrainedModel) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=random_ids(1, 7)).logits


def refusal(base: Path, adapter: Path) -> str:
    with pytest.raises(BadInput) as caught:
        load_model(base, adapter=adapter, device="cpu")
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"use_rslora": True, "lora_alpha": 32, "target_modules": ["q_proj", "down_proj"]},
        {"use_dora": True},
        {"layers_to_transform": [1], "target_modules": ["v_proj"]},
        {"modules_to_save": ["lm_head"], "target_modules": ["o_proj"]},
        {"config": IA3Config(task_type="CAUSAL_LM", target_modules=["k_proj"], feedforward_modules=[])},
    ],
)
def test_a_merged_adapter_computes_what_peft_computes(settings: dict, base: Path, tmp_path: Path) -> None:
    folder = trained(tmp_path / "adapter", **settings)
    plain, model = load_model(base, device="cpu").model, load_model(base, adapter=folder, device="cpu").model
    assert [name for name, _ in model.named_modules()] == [name for name, _ in plain.named_modules()]
    wanted = PeftModel.from_pretrained(load_model(base, device="cpu").model, str(folder))
    assert_close(logits(model), logits(wanted), tolerance=1e-4)
    assert not torch.allclose(logits(model), logits(plain), atol=1e-2)


def test_in_half_precision_the_sums_are_rounded_once(base: Path, tmp_path: Path) -> None:
    folder = trained(tmp_path / "adapter")
    model = load_model(base, adapter=folder, device="cpu", dtype="bfloat16").model
    plain = load_model(base, device="cpu", dtype="bfloat16").model
    buffers = {name: buffer.dtype for name, buffer in model.named_buffers()}
    assert buffers == {name: buffer.dtype for name, buffer in plain.named_buffers()}
    wanted = PeftModel.from_pretrained(plain.float(), str(folder)).merge_and_unload()
    for name, weight in wanted.named_parameters():
        assert torch.equal(model.get_parameter(name), weight.to(torch.bfloat16)), name


def test_an_adapter_is_remembered(base: Path, tmp_path: Path) -> None:
    folder = trained(tmp_path / "adapter")
    model = load_model(base, adapter=folder, device="cpu", dtype="bfloat16").model
    found = provenance(model)
    assert found["model"] == str(base) and found["adapter"] == str(folder) and found["dtype"] == "bfloat16"
    assert found["adapter_sha256"] == hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest()
    plain = provenance(load_model(base, device="cpu", dtype="bfloat16").model)
    assert found["fingerprint"] != plain["fingerprint"] and "adapter" not in plain
    assert provenance(load_as(found, device="cpu").model) == found
    model.save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved" / "adapter_config.json").exists(), "it is a plain model"


def test_the_tokenizer_that_was_saved_with_an_adapter_is_its_own(base: Path, tmp_path: Path) -> None:
    folder = trained(tmp_path / "adapter")
    assert load_model(base, adapter=folder, device="cpu").tokenizer.chat_template is None
    tokenizer = word_tokenizer()
    tokenizer.chat_template = "{{ messages[0]['content'] }}"
    tokenizer.save_pretrained(folder)
    assert load_model(base, adapter=folder, device="cpu").tokenizer.chat_template == tokenizer.chat_template
    assert load_tokenizer(base, adapter=folder).chat_template == tokenizer.chat_template
    assert load_tokenizer(base).chat_template is None


def test_an_adapter_for_another_base_is_refused_with_names_and_shapes(base: Path, tmp_path: Path) -> None:
    wide = trained(tmp_path / "wide", tiny("llama", intermediate_size=80))
    message = refusal(base, wide)
    name = "model.layers.0.mlp.gate_proj.lora_B.weight"
    what = f"{name} has the shape (80, 4) in the adapter and (64, 4) here."
    assert message == f"Adapter {wide} does not fit the model {base}: {what}"
    deep = trained(tmp_path / "deep", tiny("llama", num_hidden_layers=4))
    assert f"does not fit the model {base}, which has no place for model.layers.3" in refusal(base, deep)
    flat = trained(tmp_path / "flat", tiny("llama", num_hidden_layers=2), target_modules=["q_proj"])
    assert f"does not fit the model {base}, which needs model.layers.2" in refusal(base, flat)
    other = trained(tmp_path / "other", tiny("gpt2"), target_modules=["c_attn"])
    message = refusal(base, other)
    assert f"Adapter {other} does not fit the model {base}" in message and "c_attn" in message


def test_the_base_that_it_was_trained_on_is_named(base: Path, tmp_path: Path) -> None:
    folder = trained(tmp_path / "adapter", tiny("llama", num_hidden_layers=2), target_modules=["q_proj"])
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "base_model_name_or_path": "owner/other"}))
    assert refusal(base, folder).endswith("It was trained on owner/other.")


@pytest.mark.parametrize(
    ("config", "kind"),
    [
        (PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3), "PROMPT_TUNING"),
        (PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3), "PREFIX_TUNING"),
        (LoraConfig(r=2, task_type="CAUSAL_LM", target_modules=["q_proj"], alora_invocation_tokens=[5]), "LORA"),
    ],
)
def test_kinds_that_cannot_be_merged_are_refused_by_name(config: Any, kind: str, base: Path, tmp_path: Path) -> None:
    get_peft_model(tiny("llama"), config).save_pretrained(tmp_path / "adapter")
    message = refusal(base, tmp_path / "adapter")
    assert f"is of the kind {kind}, which cannot be merged into the weights of a model." in message


def test_an_adapter_that_merging_would_change_is_refused(tmp_path: Path) -> None:
    """With tied embeddings an adapter on the unembedding alone would be merged into both."""
    tied = tiny("llama", tie_word_embeddings=True)
    base = save(tied, tmp_path / "tied")
    folder = trained(tmp_path / "adapter", tiny("llama", tie_word_embeddings=True), target_modules=["lm_head"])
    assert "cannot be merged: the merged model's logits differ by" in refusal(base, folder)


def test_an_adapter_without_effect_is_a_warning(base: Path, tmp_path: Path) -> None:
    config = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    with_adapters(tiny("llama"), config).save_pretrained(tmp_path / "adapter")
    with pytest.warns(PartlyRead, match="changes nothing"):
        load_model(base, adapter=tmp_path / "adapter", device="cpu")


@pytest.mark.parametrize("damage", ["gone", "pickled", "config", "kind", "cut", "nothing", "file"])
def test_folders_that_hold_no_adapter(damage: str, base: Path, tmp_path: Path) -> None:
    folder = trained(tmp_path / "adapter")
    weights, config = folder / WEIGHTS, folder / "adapter_config.json"
    if damage == "gone":
        shutil.rmtree(folder)
    elif damage == "pickled":
        weights.rename(folder / "adapter_model.bin")
    elif damage == "config":
        config.write_text("{")
    elif damage == "kind":
        config.write_text(json.dumps({**json.loads(config.read_text()), "peft_type": "NO_SUCH"}))
    elif damage == "cut":
        weights.write_bytes(weights.read_bytes()[:-40])
    elif damage == "nothing":
        config.unlink()
    else:
        folder = weights
    assert {
        "gone": "There is no folder",
        "pickled": "holds an adapter without adapter_model.safetensors; pickled ones are not loaded",
        "config": "describes no adapter that PEFT knows",
        "kind": "describes no adapter that PEFT knows",
        "cut": "are damaged",
        "nothing": "has no adapter_config.json",
        "file": "There is no folder",
    }[damage] in refusal(base, folder)


def test_an_adapter_with_a_weight_too_few(base: Path, tmp_path: Path) -> None:
    folder = trained(tmp_path / "adapter")
    weights = load_file(folder / WEIGHTS)
    weights.pop(sorted(weights)[3])
    save_file(weights, folder / WEIGHTS)
    assert "which needs model.layers.0" in refusal(base, folder)


@pytest.fixture
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder of an adapter that comes with the package, on a small model that was fetched."""
    place = write_gguf(tmp_path / "small.gguf")
    content = place.read_bytes()
    sha256 = hashlib.sha256(content).hexdigest()
    changed = fetch.Package(**{**vars(fetch.PACKAGES["smollm2"]), "sha256": sha256})
    monkeypatch.setitem(fetch.PACKAGES, "smollm2", changed)  # type: ignore[index]
    monkeypatch.setattr(sources, "ADAPTERS", tmp_path / "adapters")
    folder = trained(tmp_path / "adapters" / "smollm2-x", small_llama())
    (folder / "recipe.json").write_text(json.dumps({"base": "smollm2", "base_sha256": sha256}))
    changed.place.parent.mkdir(parents=True)
    changed.place.write_bytes(content)
    return folder


def test_an_adapter_that_is_shipped_is_a_model_by_name(shipped: Path, tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    assert known_models()[-1] == "smollm2-x" or "smollm2-x" in known_models()
    model = load_model("smollm2-x", device="cpu").model
    named, by_hand = provenance(model), provenance(load_model("smollm2", adapter=shipped, device="cpu").model)
    assert named["fingerprint"] == by_hand["fingerprint"] and named["gguf_sha256"] == by_hand["gguf_sha256"]
    assert (named["model"], named["revision"], named["base"]) == ("smollm2-x", "bundled", "smollm2")
    assert provenance(load_as(named, device="cpu").model) == named
    assert rendering_for("auto", "smollm2-x") == rendering_for("auto", "smollm2") == "natural"
    code, printed = call("models")
    assert code == 0 and "smollm2-x" in printed and "Adapters on them" in printed
    (shipped / "recipe.json").write_text(json.dumps({"base": "smollm2", "base_sha256": "0" * 64}))
    with pytest.raises(BadInput, match="was trained on another file than 'smollm2' is now"):
        load_model("smollm2-x")


def test_a_shipped_adapter_whose_base_was_not_fetched(shipped: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "local_file", lambda _: None)
    with pytest.raises(BadInput, match="run `chainwright models fetch smollm2` to download it"):
        load_model("smollm2-x")


def test_what_is_shipped_is_small_and_says_what_it_belongs_on() -> None:
    for name in sources.bundled_adapters():
        adapter = sources.bundled_adapter(name)
        weights = load_file(adapter.folder / WEIGHTS)
        assert (adapter.folder / WEIGHTS).stat().st_size <= 10e6 and (adapter.folder / "README.md").is_file()
        assert {weight.dtype for weight in weights.values()} == {torch.bfloat16}
        assert adapter.base_sha256 == fetch.PACKAGES[adapter.base].sha256


def test_commands_take_an_adapter(tmp_path: Path) -> None:
    folder = trained(tmp_path / "adapter", load_model("reasoner", device="cpu").model, target_modules=["o_proj"])
    asked = ("generate", "--model", "reasoner", "--task", "parity", "--hops", "4", "-n", "1")
    code, changed = call(*asked, "--adapter", folder)
    assert code == 0 and changed != call(*asked)[1]
    code, printed = call(*asked, "--adapter", tmp_path / "none")
    assert code == 2 and f"There is no folder {tmp_path / 'none'}" in printed


@pytest.mark.slow
def test_a_study_remembers_its_adapter(tmp_path: Path) -> None:
    folder = trained(tmp_path / "adapter", load_model("reasoner", device="cpu").model, target_modules=["o_proj"])
    out = tmp_path / "study"
    asked = ("diagnose", "--task", "parity", "--hops", "4", "-n", "2", "-o", out, "--quiet")
    code, printed = call(*asked, "--adapter", folder)
    assert code == 0, printed
    manifest = json.loads((out / "study.json").read_text())
    assert manifest["model"]["adapter"] == manifest["config"]["adapter"] == str(folder)
    code, printed = call("study", "run", out)
    assert code == 0, printed
    code, printed = call(*asked)
    assert code == 2 and "adapter" in printed
