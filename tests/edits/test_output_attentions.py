"""`output_attentions=True` inside an edit: every layer's weights at its own index, and those that were used."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from chainwright import BadInput
from chainwright.edits import AttendBack, BackHead, Bridge, Cut, CutAttention, KnockOut, edit
from chainwright.edits.base import Edit
from chainwright.models import capture
from chainwright.traces.live import LiveSteps
from families import FAMILIES, random_ids, tiny
from reference import assert_close
from step_runs import Words, rows_of

EVERY_LAYER = {(layer, head) for layer in range(3) for head in range(4)}


def eager(family: str) -> PreTrainedModel:
    model = tiny(family)
    model.set_attn_implementation("eager")
    return model


@torch.no_grad()
def weights(model: PreTrainedModel, ids: Tensor, **options: Any) -> tuple[Tensor, ...]:
    given: tuple[Tensor, ...] = model(input_ids=ids, output_attentions=True, **options).attentions
    assert len(given) == 3 and all(isinstance(each, Tensor) for each in given)
    return given


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("heads", [{(1, 2)}, EVERY_LAYER], ids=["one layer", "every layer"])
def test_the_weights_of_edited_layers_are_given_at_their_index(family: str, heads: set[tuple[int, int]]) -> None:
    model, ids = eager(family), random_ids(2, 9)
    plain = weights(model, ids)
    with edit(model, KnockOut(heads)):
        got, read = weights(model, ids), capture(model, ids, attention=True).attention
    assert read is not None
    first = min(layer for layer, _ in heads)
    for layer in range(3):
        assert_close(got[layer], read[layer], f"{family}, layer {layer}", tolerance=1e-5)
        assert (layer <= first) == torch.allclose(got[layer], plain[layer], atol=1e-6)


def test_a_config_that_asks_for_them_is_heard_too() -> None:
    model, ids = eager("llama"), random_ids(1, 7)
    model.config.output_attentions = True
    with torch.no_grad(), edit(model, KnockOut(EVERY_LAYER)):
        assert len(model(input_ids=ids).attentions) == 3


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_oss"])
@pytest.mark.parametrize("kind", ["cut", "bridge"])
def test_edits_that_change_the_weights_give_the_changed_ones(family: str, kind: str) -> None:
    model = eager(family)
    if kind == "cut":
        ids = random_ids(1, 9)
        change: Edit = CutAttention([Cut((5, 9), (1, 3))], range(3))
        with edit(model, change):
            got = weights(model, ids)
        assert all(float(each[:, :, 5:9, 1:3].abs().max()) == 0 for each in got)
        return
    rows, n_prompts = rows_of((6,))
    ids = rows[0][None]
    with edit(model, Bridge((1,), LiveSteps(Words(), "think"), 0.6, n_question=n_prompts)):
        got, last = weights(model, ids), capture(model, ids).z[2]
    plain = weights(model, ids)
    assert float((got[1] - plain[1]).abs().max()) > 0.01 and torch.allclose(got[0], plain[0], atol=1e-6)
    if family != "gpt_oss":  # whose rows lack what the sinks take
        assert_close(got[1].sum(-1), torch.ones_like(got[1].sum(-1)), "sums", tolerance=1e-5)
    assert last.isfinite().all()


@pytest.mark.parametrize("name", ["output_attentions", "output_hidden_states"])
def test_layers_that_run_twice_are_refused_since_they_would_be_recorded_twice(name: str) -> None:
    model = eager("llama")
    head = BackHead(48, 1, (2, 3), d_back=8)
    with torch.no_grad(), pytest.raises(BadInput, match=f"^Back attention runs some layers twice, and {name} would"):
        with edit(model, AttendBack((head,)), strict=False):
            model(input_ids=random_ids(1, 5), **{name: True})
