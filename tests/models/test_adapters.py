"""Adapters: merged into the weights, and refused where they do not fit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import LoraConfig
from test_load import save
from transformers import PreTrainedModel

from chainwright.models import load_model, provenance
from chainwright.models.adapters import with_adapters
from chainwright.models.load import load_as
from families import random_ids, tiny


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tiny("llama"), tmp_path_factory.mktemp("models") / "base")


def trained(folder: Path, model: PreTrainedModel | None = None, **settings: object) -> Path:
    """Save an adapter with random weights."""
    config = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM", **settings)  # type: ignore[arg-type]
    wrapped = with_adapters(tiny("llama") if model is None else model, config)
    torch.manual_seed(1)
    with torch.no_grad():
        for name, weight in wrapped.named_parameters():
            if "lora_" in name:
                weight.copy_(torch.randn_like(weight) * 0.3)
    wrapped.save_pretrained(folder)
    return folder


def test_an_adapter_is_merged_and_remembered(base: Path, tmp_path: Path) -> None:
    folder = trained(tmp_path / "adapter")
    plain, model = load_model(base, device="cpu").model, load_model(base, adapter=folder, device="cpu").model
    assert type(model) is type(plain) and [name for name, _ in model.named_modules()] == [
        name for name, _ in plain.named_modules()
    ]
    from peft import PeftModel

    wanted, ids = PeftModel.from_pretrained(load_model(base, device="cpu").model, str(folder)), random_ids(1, 7)
    with torch.no_grad():
        torch.testing.assert_close(model(input_ids=ids).logits, wanted(input_ids=ids).logits, rtol=1e-4, atol=1e-4)
        assert not torch.allclose(model(input_ids=ids).logits, plain(input_ids=ids).logits, atol=1e-2)
    found = provenance(model)
    assert found["adapter"] == str(folder) and found["fingerprint"] != provenance(plain)["fingerprint"]
    assert provenance(load_as(found, device="cpu").model) == found
