"""What heads write, the final norm at a fixed scale, and the unembedding, against the models' own numbers."""

import pytest
import torch
from torch import nn

import families
from chainwright.edits import KnockOut, edit
from chainwright.models import anatomy, capture
from chainwright.models.residual import head_writes, lens_log_probs, norm_at_scale, unembed
from families import FAMILIES, random_ids, tiny
from reference import assert_close, assert_equal

# the unembedding is more than a matrix in these
SCALED: dict[str, dict] = {
    "granite": dict(FAMILIES["llama"], logits_scaling=3.0, residual_multiplier=0.3, embedding_multiplier=2.0),
    "minicpm3": dict(
        FAMILIES["llama"], q_lora_rank=24, kv_lora_rank=16, qk_nope_head_dim=8, qk_rope_head_dim=8, v_head_dim=12,
        dim_model_base=12, scale_emb=2.0, scale_depth=1.4,
    ),
    "cohere": dict(FAMILIES["llama"], logit_scale=0.2),
    "gemma2": dict(FAMILIES["gemma2"], final_logit_softcapping=2.0, attn_logit_softcapping=1.5),
}  # fmt: skip
CASES = {**FAMILIES, **SCALED, "gemma2_plain": dict(FAMILIES["gemma2"], final_logit_softcapping=None)}
every_case = pytest.mark.parametrize("case", CASES)


def build(case: str, monkeypatch: pytest.MonkeyPatch, **changes: object):
    """Return the tiny model of a case, which may be no family."""
    kind = case.removesuffix("_plain")
    monkeypatch.setitem(families.FAMILIES, kind, CASES[case])
    return tiny(kind, **changes)


