"""The importance of layers, heads, and (head, source position) pairs, and the words that they write."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from chainwright._errors import UnsupportedModel
from chainwright.diagnose.flow._read_pass import LayerRead, attn_write
from chainwright.diagnose.flow._value_neurons import Lens, pieces
from chainwright.models.anatomy import Anatomy
from chainwright.models.residual import head_writes
from chainwright.models.seam import widened
from chainwright.models.writers import z_writes

_CELL_WORDS = 3


class Components(NamedTuple):
    """Importances of layers, heads and (head, source position), as in `LogitFlow`."""

    attention: Tensor
    mlp: Tensor
    between: Tensor
    embedding: float
    head: Tensor
    head_position: Tensor


def components(parts: Anatomy, reads: list[LayerRead], lens: Lens) -> Components:
    """Return the importance of every component at the last position.

    Raises:
        UnsupportedModel: The attention's write is not the difference between `resid_pre` and `resid_mid`.
    """
    _check_sums(parts, reads)
    depth = lens(torch.stack([v for r in reads for v in (r.pre[-1], r.mid[-1], r.post[-1])])).view(-1, 3)
    heads, by_position = zip(*(_heads(parts, i, read, lens) for i, read in enumerate(reads)), strict=True)
    first = reads[0].first[-1:]
    embedded = depth[:1, 0] if torch.equal(first[0], reads[0].pre[-1]) else lens(first)
    before = torch.cat([embedded, depth[:-1, 2]])  # each layer's input before anything is added between layers
    return Components(
        attention=depth[:, 1] - depth[:, 0],
        mlp=depth[:, 2] - depth[:, 1],
        between=depth[:, 0] - before,
        embedding=float(before[0]),
        head=torch.stack(heads),
        head_position=torch.stack(by_position),
    )


def _heads(parts: Anatomy, i: int, read: LayerRead, lens: Lens) -> tuple[Tensor, Tensor]:
    """Return the importance of a layer's heads `[H]`, and of what they read from each position `[H, T]`."""
    layer, base = parts.layers[i], lens(read.pre[-1:])
    writes = head_writes(layer, read.z[-1:])[0]  # (head, model)
    by_source = read.pattern(len(read.z) - 1)[..., None].to(read.z.dtype) * read.values()  # (head, position, d_head)
    n_heads, n_tokens = by_source.shape[:2]
    gains = []
    # several heads at once, since each unembedding also runs one token through the model
    for index in pieces(torch.arange(n_heads * n_tokens, device=by_source.device), lens.step):
        z = torch.zeros(len(index), *read.z.shape[1:], dtype=read.z.dtype, device=read.z.device)
        z[torch.arange(len(index)), index // n_tokens] = by_source.flatten(0, 1)[index]
        gains.append(lens(read.pre[-1] + z_writes(layer, z, read.z[-1])) - base)
    return lens(read.pre[-1] + writes) - base, torch.cat(gains).view(n_heads, n_tokens)


def _check_sums(parts: Anatomy, reads: list[LayerRead]) -> None:
    """Raise UnsupportedModel unless the attention's write is the difference between `resid_pre` and `resid_mid`."""
    for i, read in enumerate(reads):
        off = widened(read.pre + attn_write(parts, i, read) - read.mid).norm() / widened(read.mid).norm()
        if not off <= {torch.float64: 1e-8, torch.float32: 1e-4}.get(read.mid.dtype, 0.05):
            raise UnsupportedModel(
                f"In layer {i} of this {parts.model.config.model_type} model the parts miss the residual stream by a "
                f"share of {float(off):.2g} of its size, so their importance cannot be separated."
            )


class Words(NamedTuple):
    """Tokens that components promote: heads at the last position `[L, H, W]`, cells `[T, L, 2, W]`."""

    head: Tensor
    cell: Tensor


def written_words(parts: Anatomy, reads: list[LayerRead], lens: Lens, n_words: int) -> Words:
    """Return the tokens that the write of each head and cell alone makes likeliest."""
    head, cell = [], []
    for i, read in enumerate(reads):
        head.append(lens.words(head_writes(parts.layers[i], read.z[-1:])[0], n_words).cpu())
        both = torch.stack([attn_write(parts, i, read), read.post - read.mid], dim=1)  # (position, kind, model)
        words = lens.words(both.flatten(0, 1), min(n_words, _CELL_WORDS)).cpu()
        cell.append(words.view(len(both), 2, -1))
    return Words(torch.stack(head), torch.stack(cell, dim=1))


def token_text(tokenizer: PreTrainedTokenizerBase, token_id: int) -> str:
    """Return a token as text without outer spaces; if that shows nothing, as it is written in the vocabulary."""
    text = str(tokenizer.decode([token_id]))
    if not text.strip() or "\ufffd" in text:
        text = str(tokenizer.convert_ids_to_tokens(token_id))
    return text.strip(" ").replace("\n", "\\n").replace("\t", "\\t").replace("\r", "\\r") or "␣"
