"""Cutting attention: on every family the cut pairs have no weight and the rest is scaled up."""

import pytest
import torch

from chainwright._errors import BadInput, EditNeverFired
from chainwright.edits import Cut, CutAttention, edit
from chainwright.models import capture
from chainwright.models.seam import Handlers, attach
from families import FAMILIES, left_padded, random_ids, tiny
from reference import assert_close, assert_equal

CUT = Cut((7, 9), (2, 5))


@pytest.mark.parametrize("family", FAMILIES)
def test_cut_pairs_have_no_weight_and_the_rest_is_scaled_up(family: str) -> None:
    model = tiny(family)
    ids, mask = left_padded([random_ids(1, 11)[0], random_ids(1, 9, 1)[0]])
    values = {}

    def reader(call, attend):
        values["v"] = call.v
        return attend(call)

    with attach(model, Handlers({1: (reader,)})):
        own = capture(model, ids, attention_mask=mask, attention=True)
    with edit(model, CutAttention([CUT, None], layers=(1,))) as (touched,):
        found = capture(model, ids, attention_mask=mask)
    assert touched.n_sites == 4 * 2
    weights = own.attention[1].clone()
    weights[0, :, 7:9, 2:5] = 0
    weights[0, :, 7:9] /= 1 - own.attention[1][0, :, 7:9, 2:5].sum(-1)[..., None]  # a sink takes its part too
    v = values["v"].repeat_interleave(4 // values["v"].shape[1], dim=1)
    want = (weights @ v).transpose(1, 2)
    real = mask.bool()
    assert_close(found.z[1][real], want[real], family, 1e-4)
    assert_close(found.logits[0, :7], own.logits[0, :7], "before the cut", 1e-4)
    assert_close(found.logits[1][real[1]], own.logits[1][real[1]], "the row without a cut", 1e-4)
    assert float((found.logits[0, 7:] - own.logits[0, 7:]).abs().max()) > 1e-4
    assert_equal(capture(model, ids, attention_mask=mask).logits, own.logits, "afterwards")


def test_bad_cuts_are_refused() -> None:
    for cut in (Cut((3, 5), (2, 4)), Cut((5, 5), (1, 2)), Cut((5, 6), (-1, 2)), Cut((5, 6), (2, 2))):
        with pytest.raises(BadInput, match="its keys end before its queries start; got queries"):
            CutAttention([cut])
    model = tiny("llama")
    with edit(model, CutAttention([CUT, None]), strict=False):
        with pytest.raises(BadInput, match="cuts for 2 rows, but the batch has 3"):
            model(input_ids=random_ids(3, 11))
    with edit(model, CutAttention([CUT]), strict=False), pytest.raises(BadInput, match="pass use_cache=False"):
        model.generate(random_ids(1, 11), max_new_tokens=2, eos_token_id=None)
    with pytest.raises(EditNeverFired), edit(model, CutAttention([CUT])), torch.no_grad():
        model(input_ids=random_ids(1, 6))
