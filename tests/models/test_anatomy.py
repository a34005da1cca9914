"""The parts of a model are found where its own modelling file has them, and what does not fit is refused."""

import copy

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, PreTrainedModel

from chainwright._errors import BadInput, UnsupportedModel
from chainwright.edits import KnockOut, edit
from chainwright.models import anatomy
from chainwright.models.anatomy import _adds_up, evaluating, frozen
from families import D_VOCAB, FAMILIES, tiny
from reference import attention, block, out_proj

every_family = pytest.mark.parametrize("family", FAMILIES)
_FINAL_NORM = {"gpt2": "transformer.ln_f", "gpt_neox": "gpt_neox.final_layer_norm"}
_MID = {"gemma2": "pre_feedforward_layernorm", "gemma3_text": "pre_feedforward_layernorm", "gpt2": "ln_2"}
_SIZES = {  # heads, kv heads, size of z
    "llama": (4, 4, 12), "qwen2": (4, 2, 12), "phi3": (4, 2, 12), "gpt2": (4, 4, 12), "gpt_neox": (4, 4, 12),
    "deepseek_v3": (4, 4, 12),
}  # fmt: skip


def other(kind: str, **changes: object) -> PreTrainedModel:
    """Return a tiny model of a type that is not among the families."""
    size = dict(FAMILIES["llama"], **changes)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **size)).eval()


@every_family
def test_parts_are_those_of_the_modelling_file(family: str) -> None:
    model = tiny(family)
    parts = anatomy(model)
    assert (parts.n_heads, parts.n_kv_heads, parts.d_head) == _SIZES.get(family, (4, 2, 16))
    assert (parts.n_layers, parts.d_model, parts.d_vocab) == (3, 48, D_VOCAB)
    assert parts.final_norm is model.get_submodule(_FINAL_NORM.get(family, "model.norm"))
    for i, layer in enumerate(parts.layers):
        assert layer.block is block(model, family, i)
        assert layer.attention is attention(model, family, i)
        assert layer.out_proj is out_proj(model, family, i)
        assert layer.multiplier == 1.0
        gemma = family.startswith("gemma")
        assert layer.post_attn is (layer.block.post_attention_layernorm if gemma else None)
        mid = _MID.get(family, "post_attention_layernorm")
        assert layer.mid_reader is (None if family == "gpt_neox" else layer.block.get_submodule(mid))


@every_family
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_parts_are_found_in_every_number_type(family: str, dtype: torch.dtype) -> None:
    if dtype == torch.float64 and family in ("gpt_oss", "deepseek_v3"):
        pytest.skip("PyTorch multiplies grouped experts in at most float32")
    model = tiny(family)
    want = [(type(x.mid_reader), type(x.post_attn), x.multiplier) for x in anatomy(model).layers]
    got = [(type(x.mid_reader), type(x.post_attn), x.multiplier) for x in anatomy(tiny(family).to(dtype)).layers]
    assert got == want


def test_parts_are_found_where_the_residual_stream_dwarfs_what_is_added() -> None:
    # large models have massive activations; in bfloat16 a sum then keeps little of the smaller term
    model = tiny("llama").to(torch.bfloat16)
    with torch.no_grad():
        model.model.embed_tokens.weight[3:6, 5] = 3000.0
        model.model.embed_tokens.weight[3:6, 7] = 900.0
    layers = anatomy(model).layers
    assert [layer.mid_reader for layer in layers] == [x.post_attention_layernorm for x in model.model.layers]
    assert [layer.multiplier for layer in layers] == [1.0] * 3


def test_sums_are_recognised_up_to_rounding_only() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(4, 64, generator=generator).bfloat16() for _ in range(2))
    assert _adds_up(a + b, a, b) and _adds_up(a + b + a, a, b, a)
    assert not _adds_up(a + 1.2 * b, a, b) and not _adds_up(a, a, b)


def test_a_constant_factor_before_the_residual_stream_is_measured() -> None:
    model = other("granite", residual_multiplier=0.22)
    assert [layer.multiplier for layer in anatomy(model).layers] == pytest.approx([0.22] * 3, rel=1e-4)


