"""Value neurons: every neuron at the last position is ranked by the log-probability that it adds, chunk by chunk.

Only the best neurons so far and their writes `[K, D]` are stored, and the logits of one chunk at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from chainwright.diagnose.flow._read_pass import LayerRead
from chainwright.diagnose.flow._trace_back import ATTN, FFN, Tracer
from chainwright.models.anatomy import Anatomy
from chainwright.models.residual import NormMode, lens_log_probs, unembed
from chainwright.models.writers import FeedForward, attn_writes, mlp_writes


class Lens(NamedTuple):
    """The lens for one token at the last position."""

    parts: Anatomy
    token: int
    norm: NormMode
    last: Tensor  # the last layer's output, [D]
    max_rows: int | None

    def __call__(self, rows: Tensor, token: int | None = None) -> Tensor:
        """Return the log-probability of the token for residual vectors, `[R]`."""
        ids = torch.full((len(rows),), self.token if token is None else token, device=rows.device)
        reference = self.last.expand_as(rows)
        return lens_log_probs(self.parts, rows, ids, norm=self.norm, reference=reference, max_rows=self.max_rows)

    @property
    def step(self) -> int:
        """Return how many vectors are unembedded at once."""
        return self.max_rows or max(1, min(2**26 // self.parts.d_vocab, 4096))

    def words(self, vectors: Tensor, n: int) -> Tensor:
        """Return the tokens that each write alone makes likeliest, `[R, n]`."""
        n = min(n, self.parts.d_vocab)
        if not n:
            return torch.empty(len(vectors), 0, dtype=torch.long, device=vectors.device)
        top = [unembed(self.parts, self.parts.final_norm(part)).topk(n).indices for part in pieces(vectors, self.step)]
        return torch.cat(top)


class Rows(NamedTuple):
    """Value neurons: location, importance, coefficient, and write `[K, D]`."""

    where: Tensor
    importance: Tensor
    coefficient: Tensor
    vectors: Tensor

    def best(self, n: int) -> Rows:
        """Return the `n` most important neurons, best first."""
        top = self.importance.topk(min(n, len(self.importance))).indices
        return Rows(*(part[top] for part in self))


class Values:
    """Ranks every neuron at the last position."""

    def __init__(
        self, ffs: tuple[FeedForward, ...], reads: list[LayerRead], lens: Lens, tracer: Tracer, n_neurons: int
    ):
        """Rank the neurons of one pass (`reads`), of which the best `n_neurons` of each kind are returned."""
        self.ffs, self.reads, self.lens, self.tracer, self.n_neurons = ffs, reads, lens, tracer, n_neurons
        self.groups: list[list[str]] = [[] for _ in reads]

    def measure(self) -> tuple[Rows, Rows]:
        """Return the best attention neurons and the best FFN neurons."""
        return self._streamed(self._attn_chunks()), self._streamed(self._ffn_chunks())

    def _streamed(self, chunks: Iterator[Rows]) -> Rows:
        best: Rows | None = None
        for chunk in chunks:
            best = chunk if best is None else Rows(*(torch.cat(pair) for pair in zip(best, chunk, strict=True)))
            best = best.best(self.n_neurons)
        assert best is not None
        return best

    def _attn_chunks(self) -> Iterator[Rows]:
        for i, read in enumerate(self.reads):
            z, base = read.z[-1], self.lens(read.pre[-1:])
            for flat in pieces(torch.arange(z.numel(), device=z.device), self.lens.step):
                vectors = attn_writes(self.lens.parts.layers[i], z, flat)
                head, index = flat // z.shape[1], flat % z.shape[1]
                gain = self.lens(read.pre[-1] + vectors) - base
                yield self._rows(i, ATTN, head, index, gain, z.flatten()[flat], vectors)

    def _ffn_chunks(self) -> Iterator[Rows]:
        for i, read in enumerate(self.reads):
            base = self.lens(read.mid[-1:])
            run = self.tracer.neurons_at(i, len(read.z) - 1)
            self.groups[i] = [group.name for group in run.groups]
            for g, group in enumerate(run.groups):
                activation = group.activation.detach()
                for index in pieces(torch.arange(len(activation), device=activation.device), self.lens.step):
                    vectors = mlp_writes(self.ffs[i], group, run.out, index)
                    gain = self.lens(read.mid[-1] + vectors) - base
                    yield self._rows(i, FFN, torch.full_like(index, g), index, gain, activation[index], vectors)

    def _rows(
        self, layer: int, kind: int, group: Tensor, index: Tensor, gain: Tensor, coefficient: Tensor, vectors: Tensor
    ) -> Rows:
        position = torch.full_like(index, len(self.reads[0].z) - 1)
        where = torch.stack(
            [position, torch.full_like(index, layer), torch.full_like(index, kind), group, index], dim=1
        )
        top = gain.topk(min(self.n_neurons, len(gain))).indices
        return Rows(where[top], gain[top], coefficient[top], vectors[top])


def pieces(rows: Tensor, n: int) -> Iterator[Tensor]:
    """Yield rows in pieces of at most `n`."""
    yield from (rows[i : i + n] for i in range(0, len(rows), n))
