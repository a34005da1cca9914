"""The plug-in for vLLM notices other weights: its fingerprint is Chainwright's, of a checkpoint's files."""

from __future__ import annotations

import json
import logging
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

from chainwright.models.fingerprint import fingerprint as chainwrights
from chainwright.repair.base import BUNDLED
from chainwright_vllm import weights
from chainwright_vllm.fingerprint import Unknown, fingerprint
from chainwright_vllm.repairs import Saved, load
from chainwright_vllm.spec import BadRequest
from chainwright_vllm.weights import CONVERSION, check_weights, prepare, write_conversion

REASONER = BUNDLED.parents[1] / "models" / "bundled" / "reasoner"
SIZES: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 70000,  # an embedding of more than 4 MiB, of which a sample is hashed
}


@pytest.fixture(autouse=True)
def _said_nothing_yet() -> None:
    weights.warn_unchecked.cache_clear()
    weights._computed.cache_clear()


def _tiny(folder: Path, is_tied: bool = False, dtype: torch.dtype = torch.float32, **saving: Any) -> Path:
    torch.manual_seed(0)
    if is_tied:
        model: Any = Qwen3ForCausalLM(Qwen3Config(**SIZES, head_dim=8, tie_word_embeddings=True))
    else:
        model = LlamaForCausalLM(LlamaConfig(**SIZES, attention_bias=True, tie_word_embeddings=False))
    model.to(dtype).save_pretrained(folder, **saving)
    return folder


@pytest.mark.parametrize("is_tied", [False, True])
@pytest.mark.parametrize("saved_as", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("loaded_as", ["float32", "bfloat16", "float16"])
def test_the_fingerprint_is_chainwrights(tmp_path: Path, is_tied: bool, saved_as: torch.dtype, loaded_as: str) -> None:
    folder = _tiny(tmp_path / "model", is_tied, saved_as)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, loaded_as))
    assert fingerprint(folder, loaded_as) == chainwrights(model)


def test_the_fingerprint_of_a_checkpoint_in_several_files_and_of_the_bundled_model(tmp_path: Path) -> None:
    folder = _tiny(tmp_path / "model", max_shard_size="1MB")
    assert len(list(folder.glob("*.safetensors"))) > 1
    assert fingerprint(folder, "float32") == chainwrights(AutoModelForCausalLM.from_pretrained(folder))
    assert fingerprint(REASONER, "float32") == _saved().made_for["fingerprint"]


def _rewrite(folder: Path, change: Any) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def test_one_changed_weight_is_noticed(tmp_path: Path) -> None:
    folder = _tiny(tmp_path / "model")
    before = fingerprint(folder, "float32")
    _rewrite(folder, lambda t: t["model.layers.1.mlp.up_proj.weight"][0, 0].add_(1e-3))
    assert fingerprint(folder, "float32") != before


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda f: (f / "model.safetensors").unlink(), "0 safetensors files and no model.safetensors.index.json"),
        (lambda f: (f / "config.json").unlink(), "config.json"),
        (lambda f: _rewrite(f, lambda t: t.pop("model.norm.weight")), "no model.norm.weight"),
        (
            lambda f: _rewrite(f, lambda t: t.update({"model.norm.weight": torch.zeros(3)})),
            r"of \(3,\), not of \(16,\)",
        ),
        (lambda f: _rewrite(f, lambda t: t.update({"lm_head.weight": torch.zeros(70000, 16)})), "lm_head.weight and"),
        (lambda f: (f / "model.safetensors").write_bytes(b"junk"), "SafetensorError"),
    ],
)
def test_what_cannot_be_computed_is_named(tmp_path: Path, spoil: Any, said: str) -> None:
    folder = _tiny(tmp_path / "model", is_tied=True)
    spoil(folder)
    with pytest.raises(Unknown, match=said):
        fingerprint(folder, "float32")


def test_an_unknown_dtype_and_parts_in_float32_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = _tiny(tmp_path / "model")
    with pytest.raises(Unknown, match="dtype 'int8' is not one of float32"):
        fingerprint(folder, "int8")
    monkeypatch.setattr(LlamaForCausalLM, "_keep_in_fp32_modules_strict", ["norm"])
    fingerprint(folder, "float32")
    with pytest.raises(Unknown, match="stay in float32"):
        fingerprint(folder, "float16")