def test_a_dropout_after_the_attention_is_no_part_of_it() -> None:
    model = tiny("phi3", resid_pdrop=0.3).train()
    assert [layer.post_attn for layer in anatomy(model).layers] == [None] * 3


@every_family
def test_measuring_leaves_modes_hooks_and_config_alone(family: str) -> None:
    model = tiny(family).train()
    block(model, family, 1).eval()
    modes = [module.training for module in model.modules()]
    configs = [id(getattr(module, "config", None)) for module in model.modules()]
    anatomy(model)
    assert [module.training for module in model.modules()] == modes and any(modes) and not all(modes)
    assert [id(getattr(module, "config", None)) for module in model.modules()] == configs
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_evaluating_puts_every_module_back_after_an_exception() -> None:
    model = nn.Sequential(nn.Dropout(), nn.Linear(2, 2)).train()
    model[0].eval()
    with pytest.raises(KeyError), evaluating(model):
        assert not any(module.training for module in model.modules())
        raise KeyError
    assert (model.training, model[0].training, model[1].training) == (True, False, True)


def test_measured_once_and_again_when_modules_change() -> None:
    model = tiny("llama")
    first = anatomy(model)
    assert anatomy(model) is first
    model.model.layers[1].self_attn.o_proj = nn.Linear(48, 48, bias=False)
    again = anatomy(model)
    assert again is not first and again.layers[1].out_proj is model.model.layers[1].self_attn.o_proj
    model.resize_token_embeddings(70)
    assert anatomy(model).d_vocab == 70


def test_a_copy_of_a_model_has_an_anatomy_of_its_own() -> None:
    model = tiny("llama")
    first = anatomy(model)
    twin = copy.deepcopy(model)
    assert anatomy(twin).model is twin and anatomy(twin).layers[0].block is twin.model.layers[0]
    assert anatomy(model) is first


def test_measuring_inside_an_edit_is_not_edited_nor_counted() -> None:
    model = tiny("gemma2")
    with edit(model, KnockOut([{(0, 0)}, {(1, 1)}, {(2, 2)}]), strict=False) as (touched,):
        model.model.layers[0].self_attn.o_proj = copy.deepcopy(model.model.layers[0].self_attn.o_proj)
        assert anatomy(model).layers[0].out_proj is model.model.layers[0].self_attn.o_proj
        assert touched.n_sites == 0


def test_layers_and_heads_are_counted_from_both_ends() -> None:
    parts = anatomy(tiny("llama"))
    assert [parts.check_layer(i) for i in (0, 2, -1, -3)] == [0, 2, 2, 0]
    assert parts.check_head(-1, -4) == (2, 0)
    for layer in (3, -4):
        with pytest.raises(BadInput, match=rf"^Layer {layer} does not exist: the model has layers 0 to 2\.$"):
            parts.check_layer(layer)
    with pytest.raises(BadInput, match=r"^Head 4 of layer 2 does not exist: each layer has heads 0 to 3\.$"):
        parts.check_head(-1, 4)
    with pytest.raises(BadInput, match=r"^Layer 9 does not exist"):
        parts.check_head(9, 9)


@pytest.mark.parametrize("kind", ["falcon", "bloom", "mpt"])
def test_types_that_do_not_dispatch_are_refused_by_name(kind: str) -> None:
    size = {"d_model": 48, "n_layers": 2, "n_heads": 4} if kind == "mpt" else {"hidden_size": 48}
    config = AutoConfig.for_model(kind, vocab_size=D_VOCAB, num_hidden_layers=2, num_attention_heads=4, **size)
    with pytest.raises(UnsupportedModel, match=rf"^{kind} models do not dispatch"):
        anatomy(AutoModelForCausalLM.from_config(config))


@pytest.mark.parametrize("kind", ["stablelm", "nemotron"])
def test_types_that_swallow_the_state_are_refused_by_name(kind: str) -> None:
    with pytest.raises(UnsupportedModel, match=rf"This {kind} model cannot be .* of its 3 layers none called"):
        anatomy(other(kind, hidden_size=64))


