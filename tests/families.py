"""Tiny random models of the families that the seam is tested on, built in the process, float32 on the CPU."""

from __future__ import annotations

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

D_VOCAB = 61
_ROPE = {"rope_theta": 10000.0, "rope_type": "default"}
_COMMON = dict(
    vocab_size=D_VOCAB,
    hidden_size=48,
    intermediate_size=64,
    num_hidden_layers=3,
    num_attention_heads=4,
    max_position_embeddings=256,
    bos_token_id=1,
    eos_token_id=2,
    pad_token_id=0,
)
_GQA = dict(num_key_value_heads=2, head_dim=16)
FAMILIES: dict[str, dict] = {
    "llama": dict(_COMMON, num_key_value_heads=4),
    "qwen2": dict(_COMMON, num_key_value_heads=2),
    "qwen3": dict(_COMMON, **_GQA),
    "phi3": dict(_COMMON, num_key_value_heads=2),
    "mistral": dict(_COMMON, **_GQA, sliding_window=6),
    "gemma2": dict(_COMMON, **_GQA, query_pre_attn_scalar=16, sliding_window=6),
    "gemma3_text": dict(_COMMON, **_GQA, query_pre_attn_scalar=16, sliding_window=6),
    "gpt_oss": dict(
        _COMMON, **_GQA, num_local_experts=4, num_experts_per_tok=2, sliding_window=6, rope_parameters=_ROPE
    ),
    "gpt2": dict(
        vocab_size=D_VOCAB, n_embd=48, n_layer=3, n_head=4, n_positions=256,
        bos_token_id=1, eos_token_id=2, pad_token_id=0,
    ),
    "gpt_neox": dict(_COMMON, use_parallel_residual=True),
    "deepseek_v3": dict(
        _COMMON, num_key_value_heads=4, q_lora_rank=24, kv_lora_rank=16, qk_nope_head_dim=8, qk_rope_head_dim=8,
        v_head_dim=12, n_routed_experts=4, num_experts_per_tok=2, n_group=2, topk_group=1, moe_intermediate_size=32,
        n_shared_experts=1, first_k_dense_replace=1,
    ),
}  # fmt: skip


def tiny(family: str, seed: int = 0, **changes: object) -> PreTrainedModel:
    """Return a random model of a family, sharpened so that attention is not flat and heads matter."""
    config = AutoConfig.for_model(family, **{**FAMILIES.get(family, {}), **changes})
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config).eval()
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() >= 2:
                weight.copy_(torch.randn(weight.shape, generator=generator) * (1.2 / weight.shape[-1] ** 0.5))
            elif "bias" in name or "sinks" in name:
                weight.copy_(0.2 * torch.randn(weight.shape, generator=generator))
    return model


def random_ids(n_rows: int, n_tokens: int, seed: int = 0) -> torch.Tensor:
    """Return token ids without the special ones, `[n_rows, n_tokens]`."""
    return torch.randint(3, D_VOCAB, (n_rows, n_tokens), generator=torch.Generator().manual_seed(seed))


def left_padded(rows: list[torch.Tensor], pad: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Return rows of unequal length as one left-padded batch and its attention mask."""
    width = max(len(row) for row in rows)
    ids = torch.full((len(rows), width), pad)
    mask = torch.zeros(len(rows), width, dtype=torch.long)
    for i, row in enumerate(rows):
        ids[i, width - len(row) :] = row
        mask[i, width - len(row) :] = 1
    return ids, mask
