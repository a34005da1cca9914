"""GGUF files: converted once into what Transformers makes of them, with the words, ends and positions of the file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from chainwright._errors import BadInput
from chainwright.models import load_model, provenance
from chainwright.models.load import end_ids, load_as, load_tokenizer
from gguf_files import small_llama, write_gguf
from reference import assert_equal

pytest.importorskip("gguf")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CHAINWRIGHT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=torch.arange(20)[None]).logits


@pytest.mark.parametrize("kind", ["F32", "Q8_0", "Q4_1"])
def test_a_cached_load_equals_a_direct_one(kind: str, tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "small.gguf", quantised=kind)
    direct = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=path.name, dtype=torch.float32)
    first, second = (load_model(path, device="cpu").model for _ in range(2))
    assert torch.equal(logits(first), logits(direct)) and torch.equal(logits(second), logits(direct))
    if kind == "F32":
        assert_equal(logits(first), logits(small_llama()))
    assert first.dtype == torch.float32 and first.config._name_or_path == second.config._name_or_path


def test_what_is_loaded_names_its_file_and_can_be_saved(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "small.gguf")
    model, tokenizer = load_model(path, device="cpu", dtype="bfloat16")
    found = provenance(model)
    assert found["model"] == str(path) and len(found["gguf_sha256"]) == 64 and found["dtype"] == "bfloat16"
    assert provenance(load_as(found, device="cpu").model) == found
    model.save_pretrained(tmp_path / "saved")
    tokenizer.save_pretrained(tmp_path / "saved")
    assert "quantization_config" not in json.loads((tmp_path / "saved" / "config.json").read_text())
    assert torch.equal(logits(load_model(tmp_path / "saved", device="cpu").model), logits(model))
    assert end_ids(model, tokenizer) == {2} and load_tokenizer(path).get_vocab() == tokenizer.get_vocab()
    assert load_file(tmp_path / "saved" / "model.safetensors")["model.norm.weight"].dtype == torch.bfloat16


def test_a_file_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"There is no file .*none\.gguf"):
        load_model(tmp_path / "none.gguf")
