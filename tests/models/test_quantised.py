"""Models whose linear layers torch quantises dynamically to int8: what needs gradients says so, the rest works."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from test_load import word_tokenizer
from torch import nn

from chainwright import KnockOut, edit
from chainwright._errors import UnsupportedModel
from chainwright.diagnose import knockout_effects, logit_flow, logit_lens, step_saliency
from chainwright.models import anatomy, capture
from chainwright.models.fingerprint import fingerprint
from chainwright.models.gradients import check_gradients, has_gradients
from chainwright.scoring import score
from chainwright.traces import Trace
from families import random_ids, tiny
from reference import assert_close

TOKENS = torch.tensor([5])
ONE_BY_ONE = r"silence the heads one by one inside edit\(model, KnockOut\(\{\(layer, head\)\}\)\)"


def quantised(seed: int = 0, dtype: torch.dtype = torch.qint8, only: Any = nn.Linear) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return torch.ao.quantization.quantize_dynamic(tiny("llama", seed), {only}, dtype=dtype)


def trace() -> Trace:
    return Trace.from_ids(word_tokenizer(), 11 + random_ids(1, 12)[0] % 49, 3)


def refusal(call: Callable[[], Any]) -> str:
    with pytest.raises(UnsupportedModel) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_advice_of_an_exact_sweep_is_one_that_works() -> None:
    model, ids = quantised(), random_ids(1, 9)
    message = refusal(lambda: knockout_effects(model, ids, TOKENS, method="exact"))
    assert re.search(f"{ONE_BY_ONE}.$", message), message
    with torch.no_grad():
        whole = model(input_ids=ids).logits
        with edit(model, KnockOut({(1, 2)})) as (touched,):
            without = model(input_ids=ids).logits
    assert touched.n_sites == 9 and float((whole - without).abs().max()) > 0.1


@pytest.mark.parametrize("method", ["gradient", "screened"])
def test_estimates_by_gradients_are_refused_with_advice_that_works(method: Any) -> None:
    message = refusal(lambda: knockout_effects(quantised(), random_ids(1, 9), TOKENS, method=method))
    assert message.startswith("A sweep with method='gradient' or 'screened' needs gradients, and none pass layer 2 of")
    assert re.search(ONE_BY_ONE, message) and message.endswith("or load the model in an unquantised dtype.")


def test_saliency_and_logit_flow_are_refused_in_one_sentence() -> None:
    for dtype in (torch.qint8, torch.float16):
        model = quantised(dtype=dtype)
        assert refusal(lambda: step_saliency(model, trace())).startswith("Step saliency needs gradients")  # noqa: B023
        assert refusal(lambda: logit_flow(model, random_ids(1, 9), 7)).startswith("Logit flow needs gr")  # noqa: B023


def test_a_single_quantised_layer_is_named() -> None:
    model = tiny("llama")
    one = nn.Sequential(model.model.layers[1].self_attn.o_proj)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.ao.quantization.quantize_dynamic(one, {nn.Linear}, inplace=True)
    model.model.layers[1].self_attn.o_proj = one[0]
    with pytest.raises(UnsupportedModel, match=r"^It needs gradients, and none pass layer 1 of this llama model"):
        check_gradients(anatomy(model), "It")
    assert has_gradients(anatomy(tiny("llama")))


def test_what_needs_no_gradients_works() -> None:
    model, ids = quantised(), random_ids(1, 9)
    read = capture(model, ids, attention=True, residual=True)
    with torch.no_grad():
        own = model(input_ids=ids).logits
    assert_close(read.logits, own)
    with torch.no_grad():
        log_probs = model(input_ids=trace().input_ids[None]).logits[0].log_softmax(-1)
    want = log_probs[:-1].gather(-1, trace().input_ids[1:, None])[:, 0]
    assert float((score(model, trace()).logprob[1:] - want).abs().max()) < 0.1
    logit_lens(model, ids, TOKENS)


def test_models_with_other_packed_weights_have_other_fingerprints() -> None:
    marks = {fingerprint(quantised(seed)) for seed in (0, 0, 1)}
    assert len(marks) == 2
    changed = tiny("llama")
    with torch.no_grad():
        changed.model.layers[1].self_attn.o_proj.weight[0, 0] += 2.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        changed = torch.ao.quantization.quantize_dynamic(changed, {nn.Linear}, dtype=torch.qint8)
    assert fingerprint(changed) not in marks
