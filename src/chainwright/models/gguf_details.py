"""What Transformers does not take from a GGUF file: rotary scaling, the splitting of words, the ends of a turn."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Regex, decoders, pre_tokenizers
from tokenizers.pre_tokenizers import PreTokenizer
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from chainwright._errors import BadInput
from chainwright.models.gguf_header import GGUFHeader

_CONTROL = 3
# llama.cpp's names for pre-tokenizers that split every digit off and then split like GPT-2's.
_SINGLE_DIGITS = {"smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"}
# Those that split like GPT-2's, as Transformers does by default.
_LIKE_GPT2 = {"", "gpt-2", "gpt2", "phi-2", "mpt", "olmo", "jais", "trillion", "granite-docling", "roberta-bpe"}
# Control tokens that end a turn, where a chat template writes them; older files name the end of text alone.
_ENDS = ("<|im_end|>", "<|eot_id|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "<|end_of_text|>", "<|eom_id|>",
         "<|return|>", "</s>", "<EOT>", "<|END_OF_TURN_TOKEN|>", "<|end_of_turn|>", "[EOT]")  # fmt: skip
_ROPE_TENSORS = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")


def complete_tokenizer(header: GGUFHeader, tokenizer: PreTrainedTokenizerBase) -> None:
    """Make a tokenizer split words as the file says, and check its special tokens and template against the metadata.

    Raises:
        BadInput: A special token, a control token or the chat template is another than in the file.
    """
    metadata = header.metadata
    if metadata.get("tokenizer.ggml.pre") in _SINGLE_DIGITS and metadata.get("tokenizer.ggml.model") == "gpt2":
        tokenizer.backend_tokenizer.pre_tokenizer = single_digits()
    if metadata.get("tokenizer.ggml.model") == "llama" and metadata.get("tokenizer.ggml.add_space_prefix") is False:
        _without_first_space(tokenizer)
    for role in ("bos", "eos"):
        stated, loaded = header.token(role), getattr(tokenizer, f"{role}_token_id")
        if stated is not None and stated != loaded:
            raise BadInput(f"{header.path}: its {role.upper()} token is {stated}, but was read as {loaded}.")
    template = metadata.get("tokenizer.chat_template")
    if template is not None and tokenizer.chat_template != template:
        raise BadInput(f"{header.path}: its chat template was read as another one.")
    tokens, kinds = metadata.get("tokenizer.ggml.tokens", []), metadata.get("tokenizer.ggml.token_type", [])
    for i in end_ids(header, tokenizer):
        ids = tokenizer.encode(tokens[i], add_special_tokens=False)
        if ids != [i] and kinds and kinds[i] == _CONTROL:
            raise BadInput(f"{header.path}: its control token {tokens[i]!r} is number {i}, but is read as {ids}.")


def _without_first_space(tokenizer: PreTrainedTokenizerBase) -> None:
    """Make a SentencePiece tokenizer put no space before a text, and take none off when it decodes."""
    backend = tokenizer.backend_tokenizer
    if isinstance(backend.pre_tokenizer, pre_tokenizers.Metaspace):
        backend.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="never", split=False)
        backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])


def end_ids(header: GGUFHeader, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the tokens that end a response by the metadata, and those control tokens that the chat template ends with.

    The metadata name an end of text, and in newer files ends of a turn and of a message.
    """
    found = [header.token(role) for role in ("eos", "eot", "eom")]
    kinds = header.metadata.get("tokenizer.ggml.token_type", [])
    template, known = str(tokenizer.chat_template or ""), tokenizer.get_vocab()
    for token in _ENDS:
        # where a response ends with <|return|>, <|end|> ends a part of it
        index = None if token == "<|end|>" and "<|return|>" in known else known.get(token)
        if token in template and index is not None and index < len(kinds) and kinds[index] == _CONTROL:
            found.append(index)
    return list(dict.fromkeys(i for i in found if i is not None))


def end_tokens(header: GGUFHeader, tokenizer: PreTrainedTokenizerBase) -> int | list[int] | None:
    """Return the tokens that end a response, as a generation config has them."""
    ends = end_ids(header, tokenizer)
    return ends if len(ends) > 1 else next(iter(ends), None)


def single_digits() -> PreTokenizer:
    """Return the splitter that takes every digit for itself, then splits like GPT-2's."""
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\p{N}"), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )


