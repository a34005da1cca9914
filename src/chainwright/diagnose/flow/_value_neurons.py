"""Value neurons: the neurons at the last position that add most to a token's log-probability, of all layers.

1. Every neuron has an upper bound on its importance (`_screen`), for the cost of some inner products.
2. Neurons are opened in the order of their bounds, a block at a time: what one adds is measured with the whole
   vocabulary, until the last of the best so far beats the next bound. So the best are those of the full ranking.

Only the bounds, the best neurons so far and their writes `[K, D]` are stored, and the logits of one block at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from chainwright.diagnose.flow._read_pass import LayerRead
from chainwright.diagnose.flow._screen import Screen, pieces, screen
from chainwright.diagnose.flow._trace_back import ATTN, FFN, Tracer
from chainwright.models.anatomy import Anatomy
from chainwright.models.output_head import OutputHead
from chainwright.models.residual import NormMode, norm_at_scale, unembed
from chainwright.models.sharding import is_spread
from chainwright.models.writers import FeedForward, NeuronRun, attn_writes, mlp_writes

_OWN_TERMS = 128  # tokens whose logits enter the bound one by one; the likeliest hold most of the probability
_FEWEST = 64  # vectors opened at once; without a known output head each block also runs one token through the model


class Lens(NamedTuple):
    """The lens for one token at the last position.

    With `head`, which gives the same logits, nothing else of the model runs; without it each block of vectors takes a
    pass of one token through all layers.
    """

    parts: Anatomy
    token: int
    norm: NormMode
    last: Tensor  # the last layer's output, [D]
    max_rows: int | None
    head: OutputHead | None = None

    def __call__(self, rows: Tensor, token: int | None = None) -> Tensor:
        """Return the log-probability of the token for residual vectors, `[R]`."""
        column = self.token if token is None else token
        return torch.cat([_log_probs(self._logits(self.normed(part)), column) for part in pieces(rows, self.step)])

    def over(self, blocks: Iterable[Tensor]) -> Tensor:
        """Return the log-probability of the token for residual vectors that arrive in blocks of any size, `[R]`."""
        return torch.cat([self(rows) for rows in regrouped(blocks, self.step)])

    def normed(self, rows: Tensor) -> Tensor:
        """Return residual vectors after the final norm."""
        norm = self.parts.final_norm
        normed: Tensor = norm(rows) if self.norm == "final" else norm_at_scale(norm, rows, self.last.expand_as(rows))
        return normed

    def _logits(self, normed: Tensor) -> Tensor:
        return unembed(self.parts, normed) if self.head is None else self.head.every(normed)

    @property
    def step(self) -> int:
        """Return how many vectors are unembedded at once."""
        return self.max_rows or max(1, min(2**26 // self.parts.d_vocab, 4096))

    def words(self, blocks: Iterable[Tensor], n: int) -> Tensor:
        """Return the tokens that each write alone makes likeliest, for writes that arrive in blocks, `[R, n]`."""
        n, norm = min(n, self.parts.d_vocab), self.parts.final_norm
        if not n:
            return torch.empty(sum(map(len, blocks)), 0, dtype=torch.long, device=self.last.device)
        top = [self._logits(norm(part)).topk(n).indices for part in regrouped(blocks, self.step)]
        return torch.cat(top)


def _log_probs(logits: Tensor, token: int) -> Tensor:
    """Return the log-probability of one token, `[R]`; the logits are overwritten, which saves as much memory again."""
    top = logits.amax(-1, keepdim=True)
    own = (logits[:, token, None] - top)[:, 0]
    return own - logits.sub_(top).exp_().sum(-1).log()


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


@dataclass(frozen=True)
class _Source:
    """The neurons that add to one residual vector: a layer's attention neurons, or those of one output matrix.

    Attributes:
        where: Position, layer, kind, group and index of each, `[F, 5]`.
        coefficient: `[F]`.
        base: The number of the residual vector among those that are screened.
        stream: That vector, `[D]`.
        writes: Returns what some of them write, `[K, D]`.
    """

    where: Tensor
    coefficient: Tensor
    base: int
    stream: Tensor
    writes: Callable[[Tensor], Tensor]


class Values:
    """Ranks every neuron at the last position."""

    def __init__(
        self, ffs: tuple[FeedForward, ...], reads: list[LayerRead], lens: Lens, tracer: Tracer, n_neurons: int
    ):
        """Rank the neurons of one pass (`reads`), of which the best `n_neurons` of each kind are returned."""
        self.ffs, self.reads, self.tracer, self.n_neurons = ffs, reads, tracer, n_neurons
        streams = torch.stack([stream[-1] for read in reads for stream in (read.pre, read.mid)])
        self.bounds = screen(lens.parts, lens.token, lens.normed(streams), n_tokens=_OWN_TERMS, n_rows=lens.step)
        head = self.bounds.head
        self.lens = lens._replace(head=head if head is not None and bool(head.is_plain.all()) else None)
        self.groups: list[list[str]] = [[] for _ in reads]
        self._runs: dict[int, NeuronRun] = {}

    def measure(self) -> tuple[Rows, Rows]:
        """Return the best attention neurons and the best FFN neurons."""
        return self._best(self._attn_sources(), self.bounds), self._best(self._ffn_sources(), self.bounds)

    def _best(self, sources: list[_Source], bounds: Screen) -> Rows:
        """Open neurons in the order of their upper bounds until the last of the best beats the next bound."""
        upper = torch.cat([self._upper(source, bounds) for source in sources])
        order = upper.argsort(descending=True)
        best = self._opened(sources, bounds, order[:0])
        start, size = 0, max(self.n_neurons, _FEWEST)
        while start < len(order):
            is_full = len(best.importance) == self.n_neurons
            block = order[start : start + size]
            block = block[upper[block] > best.importance[-1]] if is_full else block
            if not len(block):
                break
            rows = self._opened(sources, bounds, block)
            best = Rows(*(torch.cat(pair) for pair in zip(best, rows, strict=True))).best(self.n_neurons)
            start, size = start + size, min(2 * size, max(self.lens.step, _FEWEST))
        return best

    def _upper(self, source: _Source, bounds: Screen) -> Tensor:
        """Return an upper bound on the importance of each neuron of a source, `[F]`."""
        every = torch.arange(len(source.where), device=source.where.device)
        parts = [
            bounds.upper(source.base, self.lens.normed(source.stream + source.writes(index)))
            for index in pieces(every, self.lens.step)
        ]
        return torch.cat(parts) - bounds.log_probs[source.base]

    def _opened(self, sources: list[_Source], bounds: Screen, chosen: Tensor) -> Rows:
        """Return some neurons, numbered through all sources, with their exact importance."""
        ends = torch.tensor([len(source.where) for source in sources], device=chosen.device).cumsum(0)
        number = torch.searchsorted(ends, chosen, right=True)
        where, coefficient, vectors, rows, base = [], [], [], [], []
        for n in sorted({*number.tolist()}) or [0]:
            source = sources[n]
            index = chosen[number == n] - (int(ends[n]) - len(source.where))
            where.append(source.where[index])
            coefficient.append(source.coefficient[index])
            vectors.append(source.writes(index))
            rows.append(source.stream + vectors[-1])
            base.append(bounds.log_probs[source.base].expand(len(index)))
        gain = self.lens.over(rows) - torch.cat(base) if len(chosen) else torch.cat(base)
        return Rows(torch.cat(where), gain, torch.cat(coefficient), torch.cat(vectors))

    def _attn_sources(self) -> list[_Source]:
        sources = []
        for i, read in enumerate(self.reads):
            z, layer = read.z[-1], self.lens.parts.layers[i]
            flat = torch.arange(z.numel(), device=z.device)
            where = self._where(i, ATTN, flat // z.shape[1], flat % z.shape[1])
            sources.append(_Source(where, z.flatten(), 2 * i, read.pre[-1], partial(attn_writes, layer, z)))
        return sources

    def _ffn_sources(self) -> list[_Source]:
        sources = []
        for i, read in enumerate(self.reads):
            run = self._run(i)
            self.groups[i] = [group.name for group in run.groups]
            for g, group in enumerate(run.groups):
                activation = group.activation.detach()
                unit = torch.arange(len(activation), device=activation.device)
                where = self._where(i, FFN, torch.full_like(unit, g), unit)
                sources.append(_Source(where, activation, 2 * i + 1, read.mid[-1], partial(self._ffn_writes, i, g)))
        return sources

    def _ffn_writes(self, layer: int, group: int, index: Tensor) -> Tensor:
        run = self._run(layer)
        return mlp_writes(self.ffs[layer], run.groups[group], run.out, index)

    def _run(self, layer: int) -> NeuronRun:
        if layer in self._runs:
            return self._runs[layer]
        run = self.tracer.neurons_at(layer, len(self.reads[0].z) - 1)
        # weights that are offloaded, or lie in other ranks, would stay in memory with the run
        if not any(weight.is_meta or is_spread(weight) for weight in self.ffs[layer].mlp.parameters()):
            self._runs[layer] = run
        return run

    def _where(self, layer: int, kind: int, group: Tensor, unit: Tensor) -> Tensor:
        position = torch.full_like(unit, len(self.reads[0].z) - 1)
        return torch.stack([position, torch.full_like(unit, layer), torch.full_like(unit, kind), group, unit], dim=1)


def regrouped(blocks: Iterable[Tensor], n: int) -> Iterator[Tensor]:
    """Yield the rows of some blocks in pieces of `n`, the last one shorter."""
    waiting: list[Tensor] = []
    for block in blocks:
        waiting.append(block)
        if sum(map(len, waiting)) >= n:
            whole = torch.cat(waiting)
            full = len(whole) // n * n
            yield from pieces(whole[:full], n)
            waiting = [whole[full:]]
    rest = torch.cat(waiting)
    if len(rest):
        yield rest
