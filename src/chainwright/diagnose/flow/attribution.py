"""Logit flow: which layers, heads, positions and neurons write an answer, and which earlier ones activate those.

1. One pass reads every layer. A component that adds v to the residual stream x at the last position has the importance
   `log lens(x + v)[token] - log lens(x)[token]`.
2. Attention neurons (one entry of a head's z with its column of the output projection) and FFN neurons (one activation
   with its column of the down projection) are ranked by importance; only those that may be among the best are measured.
3. The best of both are traced back to what activated them (`_trace_back`), which gives a map position x layer x
   {attention, FFN}.
4. With a second token, the difference of the two log-probabilities over positions and depths.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from numbers import Integral
from typing import TYPE_CHECKING, Any, Literal, get_args

import pyarrow as pa
import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from chainwright._errors import BadInput
from chainwright._finding import Finding
from chainwright._registry import register
from chainwright.diagnose.flow._components import Components, Words, components, token_text, written_words
from chainwright.diagnose.flow._read_pass import LayerRead, read_pass
from chainwright.diagnose.flow._spans import added
from chainwright.diagnose.flow._trace_back import Neuron, Traced, Tracer
from chainwright.diagnose.flow._value_neurons import Lens, Rows, Values
from chainwright.diagnose.heads.lens import in_vocabulary
from chainwright.models.anatomy import Anatomy, anatomy, evaluating
from chainwright.models.capture import check_ids
from chainwright.models.gradients import check_gradients
from chainwright.models.load import provenance
from chainwright.models.residual import NormMode
from chainwright.models.seam import Handlers, attach
from chainwright.models.writers import feed_forwards

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

KINDS = ("attention", "FFN")
SpanMode = Literal["first", "sum"]
_MLP, _BETWEEN = -1, -2  # in place of a head


@register("finding", "LogitFlow")
@dataclass(frozen=True, kw_only=True)
class LogitFlow(Finding):
    """What writes one token at the last position of one context, and what activates it.

    T tokens, L layers, H heads, D depths (2 L + 1: the embedding, then after each attention and each MLP), S tracing
    steps. Importances are in nats of log-probability.

    Attributes:
        input_ids: The context, `[T]`; with `span="sum"` it includes all but the last of the target's tokens.
        token_id: The token that is followed, the first one of a span.
        target_ids: The tokens that are followed: `token_id`, or a whole span, over which everything is summed.
        logprob: Log-probability that the model gives them.
        attention: Importance of each layer's attention, `[L]`.
        mlp: Importance of each layer's MLP, `[L]`; with the embedding, `attention` and `between` it adds up to
            `logprob`.
        between: Importance of what an attached edit added in front of each layer (back attention), `[L]`.
        embedding: Log-probability of the token at the embedding.
        head: Importance of each head, `[L, H]`.
        head_position: Importance of what a head reads from each source position, `[L, H, T]`.
        neurons: The value neurons, best first, `[K, 5]`: position, layer, kind (0 attention, 1 FFN), group, index. The
            group is the head, or the number of the FFN's output matrix in `groups`.
        importance: Of each value neuron, `[K]`.
        coefficient: Entry of z or activation of each value neuron, `[K]`.
        words: The tokens that each value neuron promotes most, `[K, W]`.
        head_words: The tokens that each head's write alone makes likeliest, `[L, H, W]`; for a span at its first token.
        cell_words: The same for the writes of attention and FFN at each position, `[T, L, 2, W']`.
        query_neurons: The query neurons, `[Q, 5]`, as `neurons`.
        query_credit: The part of the value neurons' importance that each of them accounts for, `[Q]`, nats.
        flow: Credit by step, position, layer and kind, `[S, T, L, 2]`; step 0 holds the value neurons themselves.
        contrast: Log-probability of the token minus that of the conflicting one, at each position of the prompt and
            depth, `[T, D]`; empty without a conflicting token.
        conflict_id: The conflicting token, -1 without one.
        groups: Name of each FFN output matrix at the last position, by layer.
        token_strs: The context's tokens as text, if a tokenizer was passed.
        texts: Text of every token named in the other fields, keyed by its id as a string, if a tokenizer was passed.
    """

    input_ids: Tensor
    token_id: int
    target_ids: list[int]
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
    head_words: Tensor
    cell_words: Tensor
    query_neurons: Tensor
    query_credit: Tensor
    flow: Tensor
    contrast: Tensor
    conflict_id: int
    groups: list[list[str]]
    token_strs: list[str]
    texts: Mapping[str, str] = field(default_factory=dict)

    def text(self, token_id: int) -> str:
        """Return a token as text, or its number without a tokenizer."""
        return self.texts.get(str(int(token_id)), str(int(token_id)))

    def said(self, ids: Tensor) -> str:
        """Return some tokens as text, separated by spaces."""
        return " ".join(self.text(i) for i in ids.flatten().tolist())

    def place(self, position: int) -> str:
        """Return a position with its token, such as "2 (mother)"."""
        return f"{position} ({self.token_strs[position]})" if self.token_strs else str(position)

    def components(self, n: int = 12) -> list[dict[str, Any]]:
        """Return the `n` heads, MLPs and additions between layers that raise the target most, with their words.

        Each row has layer, component, reads (the position that gives a head most of its importance), nats and writes.
        """
        ranked = [(float(v), i, h) for i, row in enumerate(self.head) for h, v in enumerate(row)]
        ranked += [(float(v), i, _MLP) for i, v in enumerate(self.mlp)]
        ranked += [(float(v), i, _BETWEEN) for i, v in enumerate(self.between) if v]
        return [self._component(*each) for each in sorted(ranked, reverse=True)[:n]]

    def _component(self, nats: float, layer: int, head: int) -> dict[str, Any]:
        if head == _BETWEEN:
            return {"layer": layer, "component": "added before it", "reads": "", "nats": nats, "writes": ""}
        if head == _MLP:
            own = len(self.input_ids) - len(self.target_ids)  # where the first token of the target is written
            words, name, reads = self.cell_words[own, layer, 1], "MLP", ""
        else:
            words, name = self.head_words[layer, head], f"head {head}"
            reads = self.place(int(self.head_position[layer, head].argmax()))
        return {"layer": layer, "component": name, "reads": reads, "nats": nats, "writes": self.said(words)}

    def summary(self) -> str:
        """Return the most important layers, and the cell that activates them most, in two lines."""
        total = self.attention + self.mlp
        best = total.topk(min(3, len(total)))
        top = [(float(v), int(i)) for v, i in zip(best.values, best.indices, strict=True)]
        layers = ", ".join(f"layer {i} ({v:+.2f} nats)" for v, i in top if v > 0)
        what = f"{self.said(torch.tensor(self.target_ids))!r}" if self.texts else f"token {self.token_id}"
        text = f"Log-probability of {what}: {self.logprob:.2f}; it rises most in {layers or 'no layer'}."
        if self.flow.shape[0] > 1:
            cells = self.flow[1:].sum(0)
            position, layer, kind = (int(k) for k in torch.unravel_index(cells.argmax(), cells.shape))
            text += f"\nSwitched on most from position {self.place(position)}, layer {layer} {KINDS[kind]}."
        return text

    def to_frame(self) -> pa.Table:
        """Return one row per value neuron and query neuron."""
        both = torch.cat([self.neurons, self.query_neurons])
        n_value = len(self.neurons)
        columns = {name: both[:, i].tolist() for i, name in enumerate(("position", "layer", "kind", "group", "index"))}
        columns["kind"] = [KINDS[k] for k in columns["kind"]]
        role = ["value"] * n_value + ["query"] * (len(both) - n_value)
        return pa.table({"role": role, **columns, "nats": [*self.importance.tolist(), *self.query_credit.tolist()]})

    def plot(self, what: Literal["map", "contrast"] = "map") -> Figure:
        """Return the map of credit over positions and layers, or the contrast with the conflicting token by depth.

        Raises:
            BadInput: `what` is "contrast", but there is no conflicting token.
        """
        from chainwright.figures.flow import contrast_curves, flow_map

        if what == "map":
            words = [[[self.said(w) for w in kinds] for kinds in layers] for layers in self.cell_words]
            return flow_map(self.flow, self.token_strs, words)
        if not self.contrast.numel():
            raise BadInput("There is no conflicting token to compare with; pass conflict_id to logit_flow.")
        names = [self.place(i) for i in range(len(self.contrast))]
        return contrast_curves(self.contrast, names, self.text(self.token_id), self.text(self.conflict_id))


@torch.no_grad()
def logit_flow(
    model: nn.Module,
    input_ids: Tensor,
    token_id: int | Sequence[int] | Tensor,
    *,
    conflict_id: int | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    span: SpanMode | None = None,
    norm: NormMode = "final",
    n_neurons: int = 300,
    n_traced: int = 30,
    depth: int = 2,
    n_cells: int = 12,
    n_words: int = 5,
    max_rows: int | None = None,
) -> LogitFlow:
    """Return what writes a token at the end of a context, and what activated that.

    Args:
        model: A Transformers decoder; edits attached when it is called are in force.
        input_ids: One context, `[T]` or `[1, T]`, without padding.
        token_id: The token to follow, or the tokens of an answer together with `span`.
        conflict_id: A token to compare with the first one at every position and depth.
        tokenizer: To name tokens by their text.
        span: How to treat a target of several tokens: "first" follows only its first one, "sum" follows each of them
            given those before it and sums everything. None refuses such a target.
        norm: As in `logit_lens`; "frozen" makes importances along one residual stream add up.
        n_neurons: Value neurons to return of each kind.
        n_traced: Value neurons of each kind that are traced back; 0 traces nothing.
        depth: Tracing steps.
        n_cells: Cells (position, layer, kind) that each step decomposes.
        n_words: Tokens listed per value neuron and head, and up to three of them per cell; 0 lists none.
        max_rows: Vectors unembedded at once; None keeps the logits below about 256 MB.

    Raises:
        BadInput: A shape is wrong, there is no token or several without `span`, an id is outside the vocabulary, or a
            number is too small.
        UnsupportedModel: A part of the model was not recognised, or its neurons cannot be separated.

    Note:
        Memory besides the model is linear in T, and the logits of all neurons are never stored together; the method's
        page has the formula and measurements. The work is one unembedding per head and position, and with `n_words` two
        per position and layer. Neurons are ranked by upper bounds, and about as many are unembedded as are returned.

    Source: logit flow (arXiv 2502.10835), section 3. Departures: the credit of a query component is the exact share of
        a coefficient with the norms held (for gated FFN neurons the gradient of the activation replaces the input
        weights), each step decomposes only the top cells, and spans are an addition.
    """
    parts = anatomy(model)
    check_gradients(parts, "Logit flow")
    ids = _context(parts, input_ids)
    targets = _targets(parts, token_id, span)
    conflict = None if conflict_id is None else _targets(parts, conflict_id, None, "conflict_id")[0]
    settings = _Settings(norm, n_neurons, n_traced, depth, n_cells, n_words, max_rows)
    flows = []
    # the seam stays open, since single layers are rerun while tracing
    with evaluating(parts.model), attach(parts.model, Handlers({})):
        for k, token in enumerate(targets):
            context = torch.cat([ids, ids.new_tensor(targets[:k])])
            flows.append(_of_token(parts, context, token, conflict if k == 0 else None, settings))
    whole = flows[0] if len(flows) == 1 else added(flows, targets)
    return whole if tokenizer is None else _with_text(whole, tokenizer)


@dataclass(frozen=True)
class _Settings:
    """The settings of `logit_flow`."""

    norm: NormMode
    n_neurons: int
    n_traced: int
    depth: int
    n_cells: int
    n_words: int
    max_rows: int | None

    def __post_init__(self) -> None:
        if self.norm not in get_args(NormMode):
            raise BadInput(f"norm must be 'final' or 'frozen'; got {self.norm!r}.")
        least = {"n_neurons": 1, "n_traced": 0, "depth": 0, "n_cells": 1, "n_words": 0}
        for name, value in least.items():
            if getattr(self, name) < value:
                raise BadInput(f"{name} must be at least {value}; got {getattr(self, name)}.")


def _context(parts: Anatomy, input_ids: Tensor) -> Tensor:
    ids = input_ids[0] if input_ids.dim() == 2 and len(input_ids) == 1 else input_ids
    if ids.dim() != 1 or not ids.numel():
        raise BadInput(
            "logit_flow takes one context of at least one token, [T] or [1, T] without padding; got "
            f"{list(input_ids.shape)}."
        )
    check_ids(ids[None], None)
    return in_vocabulary(parts, "input_ids", ids)


def _targets(
    parts: Anatomy, token_id: int | Sequence[int] | Tensor, span: SpanMode | None, name: str = "token_id"
) -> list[int]:
    ids = token_id.flatten().tolist() if isinstance(token_id, Tensor) else token_id
    ids = [ids] if isinstance(ids, Integral) else list(ids)  # type: ignore[arg-type]
    if span not in (None, *get_args(SpanMode)):
        raise BadInput(f"span must be 'first', 'sum' or None; got {span!r}.")
    if not ids or not all(isinstance(i, Integral) for i in ids):
        raise BadInput(f"{name} must be a token id, or several with span='first' or 'sum'; got {ids}.")
    if len(ids) > 1 and span is None:
        how = (
            "of a conflicting answer of several tokens only the first is compared: pass that one"
            if name == "conflict_id"
            else "pass span='first' to follow the first one, or span='sum' to follow and sum all of them"
        )
        raise BadInput(f"{name} is {len(ids)} tokens, {ids}; {how}.")
    in_vocabulary(parts, name, torch.tensor(ids))
    return [int(i) for i in (ids if span == "sum" else ids[:1])]


def _of_token(parts: Anatomy, ids: Tensor, token: int, conflict: int | None, settings: _Settings) -> LogitFlow:
    """Return the flow of one token, without texts."""
    ffs = feed_forwards(parts)
    reads = read_pass(parts, ffs, ids[None])
    lens = Lens(parts, token, settings.norm, reads[-1].post[-1], settings.max_rows)
    tracer = Tracer(parts, ffs, reads, settings.n_cells, max(1, settings.n_traced // max(1, settings.n_cells)))
    values = Values(ffs, reads, lens, tracer, settings.n_neurons)
    lens = values.lens
    rows = values.measure()
    return _result(
        ids=ids,
        lens=lens,
        parts=components(parts, reads, lens),
        rows=rows,
        traced=_traced(tracer, rows, settings.n_traced, settings.depth),
        written=written_words(parts, reads, lens, settings.n_words),
        contrast=torch.empty(0) if conflict is None else _contrast(reads, lens, conflict),
        conflict=-1 if conflict is None else conflict,
        groups=values.groups,
        settings=settings,
    )


def _traced(tracer: Tracer, rows: tuple[Rows, Rows], n_traced: int, depth: int) -> Traced:
    start = []
    for part in rows:
        best = part.best(n_traced)
        for where, gain in zip(best.where.tolist(), best.importance.tolist(), strict=True):
            if gain > 0:
                start.append((Neuron(*where), gain))
    return tracer.trace(start, depth if n_traced else 0)


def _contrast(reads: list[LayerRead], lens: Lens, conflict: int) -> Tensor:
    """Return the difference of the two log-probabilities at each position and depth, `[T, D]`."""
    depths = [reads[0].first, *(stream for read in reads for stream in (read.mid, read.post))]
    # a frozen scale belongs to the last position alone, so at other positions it is always recomputed
    own = lens._replace(norm="final")
    return torch.stack([own(stream) - own(stream, conflict) for stream in depths], dim=1)


def _result(
    *,
    ids: Tensor,
    lens: Lens,
    parts: Components,
    rows: tuple[Rows, Rows],
    traced: Traced,
    written: Words,
    contrast: Tensor,
    conflict: int,
    groups: list[list[str]],
    settings: _Settings,
) -> LogitFlow:
    both = Rows(*(torch.cat(pair) for pair in zip(*rows, strict=True)))
    both = both.best(len(both.importance))
    return LogitFlow(
        input_ids=ids.cpu(),
        token_id=lens.token,
        target_ids=[lens.token],
        logprob=float(lens(lens.last[None])),
        attention=parts.attention.cpu(),
        mlp=parts.mlp.cpu(),
        between=parts.between.cpu(),
        embedding=parts.embedding,
        head=parts.head.cpu(),
        head_position=parts.head_position.cpu(),
        neurons=both.where.cpu(),
        importance=both.importance.cpu(),
        coefficient=both.coefficient.cpu(),
        words=lens.words([both.vectors], settings.n_words).cpu(),
        head_words=written.head,
        cell_words=written.cell,
        query_neurons=torch.tensor([list(n) for n, _ in traced.neurons], dtype=torch.long).reshape(-1, 5),
        query_credit=torch.tensor([credit for _, credit in traced.neurons]),
        flow=traced.flow,
        contrast=contrast.cpu(),
        conflict_id=conflict,
        groups=groups,
        token_strs=[],
        config={"norm": settings.norm, "n_neurons": settings.n_neurons, "depth": traced.flow.shape[0] - 1},
        provenance=provenance(lens.parts.model),
    )


def _with_text(flow: LogitFlow, tokenizer: PreTrainedTokenizerBase) -> LogitFlow:
    named = [flow.words, flow.head_words, flow.cell_words, flow.input_ids, torch.tensor(flow.target_ids)]
    ids = {
        *torch.cat([part.flatten() for part in named]).tolist(),
        *([flow.conflict_id] if flow.contrast.numel() else []),
    }
    texts = {str(i): token_text(tokenizer, i) for i in sorted(ids)}
    return replace(flow, token_strs=[texts[str(i)] for i in flow.input_ids.tolist()], texts=texts)