def test_a_model_with_other_layers_among_its_attention_layers_is_refused() -> None:
    kinds = ["linear_attention", "full_attention", "linear_attention"]
    model = other(
        "qwen3_next", num_key_value_heads=2, head_dim=16, layer_types=kinds, num_experts=2, num_experts_per_tok=1,
        moe_intermediate_size=16, shared_expert_intermediate_size=16, linear_num_key_heads=2,
        linear_num_value_heads=2, linear_key_head_dim=8, linear_value_head_dim=8,
    )  # fmt: skip
    with pytest.raises(UnsupportedModel, match=r"This qwen3_next model .* of its 3 layers only 1 called"):
        anatomy(model)


def test_layers_of_different_head_counts_are_refused() -> None:
    model = other("mimo_v2_flash", num_key_value_heads=2, swa_num_key_value_heads=4, head_dim=12, v_head_dim=12,
                  layer_types=["full_attention", "sliding_attention", "full_attention"], sliding_window=6,
                  n_routed_experts=2, num_experts_per_tok=1, moe_intermediate_size=16)  # fmt: skip
    with pytest.raises(UnsupportedModel, match=r"different head counts or sizes .*\(4, 2, 12\), \(4, 4, 12\)"):
        anatomy(model)


def test_an_encoder_is_refused() -> None:
    with pytest.raises(UnsupportedModel, match="This bert model lets a position look at later tokens"):
        anatomy(other("bert"))


def test_two_attention_calls_in_one_layer_are_refused() -> None:
    with pytest.raises(UnsupportedModel, match="Layer 0 of this diffllama model attends 2 times in one pass"):
        anatomy(other("diffllama"))


def test_attention_steered_by_what_no_delegate_reads_is_refused() -> None:
    model = other(
        "deepseek_v32", q_lora_rank=24, kv_lora_rank=16, qk_nope_head_dim=8, qk_rope_head_dim=8, v_head_dim=12,
        n_routed_experts=4, num_experts_per_tok=2, n_group=2, topk_group=1, moe_intermediate_size=32,
        n_shared_experts=1, index_topk=4, index_n_heads=2, index_head_dim=16,
    )  # fmt: skip
    with pytest.raises(UnsupportedModel, match="This deepseek_v32 model steers its attention by indices"):
        anatomy(model)


def test_a_norm_between_heads_and_projection_is_refused() -> None:
    with pytest.raises(UnsupportedModel, match="one head's write cannot be separated from the others'"):
        anatomy(other("bitnet"))


def test_a_transform_between_final_norm_and_unembedding_is_refused() -> None:
    with pytest.raises(UnsupportedModel, match="No module of ModernBertDecoderForCausalLM turns what its last layer"):
        anatomy(other("modernbert-decoder", global_attn_every_n_layers=2))


class _Mixing(nn.Module):
    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden.cumsum(dim=1)


def test_a_module_that_mixes_positions_after_the_attention_is_refused() -> None:
    model = tiny("gemma2")
    model.model.layers[1].post_attention_layernorm = _Mixing()
    with pytest.raises(UnsupportedModel, match="_Mixing mixes positions after the attention"):
        anatomy(model)


def test_a_model_without_unembedding_is_refused() -> None:
    with pytest.raises(UnsupportedModel, match="LlamaModel has no unembedding; load it as a causal"):
        anatomy(AutoModel.from_config(AutoConfig.for_model("llama", **FAMILIES["llama"])))


def test_frozen_turns_gradients_off_and_back_on_where_they_were_on() -> None:
    model = tiny("llama")
    embedding, head = model.get_input_embeddings().weight, model.lm_head.weight
    embedding.requires_grad_(False)
    with frozen(model, but=[head]):
        assert [p for p in model.parameters() if p.requires_grad] == [head]
    assert not embedding.requires_grad and all(p.requires_grad for p in model.parameters() if p is not embedding)