def _saved() -> Saved:
    return load(str(BUNDLED / "tcr-reasoner"))


def _config(model: Path | str, **settings: Any) -> Any:
    return SimpleNamespace(
        model_config=SimpleNamespace(
            model=str(model),
            revision=None,
            quantization=settings.get("quantization"),
            get_total_num_hidden_layers=lambda: 4,
            model_arch_config=SimpleNamespace(total_num_attention_heads=8),
            get_hidden_size=lambda: 128,
            hf_text_config=SimpleNamespace(model_type="qwen3"),
            get_total_num_kv_heads=lambda: 8,
            get_vocab_size=lambda: settings.get("d_vocab", 180),
        ),
        load_config=SimpleNamespace(load_format=settings.get("load_format", "auto"), download_dir=None),
    )


@pytest.fixture
def other(tmp_path: Path) -> Path:
    """Return the reasoner with one weight changed."""
    folder = tmp_path / "other"
    shutil.copytree(REASONER, folder)
    _rewrite(folder, lambda t: t["model.norm.weight"][0].add_(0.5))
    return folder


def test_a_repair_of_other_weights_is_refused(other: Path, caplog: pytest.LogCaptureFixture) -> None:
    check_weights(_saved().made_for, _config(REASONER))
    due, found = fingerprint(REASONER, "float32"), fingerprint(other, "float32")
    with pytest.raises(
        BadRequest, match=rf"^[^\n]*fingerprint {due}, not {found}\); serve reasoner as it was, or make"
    ):
        check_weights(_saved().made_for, _config(other))
    check_weights({}, _config(other))  # it was made for none in particular
    assert not caplog.records


def test_a_converted_model_says_what_it_was(other: Path) -> None:
    assert write_conversion(REASONER, other) == other / CONVERSION
    check_weights(_saved().made_for, _config(other))
    # the file counts for the very weights that it names
    _rewrite(other, lambda t: t["model.norm.weight"][1].add_(0.5))
    weights._computed.cache_clear()
    with pytest.raises(BadRequest, match=rf"its {CONVERSION} is about others"):
        check_weights(_saved().made_for, _config(other))
    for text, said in (("{", "is damaged; write or remove it"), ("[]", "is about others")):
        (other / CONVERSION).write_text(text)
        with pytest.raises(BadRequest, match=said):
            check_weights(_saved().made_for, _config(other))


@pytest.mark.parametrize(
    ("model", "settings", "said"),
    [
        (REASONER, {"quantization": "fp8"}, "they are quantised (fp8)"),
        (REASONER, {"load_format": "dummy"}, "they are loaded as 'dummy'"),
        ("nobody/nowhere", {}, "the checkpoint nobody/nowhere is not in a folder of this machine"),
    ],
)
def test_what_is_not_compared_is_said_once(
    caplog: pytest.LogCaptureFixture, model: Any, settings: Any, said: str
) -> None:
    with caplog.at_level(logging.WARNING, "vllm.chainwright"):
        check_weights(_saved().made_for, _config(model, **settings))
        check_weights(_saved().made_for, _config(model, **settings))
    assert len(caplog.records) == 1
    assert said in caplog.text.replace('"', "'")


def test_weights_are_read_before_requests_come_where_a_repair_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    read = []
    monkeypatch.setattr(weights, "fingerprint", lambda *what: read.append(what) or "f")
    prepare(_config(REASONER, d_vocab=181))
    assert not read
    prepare(_config("nobody/nowhere"))
    assert not read
    prepare(_config(REASONER))
    assert read == [(REASONER.resolve(), "float32")]


def test_the_example_writes_a_conversion(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    examples = Path(__file__).parents[2] / "packages" / "chainwright-vllm" / "examples"
    monkeypatch.setattr(sys, "path", [*sys.path, str(examples)])
    from wider_heads import widen

    wide = widen(REASONER, tmp_path / "wide")
    record = json.loads((wide / CONVERSION).read_text())
    assert (record["from"], record["to"]) == (fingerprint(REASONER, "float32"), fingerprint(wide, "float32"))
    assert record["from"] != record["to"]
    check_weights(_saved().made_for, _config(wide))
