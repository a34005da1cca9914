"""Which machines are taken to multiply bfloat16 fast."""

from __future__ import annotations

import pytest
import torch

from chainwright.models.half_precision import multiplies_bfloat16


@pytest.mark.parametrize("has", [("avx512_bf16",), ("amx_tile",), ()])
def test_a_processor_is_asked_for_its_instructions(has: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("avx512_bf16", "amx_tile"):
        monkeypatch.setattr(torch.cpu, f"_is_{name}_supported", lambda name=name: name in has)
    assert multiplies_bfloat16("cpu") == bool(has)
    assert multiplies_bfloat16("cuda")


def test_a_torch_that_cannot_tell_is_taken_to_emulate(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("avx512_bf16", "amx_tile"):
        monkeypatch.delattr(torch.cpu, f"_is_{name}_supported")
    assert not multiplies_bfloat16(torch.device("cpu"))
