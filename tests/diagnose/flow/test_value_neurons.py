"""The ranking of neurons by upper bounds: the same top as a ranking of all, and bounds that are bounds."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from chainwright import logit_flow
from chainwright.diagnose.flow import _screen, _value_neurons
from chainwright.diagnose.flow._screen import screen
from chainwright.models.anatomy import anatomy
from chainwright.models.output_head import output_head
from chainwright.models.residual import unembed
from families import random_ids, tiny

_TOKEN, _K, _V = 7, 12, 700
_SIZES = dict(num_hidden_layers=3, hidden_size=48, intermediate_size=64, num_attention_heads=4, vocab_size=_V)
# RMS norms and layer norms, softcap, logit scale, tied and untied heads, a head with a bias, routed experts
_MODELS = {
    "llama": {},
    "llama, tied": {"tie_word_embeddings": True},
    "qwen3": {"tie_word_embeddings": False},
    "gemma2": {},
    "gemma2, low cap": {"final_logit_softcapping": 2.0},
    "gpt2": {},
    "gpt_neox": {},
    "gpt_oss": {},
    "phi": {**_SIZES, "tie_word_embeddings": False},
    "granite": {**_SIZES, "num_key_value_heads": 2, "logits_scaling": 3.0},
    "cohere": {**_SIZES, "num_key_value_heads": 2, "logit_scale": 0.3, "pad_token_id": 0},
}


def model_of(name: str):
    """Return a float64 model with more tokens than the bound looks at one by one."""
    family = name.split(",")[0]
    model = tiny(family, **{"vocab_size": _V, **_MODELS[name]})
    if family == "phi":
        nn.init.normal_(model.lm_head.bias)
    if model._can_set_experts_implementation():
        model.set_experts_implementation("eager")
    return model.double()


def ranked_in_full(monkeypatch: pytest.MonkeyPatch, model, ids: torch.Tensor, **options):
    """Return the flow with every neuron measured: what is not in the best `n_neurons` cannot be missed."""
    monkeypatch.setattr("chainwright.diagnose.flow._screen.output_head", lambda *args: None)
    flow = logit_flow(model, ids, _TOKEN, n_neurons=100_000, n_traced=0, n_words=0, **options)
    monkeypatch.undo()
    return flow


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Count the neurons that are measured with the whole vocabulary, block by block."""
    counts: list[int] = []
    opened = _value_neurons.Values._opened

    def counted(self, sources, bounds, chosen):
        counts.append(len(chosen))
        return opened(self, sources, bounds, chosen)

    monkeypatch.setattr(_value_neurons.Values, "_opened", counted)
    monkeypatch.setattr(_value_neurons, "_OWN_TERMS", 16)
    monkeypatch.setattr(_value_neurons, "_FEWEST", 8)
    monkeypatch.setattr(_screen, "_CAPPED", 40)
    return counts


@pytest.mark.parametrize("norm", ["final", "frozen"])
@pytest.mark.parametrize("name", _MODELS)
@torch.no_grad()
def test_the_best_are_those_of_the_full_ranking(name, norm, monkeypatch, measured):
    model, ids = model_of(name), random_ids(1, 8)
    flow = logit_flow(model, ids, _TOKEN, n_neurons=_K, n_traced=0, n_words=0, norm=norm)
    few = sum(measured)
    full = ranked_in_full(monkeypatch, model, ids, norm=norm)
    for kind in (0, 1):
        rows, every = flow.neurons[:, 2] == kind, full.neurons[:, 2] == kind
        assert int(rows.sum()) == _K
        assert torch.equal(flow.neurons[rows], full.neurons[every][:_K])
        assert (flow.importance[rows] - full.importance[every][:_K]).abs().max() < 1e-9
        assert (flow.coefficient[rows] - full.coefficient[every][:_K]).abs().max() < 1e-9
    # with a softcap the bound knows nothing of the less likely tokens, so more has to be measured
    assert few < (0.9 if "gemma2" in name else 0.3) * len(full.neurons)


@pytest.mark.parametrize("name", _MODELS)
@torch.no_grad()
def test_no_bound_is_below_the_log_probability(name):
    model = model_of(name)
    parts = anatomy(model)
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(3, 48, generator=generator, dtype=torch.float64)
    normed = parts.final_norm(base)
    known = screen(parts, _TOKEN, normed, n_tokens=16, n_rows=2)
    assert known.head is not None and (known.head.cap is not None) == ("gemma2" in name)
    assert (known.log_probs - unembed(parts, normed).log_softmax(-1)[:, _TOKEN]).abs().max() < 1e-10
    for k in range(3):
        for size in (0.01, 0.3, 3.0):
            rows = parts.final_norm(base[k] + size * torch.randn(40, 48, generator=generator, dtype=torch.float64))
            slack = known.upper(k, rows) - unembed(parts, rows).log_softmax(-1)[:, _TOKEN]
            assert slack.min() >= 0
            if size == 0.01 and "gemma2" not in name:
                assert slack.max() < 1e-3, "close to the known vector the bound is tight"


