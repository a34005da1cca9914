"""Small GGUF files for the tests, written with the package `gguf`, and what is in them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
PAIRS = [("Ġ", "t"), ("Ġt", "h"), ("h", "e"), ("1", "2"), ("Ġ", "Ġ")]
D, D_MLP, N_LAYERS, N_HEADS, N_KV = 64, 96, 2, 4, 2


def alphabet() -> list[str]:
    """Return how byte-level vocabularies spell the 256 bytes."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in plain]
    spelled = {b: chr(b) for b in plain} | {b: chr(256 + i) for i, b in enumerate(others)}
    return [spelled[b] for b in range(256)]


def vocabulary() -> list[str]:
    return [*SPECIAL, *alphabet(), *(left + right for left, right in PAIRS)]


def small_llama(seed: int = 0, **changes: Any) -> LlamaForCausalLM:
    """Return a random Llama whose widths are multiples of 32, so that its weights can be quantised in blocks."""
    settings: dict[str, Any] = dict(
        vocab_size=len(vocabulary()), hidden_size=D, intermediate_size=D_MLP, num_hidden_layers=N_LAYERS,
        num_attention_heads=N_HEADS, num_key_value_heads=N_KV, max_position_embeddings=128, rms_norm_eps=1e-5,
        tie_word_embeddings=True, rope_parameters={"rope_type": "default", "rope_theta": 10000.0}, bos_token_id=1,
        eos_token_id=2,
    )  # fmt: skip
    torch.manual_seed(seed)
    model = LlamaForCausalLM(LlamaConfig(**{**settings, **changes})).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.copy_(torch.randn_like(weight) * 0.2 + ("norm" in name))
    return model


NAMES = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
}  # fmt: skip


def _interleaved(weight: Tensor, n_heads: int) -> Tensor:
    """Return a query or key projection with its rotary halves interleaved, as llama.cpp stores them."""
    d = weight.shape[0] // n_heads
    return weight.view(n_heads, 2, d // 2, -1).transpose(1, 2).reshape(weight.shape)


def tensors_of(model: LlamaForCausalLM) -> dict[str, np.ndarray]:
    """Return a Llama's weights by llama.cpp's names."""
    state, found = model.state_dict(), {}
    found["token_embd.weight"] = state["model.embed_tokens.weight"]
    found["output_norm.weight"] = state["model.norm.weight"]
    if not model.config.tie_word_embeddings:
        found["output.weight"] = state["lm_head.weight"]
    for i in range(model.config.num_hidden_layers):
        for ours, theirs in NAMES.items():
            weight = state[f"model.layers.{i}.{ours}.weight"]
            if theirs in ("attn_q", "attn_k"):
                weight = _interleaved(weight, N_HEADS if theirs == "attn_q" else N_KV)
            found[f"blk.{i}.{theirs}.weight"] = weight
    return {name: weight.numpy() for name, weight in found.items()}


def write_gguf(
    path: Path,
    model: LlamaForCausalLM | None = None,
    *,
    quantised: str = "F32",
    architecture: str = "llama",
    metadata: Mapping[str, Any] | None = None,
    tensors: Mapping[str, np.ndarray] | None = None,
    template: str | None = TEMPLATE,
) -> Path:
    """Write a GGUF file with a byte-level tokenizer.

    Args:
        path: The file.
        model: The model in it; a random one by default.
        quantised: Number type of the matrices ("F32", "Q8_0", "Q4_1", ...); vectors stay as they are.
        architecture: What the file says it is.
        metadata: Entries that are added or replace others; None leaves an entry out.
        tensors: Tensors that are added.
        template: Chat template, if there is one.
    """
    from gguf import GGMLQuantizationType, GGUFWriter, quants

    writer = GGUFWriter(path, architecture)
    entries: dict[str, Any] = {
        f"{architecture}.block_count": N_LAYERS, f"{architecture}.context_length": 128,
        f"{architecture}.embedding_length": D, f"{architecture}.feed_forward_length": D_MLP,
        f"{architecture}.attention.head_count": N_HEADS, f"{architecture}.attention.head_count_kv": N_KV,
        f"{architecture}.rope.freq_base": 10000.0, f"{architecture}.rope.dimension_count": D // N_HEADS,
        f"{architecture}.attention.layer_norm_rms_epsilon": 1e-5, f"{architecture}.vocab_size": len(vocabulary()),
        "general.name": "small", "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": vocabulary(), "tokenizer.ggml.merges": [" ".join(pair) for pair in PAIRS],
        "tokenizer.ggml.token_type": [3] * len(SPECIAL) + [1] * (len(vocabulary()) - len(SPECIAL)),
        "tokenizer.ggml.bos_token_id": 1, "tokenizer.ggml.eos_token_id": 2, "tokenizer.ggml.padding_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0, "tokenizer.ggml.add_bos_token": False,
        "tokenizer.chat_template": template,
        **(metadata or {}),
    }  # fmt: skip
    for key, value in entries.items():
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        elif value is not None:
            writer.add_array(key, value)
    for name, weight in {**tensors_of(model or small_llama()), **(tensors or {})}.items():
        kind = GGMLQuantizationType[quantised if weight.ndim == 2 else "F32"]
        if kind == GGMLQuantizationType.F32:
            writer.add_tensor(name, np.ascontiguousarray(weight, dtype=np.float32))
        else:
            writer.add_tensor(name, quants.quantize(np.ascontiguousarray(weight), kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
