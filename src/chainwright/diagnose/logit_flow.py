"""Logit flow: which layers, heads, positions and neurons write an answer, and which earlier ones switch those on.

1. One pass reads every layer. A component that adds v to the residual stream x at the last position has the importance
   `log lens(x + v)[token] - log lens(x)[token]`.
2. Attention neurons (one entry of a head's z with its column of the output projection) and FFN neurons (one activation
   with its column of the down projection) are ranked by it, a chunk of them at a time, and only the best are kept.
3. The best of both are traced back to what switched them on (`_flow_trace`), which gives a map position x layer x
   {attention, FFN}.
4. With a second token, the curve of the difference of both log-probabilities over positions and depths.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import TYPE_CHECKING, NamedTuple, get_args

import pyarrow as pa
import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from chainwright._errors import BadInput, UnsupportedModel
from chainwright._finding import Finding
from chainwright.diagnose._flow_reader import LayerRead, attn_write, read_pass
from chainwright.diagnose._flow_trace import ATTN, FFN, Neuron, Traced, Tracer
from chainwright.diagnose.lens import in_vocabulary
from chainwright.models.anatomy import Anatomy, anatomy, evaluating
from chainwright.models.capture import check_ids
from chainwright.models.load import provenance
from chainwright.models.residual import NormMode, head_writes, lens_log_probs, unembed
from chainwright.models.seam import Handlers, attach, widened
from chainwright.models.writers import FeedForward, attn_writes, feed_forwards, mlp_writes, z_writes

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

KINDS = ("attention", "FFN")


@dataclass(frozen=True, kw_only=True)
class LogitFlow(Finding):
    """What writes one token at the last position of one context, and what switches that on.

    T tokens, L layers, H heads, D depths (2 L + 1: the embedding, then after each attention and each MLP), S steps of
    the tracing. Importances are in nats of log-probability.

    Attributes:
        input_ids: The context, `[T]`.
        token_id: The token whose writing is followed.
        logprob: Log-probability that the model gives it.
        attention: Importance of each layer's attention, `[L]`.
        mlp: Importance of each layer's MLP, `[L]`; with the embedding, `attention` and `between` it adds up to
            `logprob`.
        between: Importance of what was added between one layer and the next (an attached back attention), `[L]`.
        embedding: Log-probability of the token at the embedding.
        head: Importance of each head, `[L, H]`.
        head_position: Importance of what a head takes from each source position, `[L, H, T]`.
        neurons: The value neurons, best first, `[K, 5]`: position, layer, kind (0 attention, 1 FFN), group, index. The
            group is the head, or the number of the FFN's output matrix in `groups`.
        importance: Of each value neuron, `[K]`.
        coefficient: Entry of z or activation of each value neuron, `[K]`.
        words: The tokens that each value neuron pushes most, `[K, W]`.
        query_neurons: The query neurons, `[Q, 5]`, as `neurons`.
        query_credit: Share of the value neurons' importance that each of them accounts for, `[Q]`, nats.
        flow: Credit by step, position, layer and kind, `[S, T, L, 2]`; step 0 holds the value neurons themselves.
        contrast: Log-probability of the token less that of the conflicting one, at each position and depth, `[T, D]`;
            empty without a conflicting token.
        conflict_id: The conflicting token, -1 without one.
        groups: Name of each FFN output matrix, by layer, of the last position.
        token_strs: The context's tokens as text, if a tokenizer was given.
        written: `words` as text, if a tokenizer was given.
    """

    input_ids: Tensor
    token_id: int
    logprob: float
    attention: Tensor
    mlp: Tensor
    between: Tensor
    embedding: float
    head: Tensor
    head_position: Tensor
    neurons: Tensor
    importance: Tensor
    coefficient: Tensor
    words: Tensor
    query_neurons: Tensor
    query_credit: Tensor
    flow: Tensor
    contrast: Tensor
    conflict_id: int
    groups: list[list[str]]
    token_strs: list[str]
    written: list[list[str]]

    def summary(self) -> str:
        """Return the layers and positions that count most, in two lines."""
        total = self.attention + self.mlp
        best = total.topk(min(3, len(total)))
        layers = ", ".join(f"layer {int(i)} {float(v):+.2f}" for v, i in zip(best.values, best.indices, strict=True))
        text = f"Log-probability {self.logprob:.2f}; it rises most in {layers} nats."
        if self.flow.shape[0] > 1:
            cells = self.flow[1:].sum(0)
            position, layer, kind = (int(k) for k in torch.unravel_index(cells.argmax(), cells.shape))
            text += f"\nSwitched on most from position {position}, layer {layer} {KINDS[kind]}."
        return text

    def to_frame(self) -> pa.Table:
        """Return one row for each value and query neuron."""
        both = torch.cat([self.neurons, self.query_neurons])
        n_value = len(self.neurons)
        columns = {name: both[:, i].tolist() for i, name in enumerate(("position", "layer", "kind", "group", "index"))}
        columns["kind"] = [KINDS[k] for k in columns["kind"]]
        role = ["value"] * n_value + ["query"] * (len(both) - n_value)
        return pa.table({"role": role, **columns, "nats": [*self.importance.tolist(), *self.query_credit.tolist()]})

    def plot(self) -> Figure:
        """Return the map of credit over positions and layers."""
        from chainwright.figures.flow import flow_map

        return flow_map(self.flow, self.token_strs)


class _Lens(NamedTuple):
    """The lens for one token at the last position."""

    parts: Anatomy
    token: int
    norm: NormMode
    last: Tensor  # the last layer's output, [D]
    max_rows: int | None

    def __call__(self, rows: Tensor, token: int | None = None) -> Tensor:
        ids = torch.full((len(rows),), self.token if token is None else token, device=rows.device)
        reference = self.last.expand_as(rows)
        return lens_log_probs(self.parts, rows, ids, norm=self.norm, reference=reference, max_rows=self.max_rows)


@torch.no_grad()
def logit_flow(
    model: nn.Module,
    input_ids: Tensor,
    token_id: int | Sequence[int] | Tensor,
    *,
    conflict_id: int | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    norm: NormMode = "final",
    n_neurons: int = 300,
    n_traced: int = 30,
    depth: int = 2,
    n_cells: int = 12,
    n_words: int = 5,
    max_rows: int | None = None,
) -> LogitFlow:
    """Return what writes a token at the end of a context, and what switched that on.

    Args:
        model: A Transformers decoder; edits attached when it is called are in force.
        input_ids: One context, `[T]` or `[1, T]`, without padding.
        token_id: The token to follow. An answer of several tokens is followed by its first one: pass that one, or
            append the answer's beginning to the context to follow a later one.
        conflict_id: A token to compare with at every position and depth.
        tokenizer: Gives the tokens as text.
        norm: As in `logit_lens`; "frozen" makes importances along one residual stream add up.
        n_neurons: Value neurons kept of each kind.
        n_traced: Value neurons of each kind that are traced back; 0 traces nothing.
        depth: Steps of the tracing.
        n_cells: Cells (position, layer, kind) that each step takes apart.
        n_words: Tokens listed for each value neuron.
        max_rows: Vectors unembedded at once; None keeps the logits under about 256 MB.

    Raises:
        BadInput: Wrong shapes, several tokens for one context, an id outside the vocabulary, or a number below 0.
        UnsupportedModel: A part of the model was not found, or its neurons cannot be told apart.

    Note:
        Memory above the model's: `L T (4 D + (2 H + 2 G) d)` numbers for the pass, `max_rows x V` for the lens, one
        layer's output projection for the heads' neurons, and `2 L T D` while tracing; no neuron's lens is kept. The
        work is one unembedding for each neuron of each layer at the last position.

    Source: logit flow (arXiv 2502.10835), section 3. Departures: the credit of a query component is the exact share of
        a coefficient with the norms held (for gated FFN neurons the slope of the activation stands for the input
        weights), and each step takes apart the best cells only.
    """
    parts = anatomy(model)
    ids, token = _checked(parts, input_ids, token_id)
    conflict = None if conflict_id is None else _one_token(parts, "conflict_id", conflict_id)
    _check_numbers(norm, n_neurons, n_traced, depth, n_cells, n_words)
    # the seam stays open, since single layers are run again while tracing
    with evaluating(parts.model), attach(parts.model, Handlers({})):
        ffs = feed_forwards(parts)
        reads = read_pass(parts, ffs, ids[None])
        lens = _Lens(parts, token, norm, reads[-1].post[-1], max_rows)
        parts_of_it = _components(parts, reads, lens)
        tracer = Tracer(parts, ffs, reads, n_cells, max(1, n_traced // max(1, n_cells)))
        values = _Values(parts, ffs, reads, lens, tracer, n_neurons, n_words)
        rows = values.measure()
        traced = _traced(tracer, rows, n_traced, depth)
        contrast = torch.empty(0) if conflict is None else _contrast(reads, lens, conflict)
    return _result(parts, ids, lens, parts_of_it, rows, traced, contrast, conflict, tokenizer, values)


def _checked(parts: Anatomy, input_ids: Tensor, token_id: int | Sequence[int] | Tensor) -> tuple[Tensor, int]:
    ids = input_ids[0] if input_ids.dim() == 2 and len(input_ids) == 1 else input_ids
    if ids.dim() != 1:
        raise BadInput(f"logit_flow follows one context, [T] or [1, T] without padding; got {list(input_ids.shape)}.")
    check_ids(ids[None], None)
    return in_vocabulary(parts, "input_ids", ids), _one_token(parts, "token_id", token_id)


def _one_token(parts: Anatomy, name: str, token_id: int | Sequence[int] | Tensor) -> int:
    ids = token_id.flatten().tolist() if isinstance(token_id, Tensor) else token_id
    ids = [ids] if isinstance(ids, Integral) else list(ids)  # type: ignore[arg-type]
    if len(ids) != 1 or not isinstance(ids[0], Integral):
        raise BadInput(
            f"{name} must be one token, got {ids}; of an answer of several tokens pass the first one, and to follow a "
            "later one append the tokens before it to the context."
        )
    return int(in_vocabulary(parts, name, torch.tensor(ids))[0])


def _check_numbers(norm: str, n_neurons: int, n_traced: int, depth: int, n_cells: int, n_words: int) -> None:
    if norm not in get_args(NormMode):
        raise BadInput(f"norm must be 'final' or 'frozen'; got {norm!r}.")
    asked = {"n_neurons": (n_neurons, 1), "n_traced": (n_traced, 0), "depth": (depth, 0), "n_cells": (n_cells, 1)}
    for name, (value, least) in {**asked, "n_words": (n_words, 0)}.items():
        if value < least:
            raise BadInput(f"{name} must be at least {least}; got {value}.")


class _Components(NamedTuple):
    """Importances of layers, heads and (head, source position)."""

    attention: Tensor
    mlp: Tensor
    between: Tensor
    embedding: float
    head: Tensor
    head_position: Tensor


def _components(parts: Anatomy, reads: list[LayerRead], lens: _Lens) -> _Components:
    _check_sums(parts, reads)
    depth = lens(torch.stack([v for r in reads for v in (r.pre[-1], r.mid[-1], r.post[-1])])).view(-1, 3)
    heads, by_position = zip(*(_heads(parts, i, read, lens) for i, read in enumerate(reads)), strict=True)
    return _Components(
        attention=depth[:, 1] - depth[:, 0],
        mlp=depth[:, 2] - depth[:, 1],
        between=torch.cat([depth.new_zeros(1), depth[1:, 0] - depth[:-1, 2]]),
        embedding=float(depth[0, 0]),
        head=torch.stack(heads),
        head_position=torch.stack(by_position),
    )


def _heads(parts: Anatomy, i: int, read: LayerRead, lens: _Lens) -> tuple[Tensor, Tensor]:
    """Return the importance of a layer's heads `[H]`, and of what they take from each position `[H, T]`."""
    layer, base = parts.layers[i], lens(read.pre[-1:])
    writes = head_writes(layer, read.z[-1:])[0]  # (head, model)
    given = read.pattern(len(read.z) - 1)[..., None].to(read.z.dtype) * read.values()  # (head, position, d_head)
    found = []
    for h in range(parts.n_heads):
        z = torch.zeros(given.shape[1], *read.z.shape[1:], dtype=read.z.dtype, device=read.z.device)
        z[:, h] = given[h]
        found.append(lens(read.pre[-1] + z_writes(layer, z, read.z[-1])) - base)
    return lens(read.pre[-1] + writes) - base, torch.stack(found)