@torch.no_grad()
def test_the_bound_of_a_hand_computed_vocabulary():
    """Four tokens, of which two have a term of their own; the two others are bounded together."""
    model = tiny("llama", vocab_size=4, bos_token_id=None, eos_token_id=None, pad_token_id=None).double()
    parts, generator = anatomy(model), torch.Generator().manual_seed(0)
    base, rows = (torch.randn(n, 48, generator=generator, dtype=torch.float64) for n in (1, 5))
    known = screen(parts, 2, base, n_tokens=2, n_rows=8)
    weight = model.lm_head.weight
    own = sorted(known.ids[0].tolist())
    others = [i for i in range(4) if i not in own]
    assert len(own) == 2 and 2 in own
    y, y_new = base @ weight.T, rows @ weight.T
    p = y[0, others].softmax(-1)
    together = y[0, others].exp().sum() * ((y_new - y)[:, others] @ p).exp()
    want = y_new[:, 2] - (y_new[:, own].exp().sum(-1) + together).log()
    assert (known.upper(0, rows) - known.room - want).abs().max() < 1e-12


@torch.no_grad()
def test_a_head_of_another_kind_is_measured_in_full(monkeypatch, measured):
    """Same neurons, since without a bound every neuron is measured."""
    model, ids = model_of("llama"), random_ids(1, 8)

    class Bent(nn.Linear):
        def forward(self, x):
            return super().forward(x).sin()

    head = Bent(48, _V, bias=False).double()
    head.weight = model.lm_head.weight
    model.lm_head = head
    flow = logit_flow(model, ids, _TOKEN, n_neurons=_K, n_traced=0, n_words=0)
    total = sum(measured)
    full = ranked_in_full(monkeypatch, model, ids)
    assert total == len(full.neurons)
    for kind in (0, 1):
        best = full.neurons[full.neurons[:, 2] == kind][:_K]
        assert torch.equal(flow.neurons[flow.neurons[:, 2] == kind], best)


@torch.no_grad()
def test_hidden_tokens_are_no_part_of_the_bound():
    """Some models set the logits of a few tokens themselves; a target among them has no bound."""
    model = model_of("llama")
    parts = anatomy(model)
    forward = type(model).forward

    def hiding(self, *args, **kwargs):
        out = forward(self, *args, **kwargs)
        out.logits[..., 20:25] = -1e4
        return out

    model.forward = hiding.__get__(model)
    normed = torch.randn(2, 48, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    logits = unembed(parts, normed)
    head = output_head(parts, normed, logits)
    assert head is not None and (~head.is_plain).nonzero()[:, 0].tolist() == list(range(20, 25))
    known = screen(parts, _TOKEN, normed, n_tokens=16, n_rows=8)
    assert not set(known.ids.flatten().tolist()) & set(range(20, 25))
    rows = normed[:1] + 0.3 * torch.randn(30, 48, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    slack = known.upper(0, rows) - unembed(parts, rows).log_softmax(-1)[:, _TOKEN]
    assert 0 <= slack.min() and slack.max() < 5
    hidden = screen(parts, 22, normed, n_tokens=16, n_rows=8)
    assert hidden.head is None and hidden.upper(0, rows).isinf().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_rounded_logits_do_not_lose_neurons(dtype, monkeypatch, measured):
    """In half precision neurons may change places only where their importances are as close as a rounded logit."""
    model, ids = model_of("llama").to(dtype), random_ids(1, 8)
    flow = logit_flow(model, ids, _TOKEN, n_neurons=_K, n_traced=0, n_words=0)
    full = ranked_in_full(monkeypatch, model, ids)
    logits = model(ids).logits.abs().max()
    near = 4 * float(logits) * torch.finfo(dtype).eps
    for kind in (0, 1):
        best = flow.importance[flow.neurons[:, 2] == kind]
        assert (best - full.importance[full.neurons[:, 2] == kind][:_K]).abs().max() <= near


@pytest.mark.parametrize("sizes", [[], [3], [0, 2, 0], [5, 1, 9, 4]])
def test_blocks_are_regrouped_without_loss(sizes):
    rows = torch.arange(sum(sizes) * 2).view(-1, 2)
    blocks = [*rows.split(sizes)] if sizes else [rows]
    pieces = list(_value_neurons.regrouped(iter(blocks), 4))
    assert all(len(piece) == 4 for piece in pieces[:-1])
    assert torch.equal(torch.cat([*pieces, rows[:0]]), rows)


def test_the_families_differ_where_the_bound_does():
    """So that the cases above are what they claim to be."""
    tied = {name: model_of(name) for name in ("llama", "llama, tied", "gpt2", "phi")}
    own = {name: m.get_input_embeddings().weight is m.get_output_embeddings().weight for name, m in tied.items()}
    assert own == {"llama": False, "llama, tied": True, "gpt2": True, "phi": False}
    assert tied["phi"].lm_head.bias.abs().max() > 1
    assert isinstance(tied["gpt2"].transformer.ln_f, nn.LayerNorm)


@torch.no_grad()
def test_a_token_of_zeros_does_not_hide_the_output_head():
    """The row of a padding token is often zero, and so is its logit."""
    model = model_of("llama, tied")
    model.get_output_embeddings().weight[3] = 0
    parts, normed = anatomy(model), torch.randn(2, 48, dtype=torch.float64)
    logits = unembed(parts, normed)
    head = output_head(parts, normed, logits)
    assert head is not None and bool(head.is_plain.all())
    assert (head.every(normed) - logits).abs().max() < 1e-12