@every_case
def test_heads_and_bias_add_up_to_what_the_attention_adds(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(case, monkeypatch)
    got, parts = capture(model, random_ids(2, 7), residual=True), anatomy(model)
    assert got.resid_pre is not None and got.resid_mid is not None
    for i, layer in enumerate(parts.layers):
        with torch.no_grad():
            written = head_writes(layer, got.z[i].flatten(0, 1)).sum(1).view_as(got.resid_pre[i])
        bias = getattr(layer.out_proj, "bias", None)
        left = got.resid_mid[i] - got.resid_pre[i] - written
        want = torch.zeros_like(left) if bias is None else bias.detach().expand_as(left)
        assert_close(left, want, f"{case} layer {i}", tolerance=5e-5)


def test_heads_and_bias_add_up_through_a_post_norm_too(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build("gemma2", monkeypatch, attention_bias=True)
    got = capture(model, random_ids(1, 7), residual=True)
    assert got.resid_pre is not None and got.resid_mid is not None
    layer = anatomy(model).layers[1]
    with torch.no_grad():
        whole = layer.out_proj(got.z[1, 0].flatten(-2))
        bias = norm_at_scale(layer.block.post_attention_layernorm, layer.out_proj.bias.expand_as(whole), whole)
        written = head_writes(layer, got.z[1, 0]).sum(1)
    assert float(bias.abs().max()) > 0.1
    assert_close(written + bias, (got.resid_mid - got.resid_pre)[1, 0], tolerance=5e-5)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox"])
def test_knocking_out_a_head_takes_away_what_it_writes(family: str) -> None:
    model, ids = tiny(family), random_ids(1, 7)
    own = capture(model, ids, residual=True)
    with edit(model, KnockOut({(1, 2)})):
        without = capture(model, ids, residual=True)
    assert own.resid_mid is not None and without.resid_mid is not None
    with torch.no_grad():
        written = head_writes(anatomy(model).layers[1], own.z[1, 0])[:, 2]
    assert float(written.abs().max()) > 0.1
    assert_close((own.resid_mid - without.resid_mid)[1, 0], written, family)


@every_case
def test_the_last_layer_unembedded_gives_the_models_logits(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(case, monkeypatch)
    got, parts = capture(model, random_ids(2, 7), residual=True), anatomy(model)
    assert got.resid_post is not None
    with torch.no_grad():
        logits = unembed(parts, parts.final_norm(got.resid_post[-1].flatten(0, 1)))
    assert logits.dtype == torch.float32
    assert_close(logits, got.logits.flatten(0, 1), case)


@torch.no_grad()
def test_unembedding_inside_an_edit_is_neither_edited_nor_counted() -> None:
    model = tiny("llama")
    parts, normed = anatomy(model), torch.randn(5, 48, generator=torch.Generator().manual_seed(0))
    want = unembed(parts, normed)
    with edit(model, KnockOut([{(0, 0)}, {(1, 1)}, {(2, 2)}]), strict=False) as (touched,):
        assert_equal(unembed(parts, normed), want)
    assert touched.n_sites == 0 and not model.lm_head._forward_pre_hooks


def test_unembedding_can_be_differentiated() -> None:
    model = tiny("llama")
    normed = torch.randn(2, 48, generator=torch.Generator().manual_seed(0)).requires_grad_()
    unembed(anatomy(model), normed)[0, 7].backward()
    assert normed.grad is not None
    assert_close(normed.grad, torch.stack([model.lm_head.weight[7].detach(), torch.zeros(48)]))


@every_case
def test_a_norm_at_its_own_scale_is_the_norm(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    norm = anatomy(build(case, monkeypatch)).final_norm
    v = 3 * torch.randn(5, 48, generator=torch.Generator().manual_seed(0)) + 1
    with torch.no_grad():
        assert_close(norm_at_scale(norm, v, v), norm(v), case)


@every_case
def test_a_norm_at_a_fixed_scale_is_linear_up_to_its_bias(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    norm = anatomy(build(case, monkeypatch)).final_norm
    generator = torch.Generator().manual_seed(0)
    a, b = 3 * torch.randn(5, 48, generator=generator) + 1, 0.5 * torch.randn(5, 48, generator=generator)
    with torch.no_grad():
        zero = norm_at_scale(norm, torch.zeros_like(a), a + b)
        parts = norm_at_scale(norm, a, a + b) + norm_at_scale(norm, b, a + b) - zero
        assert_close(parts, norm(a + b), case)


def test_norm_at_scale_by_hand() -> None:
    # rms of (3, 4) is sqrt(12.5); a layer norm takes the mean 3.5 away and divides by 0.5
    reference, v = torch.tensor([[3.0, 4.0]]), torch.tensor([[1.0, 0.0]])
    rms_norm = nn.RMSNorm(2, eps=0).requires_grad_(False)
    assert_close(norm_at_scale(rms_norm, v, reference), torch.tensor([[12.5**-0.5, 0]]))
    norm = nn.LayerNorm(2, eps=0)
    with torch.no_grad():
        norm.bias.fill_(7.0)
        assert_close(norm_at_scale(norm, v, reference), torch.tensor([[8.0, 6.0]]))
    assert_equal(norm_at_scale(nn.Identity(), v, reference), v)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_norm_at_scale_tells_layer_norms_from_rms_norms(dtype: torch.dtype) -> None:
    v = torch.tensor([[1.0, 2.0, 6.0, -1.0]], dtype=dtype)
    reference = v + 100
    layer_norm, rms_norm = nn.LayerNorm(4, eps=0, dtype=dtype), nn.RMSNorm(4, eps=0, dtype=dtype)
    with torch.no_grad():
        assert_close(norm_at_scale(layer_norm, v, reference), layer_norm(v))
        scale = reference.float().pow(2).mean().sqrt()
        assert_close(norm_at_scale(rms_norm, v, reference), (v.float() / scale).to(dtype))


@torch.no_grad()
def test_lens_of_the_last_layer_is_the_models_own_log_probability() -> None:
    model, ids = tiny("gemma2"), random_ids(1, 7)
    got, parts, tokens = capture(model, ids, residual=True), anatomy(model), torch.tensor([5, 9, 3, 3, 60, 8, 4])
    assert got.resid_post is not None
    v, want = got.resid_post[-1, 0], got.logits[0].log_softmax(-1)[torch.arange(7), tokens]
    assert_close(lens_log_probs(parts, v, tokens), want, "final")
    assert_close(lens_log_probs(parts, v, tokens, max_rows=2), want, "in pieces")
    assert_close(lens_log_probs(parts, v, tokens, norm="frozen", reference=v), want, "frozen at itself")