def _check_sums(parts: Anatomy, reads: list[LayerRead]) -> None:
    """Refuse a model in which what the attention writes is not what stands between `resid_pre` and `resid_mid`."""
    for i, read in enumerate(reads):
        off = widened(read.pre + attn_write(parts, i, read) - read.mid).norm() / widened(read.mid).norm()
        if not off <= {torch.float64: 1e-8, torch.float32: 1e-4}.get(read.mid.dtype, 0.05):
            raise UnsupportedModel(
                f"In layer {i} of this {parts.model.config.model_type} model the parts miss the residual stream by "
                f"{float(off):.2g} of its size, so they cannot be told apart."
            )


class _Rows(NamedTuple):
    """Value neurons: where they are, importance, coefficient, and what they write `[K, D]`."""

    where: Tensor
    importance: Tensor
    coefficient: Tensor
    vectors: Tensor

    def best(self, n: int) -> _Rows:
        """Return the `n` most important."""
        kept = self.importance.topk(min(n, len(self.importance))).indices
        return _Rows(*(part[kept] for part in self))


class _Values:
    """Ranks every neuron at the last position, a chunk at a time."""

    def __init__(
        self,
        parts: Anatomy,
        ffs: tuple[FeedForward, ...],
        reads: list[LayerRead],
        lens: _Lens,
        tracer: Tracer,
        n_neurons: int,
        n_words: int,
    ):
        self.parts, self.ffs, self.reads, self.lens, self.tracer = parts, ffs, reads, lens, tracer
        self.n_neurons, self.n_words = n_neurons, n_words
        self.step = lens.max_rows or max(1, min(2**26 // parts.d_vocab, 4096))
        self.groups: list[list[str]] = [[] for _ in reads]

    def measure(self) -> tuple[_Rows, _Rows]:
        """Return the best attention neurons and the best FFN neurons."""
        return self._streamed(self._attn_chunks()), self._streamed(self._ffn_chunks())

    def _streamed(self, chunks: Iterator[_Rows]) -> _Rows:
        kept: _Rows | None = None
        for chunk in chunks:
            kept = chunk if kept is None else _Rows(*(torch.cat(pair) for pair in zip(kept, chunk, strict=True)))
            kept = kept.best(self.n_neurons)
        assert kept is not None
        return kept

    def _attn_chunks(self) -> Iterator[_Rows]:
        for i, read in enumerate(self.reads):
            z, base = read.z[-1], self.lens(read.pre[-1:])
            for at in _pieces(torch.arange(z.numel(), device=z.device), self.step):
                vectors = attn_writes(self.parts.layers[i], z, at)
                head, index = at // z.shape[1], at % z.shape[1]
                yield self._rows(
                    i, ATTN, head, index, self.lens(read.pre[-1] + vectors) - base, z.flatten()[at], vectors
                )

    def _ffn_chunks(self) -> Iterator[_Rows]:
        for i, read in enumerate(self.reads):
            base = self.lens(read.mid[-1:])
            run = self.tracer.neurons_at(i, len(read.z) - 1)
            self.groups[i] = [group.name for group in run.groups]
            for g, group in enumerate(run.groups):
                activation = group.activation.detach()
                for at in _pieces(torch.arange(len(activation), device=activation.device), self.step):
                    vectors = mlp_writes(self.ffs[i], group, run.out, at)
                    gain = self.lens(read.mid[-1] + vectors) - base
                    yield self._rows(i, FFN, torch.full_like(at, g), at, gain, activation[at], vectors)

    def _rows(
        self, layer: int, kind: int, group: Tensor, index: Tensor, gain: Tensor, coefficient: Tensor, vectors: Tensor
    ) -> _Rows:
        position = torch.full_like(index, len(self.reads[0].z) - 1)
        where = torch.stack(
            [position, torch.full_like(index, layer), torch.full_like(index, kind), group, index], dim=1
        )
        kept = gain.topk(min(self.n_neurons, len(gain))).indices
        return _Rows(where[kept], gain[kept], coefficient[kept], vectors[kept])

    def words(self, rows: _Rows) -> Tensor:
        """Return the tokens that each neuron's write alone makes likeliest, `[K, W]`."""
        n = min(self.n_words, self.parts.d_vocab)
        found = [
            unembed(self.parts, self.parts.final_norm(part)).topk(n).indices
            for part in _pieces(rows.vectors, self.step)
        ]
        return torch.cat(found)


def _pieces(rows: Tensor, n: int) -> Iterator[Tensor]:
    yield from (rows[i : i + n] for i in range(0, len(rows), n))


def _traced(tracer: Tracer, rows: tuple[_Rows, _Rows], n_traced: int, depth: int) -> Traced:
    start = []
    for part in rows:
        best = part.best(n_traced)
        for where, gain in zip(best.where.tolist(), best.importance.tolist(), strict=True):
            if gain > 0:
                start.append((Neuron(*where), gain))
    return tracer.trace(start, depth if n_traced else 0)


def _contrast(reads: list[LayerRead], lens: _Lens, conflict: int) -> Tensor:
    """Return the difference of the two log-probabilities at each position and depth, `[T, D]`."""
    depths = [reads[0].pre, *(stream for read in reads for stream in (read.mid, read.post))]
    # the frozen scale is that of each position, so the recomputed one is used here
    own = lens._replace(norm="final")
    return torch.stack([own(stream) - own(stream, conflict) for stream in depths], dim=1)


def _result(
    parts: Anatomy,
    ids: Tensor,
    lens: _Lens,
    found: _Components,
    rows: tuple[_Rows, _Rows],
    traced: Traced,
    contrast: Tensor,
    conflict: int | None,
    tokenizer: PreTrainedTokenizerBase | None,
    values: _Values,
) -> LogitFlow:
    both = _Rows(*(torch.cat(pair) for pair in zip(*rows, strict=True)))
    both = both.best(len(both.importance))
    words = values.words(both)
    query = torch.tensor([list(n) for n, _ in traced.neurons], dtype=torch.long).reshape(-1, 5)
    return LogitFlow(
        input_ids=ids.cpu(),
        token_id=lens.token,
        logprob=float(lens(lens.last[None])),
        attention=found.attention.cpu(),
        mlp=found.mlp.cpu(),
        between=found.between.cpu(),
        embedding=found.embedding,
        head=found.head.cpu(),
        head_position=found.head_position.cpu(),
        neurons=both.where.cpu(),
        importance=both.importance.cpu(),
        coefficient=both.coefficient.cpu(),
        words=words.cpu(),
        query_neurons=query,
        query_credit=torch.tensor([credit for _, credit in traced.neurons]),
        flow=traced.flow,
        contrast=contrast.cpu(),
        conflict_id=-1 if conflict is None else conflict,
        groups=values.groups,
        token_strs=[] if tokenizer is None else tokenizer.convert_ids_to_tokens(ids.tolist()),
        written=[] if tokenizer is None else [tokenizer.convert_ids_to_tokens(row) for row in words.tolist()],
        config={"norm": lens.norm, "n_neurons": values.n_neurons, "depth": traced.flow.shape[0] - 1},
        provenance=provenance(parts.model),
    )
