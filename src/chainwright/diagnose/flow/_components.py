"""The importance of layers, heads, and (head, source position) pairs, and the words that they write."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from chainwright._errors import UnsupportedModel
from chainwright.diagnose.flow._read_pass import LayerRead, attn_write
from chainwright.diagnose.flow._screen import pieces
from chainwright.diagnose.flow._value_neurons import Lens
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
    shape = (len(reads), *reads[0].z.shape[1:2])
    heads = lens.over(read.pre[-1] + head_writes(parts.layers[i], read.z[-1:])[0] for i, read in enumerate(reads))
    positions = lens.over(rows for i, read in enumerate(reads) for rows in _by_position(parts, i, read, lens.step))
    first = reads[0].first[-1:]
    embedded = depth[:1, 0] if torch.equal(first[0], reads[0].pre[-1]) else lens(first)
    before = torch.cat([embedded, depth[:-1, 2]])  # each layer's input before anything is added between layers
    return Components(
        attention=depth[:, 1] - depth[:, 0],
        mlp=depth[:, 2] - depth[:, 1],
        between=depth[:, 0] - before,
        embedding=float(before[0]),
        head=heads.view(shape) - depth[:, :1],
        head_position=positions.view(*shape, -1) - depth[:, :1, None],
    )


def _by_position(parts: Anatomy, i: int, read: LayerRead, n: int) -> Iterator[Tensor]:
    """Yield the stream in front of a layer with what one head reads from one position added, `H T` rows in all."""
    layer = parts.layers[i]
    by_source = read.pattern(len(read.z) - 1)[..., None].to(read.z.dtype) * read.values()  # (head, position, d_head)
    n_heads, n_tokens = by_source.shape[:2]
    for index in pieces(torch.arange(n_heads * n_tokens, device=by_source.device), n):
        z = torch.zeros(len(index), *read.z.shape[1:], dtype=read.z.dtype, device=read.z.device)
        z[torch.arange(len(index)), index // n_tokens] = by_source.flatten(0, 1)[index]
        yield read.pre[-1] + z_writes(layer, z, read.z[-1])


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
    n_heads, n_tokens = reads[0].z.shape[1], len(reads[0].z)
    words = lens.words((_writes(parts, i, read) for i, read in enumerate(reads)), n_words).cpu()
    words = words.view(len(reads), n_heads + 2 * n_tokens, -1 if words.numel() else 0)
    cells = words[:, n_heads:, :_CELL_WORDS].reshape(len(reads), n_tokens, 2, min(words.shape[-1], _CELL_WORDS))
    return Words(words[:, :n_heads], cells.transpose(0, 1))


def _writes(parts: Anatomy, i: int, read: LayerRead) -> Tensor:
    """Return what a layer's heads write at the last position, then what its halves do at each one, `[H + 2 T, D]`."""
    both = torch.stack([attn_write(parts, i, read), read.post - read.mid], dim=1)  # (position, kind, model)
    return torch.cat([head_writes(parts.layers[i], read.z[-1:])[0], both.flatten(0, 1)])


def token_text(tokenizer: PreTrainedTokenizerBase, token_id: int) -> str:
    """Return a token as text without outer spaces; if that shows nothing, as it is written in the vocabulary."""
    text = str(tokenizer.decode([token_id]))
    if not text.strip() or "\ufffd" in text:
        text = str(tokenizer.convert_ids_to_tokens(token_id))
    return text.strip(" ").replace("\n", "\\n").replace("\t", "\\t").replace("\r", "\\r") or "␣"