def complete_config(header: GGUFHeader, model: PreTrainedModel) -> list[str]:
    """Put the scaling of rotary positions into a model's config, and return what of the file is not read, in sentences.

    The model in memory keeps the positions that it was built with; what is saved and loaded again has the others.

    Raises:
        BadInput: The file scales its positions in a way that is not known here.
    """
    messages = [*_rotary(header, model), *_splitting(header)]
    n_rotary = sum(math.prod(tensor.shape) for tensor in header.tensors if tensor.name in _ROPE_TENSORS)
    n_stored, n_read = header.n_numbers - n_rotary, sum(weight.numel() for weight in model.parameters())
    if n_read < n_stored:
        messages.append(
            f"{header.path.name} holds {n_stored:,} numbers, of which the model that Transformers builds from it has a "
            f"place for {n_read:,}; the others are not read."
        )
    return messages


def _splitting(header: GGUFHeader) -> list[str]:
    from transformers.integrations.gguf import gguf_tokenizer_mapping

    known = _SINGLE_DIGITS | _LIKE_GPT2 | set(getattr(gguf_tokenizer_mapping, "GGUF_PRE_TOKENIZER_SPLITS", ()))
    name = str(header.metadata.get("tokenizer.ggml.pre", ""))
    if header.metadata.get("tokenizer.ggml.model") != "gpt2" or name in known:
        return []
    return [
        f"{header.path.name} splits text by the rules {name!r}, which are not known here; those of GPT-2 are used, so "
        "some words may become other tokens than the model was trained on."
    ]


def _rotary(header: GGUFHeader, model: PreTrainedModel) -> list[str]:
    """Set the scaling of rotary positions, where the file has one that Transformers did not take."""
    rope = getattr(model.config, "rope_parameters", None)
    names = {tensor.name for tensor in header.tensors}
    kind, settings = _stated_scaling(header)
    if names.isdisjoint(_ROPE_TENSORS) and kind in ("", "none"):
        return []
    if not isinstance(rope, Mapping) or rope.get("rope_type", "default") != "default" or "rope_theta" not in rope:
        # read by Transformers, or of a model with several kinds of positions
        taken = isinstance(rope, Mapping) and rope.get("rope_type", "default") != "default"
        return [] if taken else [f"{header.path.name} scales its rotary positions ({kind or 'by factors'}), not read."]
    if "rope_freqs.weight" in names:
        settings = _llama3_scaling(header, float(rope["rope_theta"]))
    elif not names.isdisjoint(_ROPE_TENSORS) or kind not in ("linear", "yarn"):
        raise BadInput(f"{header.path} scales its rotary positions by {kind or 'factors'}, which is not read here.")
    model.config.rope_parameters = {**rope, **settings}
    return []


def _stated_scaling(header: GGUFHeader) -> tuple[str, dict[str, Any]]:
    """Return the kind of rotary scaling that the metadata state, and the config's entries for it."""
    prefix = f"{header.architecture}.rope.scaling"
    kind = str(header.metadata.get(f"{prefix}.type", ""))
    settings: dict[str, Any] = {"rope_type": kind, "factor": float(header.metadata.get(f"{prefix}.factor", 1.0))}
    if (length := header.metadata.get(f"{prefix}.original_context_length")) is not None:
        settings["original_max_position_embeddings"] = int(length)
    return kind, settings


def _llama3_scaling(header: GGUFHeader, theta: float) -> dict[str, Any]:
    """Return Llama 3's scaling if the file's factors per frequency are its own; llama.cpp stores them as a tensor."""
    (tensor,) = (tensor for tensor in header.tensors if tensor.name == "rope_freqs.weight")
    place = header.data_start + tensor.offset
    stored = np.fromfile(header.path, "<f4", tensor.shape[0], offset=place).astype(np.float64)
    settings = {"factor": float(stored.max()), "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    known = _llama3_factors(len(stored), theta, **settings, n_original=8192)
    if tensor.kind != 0 or not np.allclose(known, stored, rtol=1e-4):
        raise BadInput(f"{header.path} scales its rotary positions by factors of its own, which are not read here.")
    return {"rope_type": "llama3", **settings, "original_max_position_embeddings": 8192}


def _llama3_factors(
    n: int, theta: float, *, factor: float, low_freq_factor: float, high_freq_factor: float, n_original: int
) -> NDArray[np.float64]:
    """Return by what Llama 3 divides each of `n` rotary frequencies (Llama 3.1's release code)."""
    wavelengths = 2 * np.pi * theta ** (np.arange(n) / n)
    share = (n_original / wavelengths - low_freq_factor) / (high_freq_factor - low_freq_factor)
    factors: NDArray[np.float64] = 1 / ((1 - share.clip(0, 1)) / factor + share.clip(0, 1))
    return factors
