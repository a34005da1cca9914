"""`load_model(device_map=...)`: layers in several places, with the results of a model in one place."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch

from chainwright import BackAttention, Repair, StepFlow, generate, knockout_effects, load_model, tasks
from chainwright._errors import BadInput
from chainwright.edits import BackHead
from chainwright.models.load import LoadedModel, provenance
from reference import assert_close

_OUTSIDE = ("model.embed_tokens", "model.rotary_emb", "model.norm", "lm_head")


def placed(layers: list[str | int], outside: str | int = "cpu") -> LoadedModel:
    places: Mapping[str, str | int] = {name: outside for name in _OUTSIDE}
    return load_model("reasoner", device_map=places | {f"model.layers.{i}": at for i, at in enumerate(layers)})


def repairs(loaded: LoadedModel) -> list[Repair | None]:
    torch.manual_seed(0)
    head = BackHead(loaded.model.config.hidden_size, 1, (2, 3, 4), d_back=16)
    torch.nn.init.normal_(head.o.weight, std=0.1)
    back = BackAttention([head.requires_grad_(False)])
    flow = StepFlow((2,), (3,), 0.3, tokenizer=loaded.tokenizer)
    return [None, Repair.from_pretrained("tcr-reasoner"), flow, back]


def assert_alike(got: LoadedModel, want: LoadedModel) -> None:
    """Fail unless both are the same model, decode the same with every repair, and have the same head effects."""
    assert provenance(got.model) == provenance(want.model)
    problems = tasks.sample("clf", 13, 2, seed=3)
    for one, other in zip(repairs(got), repairs(want), strict=True):
        options = {"progress": False, "max_new_tokens": 120}
        texts = [
            [trace.response for trace in generate(*loaded, problems, repair=repair, **options)]
            for loaded, repair in ((got, one), (want, other))
        ]
        assert texts[0] == texts[1], one
    ids = got.tokenizer([problems[0].prompt], return_tensors="pt")["input_ids"]
    effects = [knockout_effects(m.model, ids.to(m.model.device), torch.tensor([20])).effect for m in (got, want)]
    assert_close(*effects, tolerance=1e-4)


def test_layers_on_the_disk_change_nothing() -> None:
    spread = placed(["cpu", "disk", "cpu", "disk"])
    assert any(weight.is_meta for weight in spread.model.parameters())
    assert_alike(spread, load_model("reasoner", device="cpu"))


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_layers_on_two_gpus_change_nothing() -> None:
    assert_alike(placed([0, 1, 0, 1], outside=0), load_model("reasoner", device="cuda"))


def test_a_map_that_names_no_place_is_refused() -> None:
    with pytest.raises(BadInput, match="could not be loaded"):
        load_model("reasoner", device_map="nowhere")
