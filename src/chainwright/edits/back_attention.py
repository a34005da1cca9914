"""Back attention: deep layers are read back into a shallow one, and the layers above it run again.

1. In the first pass each layer's input is kept.
2. At a source layer s every position reads, by one attention head of its own, the inputs of deeper layers (and the last
   layer's output) at its own and all earlier positions: `B = softmax(q K^T / sqrt(d')) V W_O`, with the softmax over
   positions and target layers together.
3. Layers s and above run again on `h_s + B`; what the last one then returns takes the place of what it returned first,
   so that the model's own norm and unembedding continue from there.

While decoding, the second pass and the head keep keys and values of their own. They are appended to the layers of the
model's cache, so whatever reorders, repeats or crops that cache does the same to them.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from time import perf_counter
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from chainwright._errors import BadInput
from chainwright._registry import register
from chainwright.edits.base import Edit, Touched
from chainwright.models._probe import first_tensor, given_tensor
from chainwright.models.anatomy import Anatomy
from chainwright.models.seam import STATE_KEY, Attend, AttentionCall, Handlers

_OWN = "_chainwright_back_attention"
_WEIGHTS_AT_ONCE = 2**22
Positions = tuple[int, ...] | Literal["own"] | None


class BackHead(nn.Module):
    """The parameters of back attention into one source layer.

    Attributes:
        source: Layer whose input is changed.
        targets: Depths that are read: t is the input of layer t, L the output of the last of L layers.
        d_back: Size of queries, keys and values.
        is_normed: Divide what goes into the three projections by its root mean square.
    """

    def __init__(self, d_model: int, source: int, targets: Sequence[int], d_back: int = 64, is_normed: bool = True):
        super().__init__()
        if not targets:
            raise BadInput("Back attention needs at least one target layer to read.")
        if d_back < 1:
            raise BadInput(f"d_back must be at least 1; got {d_back}.")
        if min(targets) < source or max(targets) == source:
            raise BadInput(
                f"Source layer {source} comes after target {min(targets)}, or no target lies above it (targets "
                f"{sorted(targets)}); back attention reads deeper layers: give targets from {source} to the number of "
                f"layers, at least one above {source}."
            )
        self.source, self.targets = source, tuple(sorted(set(targets)))
        self.d_back, self.is_normed = d_back, is_normed
        self.q, self.k, self.v = (nn.Linear(d_model, d_back, bias=False) for _ in range(3))
        self.o = nn.Linear(d_back, d_model, bias=False)
        nn.init.zeros_(self.o.weight)  # so that an untrained module changes nothing

    @torch.no_grad()
    def write_back(self, scale: float) -> None:
        """Set values and output so that about `scale` times the (normed) vectors that are read is written back.

        It is as much of an identity as a map of rank `d_back` can be: `R^T R` with random R, split evenly over both.
        """
        nn.init.normal_(self.v.weight, std=(scale / self.d_back) ** 0.5)
        self.o.weight.copy_(self.v.weight.T)

    def keys_values(self, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Return keys and values of the target depths, `[N, t, T, d']`, from `[N, t, T, D]`."""
        given = self._normed(targets)
        return self.k(given), self.v(given)

    def pattern(self, source: Tensor, keys: Tensor, visible: Tensor) -> Tensor:
        """Return where each position reads, `[N, Tq, t, Tk]`; a row that may look at nothing is zero.

        Args:
            source: Input of the source layer, `[N, Tq, D]`.
            keys: `[N, t, Tk, d']`.
            visible: Which keys a query may read, bool `[N, Tq, Tk]`.
        """
        scores: Tensor = torch.einsum("nqd,ntkd->nqtk", self.q(self._normed(source)), keys) / self.d_back**0.5
        hidden = ~visible[:, :, None, :].expand_as(scores)
        flat = scores.float().masked_fill(hidden, torch.finfo(torch.float32).min).flatten(2).softmax(-1)
        weights: Tensor = flat.view_as(scores).masked_fill(hidden, 0.0)
        return weights.type_as(scores)

    def read(self, pattern: Tensor, values: Tensor) -> Tensor:
        """Return what is added to the source layer's input, `[N, Tq, D]`."""
        return self.o(torch.einsum("nqtk,ntkd->nqd", pattern, values))  # type: ignore[no-any-return]

    def _normed(self, v: Tensor) -> Tensor:
        if not self.is_normed:
            return v
        scale: Tensor = v.float().pow(2).mean(-1, keepdim=True).add(1e-6).rsqrt()
        return v * scale.to(v.dtype)


class Scores(NamedTuple):
    """What one back-attention head read in one pass: pattern `[N, Tq, t, Tk]` and the targets' depths."""

    source: int
    targets: tuple[int, ...]
    pattern: Tensor


@register("edit", "attend-back")
@dataclass(frozen=True)
class AttendBack(Edit):
    """Runs a model with back attention (see above).

    Attributes:
        heads: One head for each source layer.
        positions: Restricts what is read: to tokens at these positions of a row, counted from its first one; to each
            query's "own"; or None for its own and all earlier ones.
        tokens: Restricts what is read to positions that hold one of these tokens, wherever they are; None for any.
        on_scores: Called with what each head read.

    Source: back attention (arXiv 2502.10835), section 4. Departures: target depths include the last layer's output;
        inputs of the projections may be normed; several source layers may be changed in the one second pass, each
        asking with its input in that pass.
    """

    needs_whole: ClassVar[bool] = True

    heads: Sequence[BackHead]
    positions: Positions = None
    tokens: tuple[int, ...] | None = None
    on_scores: Callable[[Scores], None] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        """Refuse two heads of one layer, and none at all."""
        sources = [head.source for head in self.heads]
        if not sources or len(set(sources)) < len(sources):
            raise BadInput(f"Back attention takes one head for each source layer; got heads of layers {sources}.")
        check_reading(self.positions, self.tokens)

    def handlers(self, parts: Anatomy, touched: Touched) -> Handlers:
        """Return a handler that changes nothing: it shows the hooks that the seam is open and not suspended."""
        for head in self.heads:
            self._check(parts, head)
            touched.counter(parts, head.source)
        return Handlers({head.source: (partial(_unchanged, self),) for head in self.heads}, per_head=True)

    def _check(self, parts: Anatomy, head: BackHead) -> None:
        if head.q.in_features != parts.d_model:
            raise BadInput(
                f"This back attention was made for a residual stream of {head.q.in_features}, the model's has "
                f"{parts.d_model}; fit one for this model."
            )
        if head.source >= parts.n_layers or head.targets[-1] > parts.n_layers:
            raise BadInput(
                f"Source layer {head.source} with targets {list(head.targets)} does not fit a model of "
                f"{parts.n_layers} layers: sources go from 0 to {parts.n_layers - 1}, targets to {parts.n_layers}."
            )

    @contextmanager
    def hooked(self, parts: Anatomy, touched: Touched) -> Iterator[None]:
        """Keep each layer's input in the first pass, and run the second one when the last layer ends."""
        run = _TwoPasses(self, parts, touched)
        with ExitStack() as stack:
            base = parts.decoder
            stack.callback(base.register_forward_pre_hook(run.opened, with_kwargs=True).remove)
            stack.callback(base.register_forward_hook(run.closed, always_call=True).remove)
            for i, layer in enumerate(parts.layers):
                stack.callback(layer.block.register_forward_pre_hook(partial(run.given, i), with_kwargs=True).remove)
            last = parts.layers[-1].block
            stack.callback(last.register_forward_hook(run.again).remove)
            yield


def check_reading(positions: Positions, tokens: tuple[int, ...] | None) -> None:
    """Raise BadInput unless positions and tokens leave something to read, and are of the right kind."""
    if isinstance(positions, str) and positions != "own":
        raise BadInput(f"positions must be numbers such as (2,), 'own' or None; got {positions!r}.")
    if isinstance(positions, tuple) and (not positions or any(p < 0 for p in positions)):
        raise BadInput(f"positions are counted from a row's first token, from 0, at least one; got {positions}.")
    if tokens is not None and (not tokens or any(i < 0 for i in tokens)):
        raise BadInput(f"tokens must be at least one token id, or None to read any token; got {tokens}.")


def _unchanged(owner: AttendBack, call: AttentionCall, attend: Attend) -> Tensor:
    return attend(call)


class _Call(NamedTuple):
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    hidden: Tensor


class _TwoPasses:
    """The state of one forward pass of the decoder."""

    def __init__(self, owner: AttendBack, parts: Anatomy, touched: Touched):
        self.owner, self.parts, self.touched = owner, parts, touched
        self.heads = {head.source: head for head in owner.heads}
        self.first = min(self.heads)
        self.calls: list[_Call] | None = None  # None outside of a first pass
        self.mask: Tensor | None = None
        self.wanted: Tensor | None = None  # which of the tokens given now may be read, [N, Tq]

    def opened(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Begin a pass of the decoder."""
        mask = kwargs.get("attention_mask")
        if isinstance(mask, Tensor) and mask.dim() != 2:
            raise BadInput(
                f"Back attention needs an attention mask of shape [N, T] to know the padding; got {list(mask.shape)}."
            )
        for name in ("output_attentions", "output_hidden_states"):
            if kwargs.get(name, getattr(getattr(module, "config", None), name, False)):
                raise BadInput(
                    f"Back attention runs some layers twice, and {name} would record both runs, so that layers would "
                    "stand at wrong indices; use capture(model, input_ids, attention=True, residual=True) inside the "
                    "block."
                )
        self.mask, self.calls, self.wanted = mask, [], self._wanted(args, kwargs)

    def _wanted(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
        if self.owner.tokens is None:
            return None
        ids = kwargs.get("input_ids", args[0] if args else None)
        if not isinstance(ids, Tensor):
            raise BadInput(
                "This back attention reads chosen tokens, so the model must be given input_ids; got none (vectors, as "
                "inputs_embeds, have no tokens)."
            )
        return torch.isin(ids, torch.tensor(self.owner.tokens, device=ids.device))

    def closed(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """End it, whatever happened in it."""
        self.calls = None

    def given(self, i: int, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Keep what layer `i` is given in the first pass."""
        if self.calls is None or not self._is_asked(kwargs.get(STATE_KEY)):
            return
        hidden = given_tensor(args, kwargs)
        assert hidden is not None
        # a copy, since some layers work in place
        self.calls.append(_Call(args, kwargs, hidden.clone()))

    def _is_asked(self, handlers: Any) -> bool:
        chain = () if handlers is None else handlers.by_layer.get(self.first, ())
        return any(isinstance(h, partial) and h.args[:1] == (self.owner,) for h in chain)

    def again(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        """Run the second pass and return its output in place of the first one's."""
        calls, self.calls = self.calls, None  # what runs now is not recorded
        if not calls:
            return None
        end = first_tensor(output)
        assert end is not None
        try:
            since = perf_counter()
            hidden = self._second(calls, [*(call.hidden for call in calls), end])
            self.touched.worked(since)
        finally:
            self.calls = []
        if not self.touched.run.is_aside:
            self.touched.n_extra_forwards += 1
            self.touched.n_extra_tokens += hidden.shape[0] * hidden.shape[1]
            run = self.touched.run
            for row, first in zip(run.rows, run.latest.first, strict=False):
                row.n_extra_tokens += hidden.shape[1] - max(0, first - run.latest.n_past)
        return hidden if isinstance(output, Tensor) else type(output)((hidden, *output[1:]))

    def _second(self, calls: list[_Call], depths: list[Tensor]) -> Tensor:
        cache = _cache_of(calls[0])
        own = None if cache is None else _OwnLayers.of(cache, self.parts.n_layers, self.first)
        hidden = calls[self.first].hidden
        for i in range(self.first, self.parts.n_layers):
            if i in self.heads:
                hidden = hidden + self._read(self.heads[i], hidden, depths, own)
            args, kwargs = _with_hidden(calls[i], hidden)
            if own is not None:
                args, kwargs = own.swapped(args, kwargs)
            returned = first_tensor(self.parts.layers[i].block(*args, **kwargs))
            assert returned is not None
            hidden = returned
        return hidden

    def _read(self, head: BackHead, hidden: Tensor, depths: list[Tensor], own: _OwnLayers | None) -> Tensor:
        keys, values = head.keys_values(torch.stack([depths[t] for t in head.targets], dim=1))
        if self.wanted is not None:
            keys = flagged(keys, self.wanted)
        if own is not None:
            keys, values = own.extended(head.source, keys, values)
        is_wanted = None
        if self.wanted is not None:
            is_wanted, keys = keys[:, 0, :, -1] > 0, keys[..., :-1]
        n_rows, n_queries, _ = hidden.shape
        size = max(1, _WEIGHTS_AT_ONCE // (n_rows * keys.shape[1] * keys.shape[2]))
        # whoever looks at the scores sees all of them together; otherwise a long row is read in stretches
        size = n_queries if self.owner.on_scores is not None else size
        read = [
            self._stretch(head, hidden, slice(start, min(start + size, n_queries)), keys, values, is_wanted)
            for start in range(0, n_queries, size)
        ]
        ones = torch.ones(hidden.shape[:2], dtype=torch.long, device=hidden.device)
        self.touched.count(self.touched.counter(self.parts, head.source), ones)
        return read[0] if len(read) == 1 else torch.cat(read, dim=1)

    def _stretch(
        self, head: BackHead, hidden: Tensor, here: slice, keys: Tensor, values: Tensor, is_wanted: Tensor | None
    ) -> Tensor:
        """Return what some of the queries read, `[N, Tq, D]`."""
        visible = self._visible(hidden, keys.shape[2], here)
        if is_wanted is not None:
            visible = visible & is_wanted[:, None]
        pattern = head.pattern(hidden[:, here], keys, visible)
        if self.owner.on_scores is not None:
            self.owner.on_scores(Scores(head.source, head.targets, pattern.detach()))
        return head.read(pattern, values)

    def _visible(self, hidden: Tensor, n_keys: int, here: slice) -> Tensor:
        """Return which slots each of the queries `here` may read, `[N, Tq, Tk]`."""
        n_rows, n_queries, _ = hidden.shape
        slots = torch.arange(n_keys, device=hidden.device)
        asking = slots[n_keys - n_queries :, None][here]
        visible = (slots == asking if self.owner.positions == "own" else slots <= asking)[None]
        if self.mask is not None:
            visible = visible & _checked_mask(self.mask, n_rows, n_keys).to(hidden.device).bool()[:, None]
        if isinstance(self.owner.positions, tuple):
            wanted = torch.tensor(self.owner.positions, device=hidden.device)
            at = slots[None] if self.mask is None else self.mask.to(hidden.device).cumsum(-1) - 1
            visible = visible & torch.isin(at, wanted)[:, None]
        return visible.expand(n_rows, here.stop - here.start, n_keys)


def flagged(keys: Tensor, wanted: Tensor) -> Tensor:
    """Return keys `[N, t, T, d']` with one more number that is 1 where a token may be read.

    So the cache, which reorders and crops keys, does the same to what is known of their tokens.
    """
    flags = wanted.to(keys)[:, None, :, None].expand(*keys.shape[:3], 1)
    return torch.cat([keys, flags], dim=-1)


def _checked_mask(mask: Tensor, n_rows: int, n_keys: int) -> Tensor:
    if mask.shape != (n_rows, n_keys):
        raise BadInput(
            f"The attention mask has shape {list(mask.shape)}, but the pass has {n_rows} rows and {n_keys} slots; give "
            "one of that shape, the cached tokens included."
        )
    return mask


def _with_hidden(call: _Call, hidden: Tensor) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return a layer's arguments with another tensor in the place of what it works on."""
    for k, value in enumerate(call.args):
        if isinstance(value, Tensor):
            return (*call.args[:k], hidden, *call.args[k + 1 :]), call.kwargs
    name = next(name for name, value in call.kwargs.items() if isinstance(value, Tensor))
    return call.args, {**call.kwargs, name: hidden}


def _cache_of(call: _Call) -> Cache | None:
    found = [value for value in (*call.args, *call.kwargs.values()) if isinstance(value, Cache)]
    return found[0] if found else None


class _OwnLayers:
    """Keys and values of the second pass and of the heads, kept as further layers of the model's cache."""

    def __init__(self, cache: DynamicCache, n_layers: int, first: int):
        self.cache = cache
        self.second = {i: _empty(cache.layers[i]) for i in range(first, n_layers)}
        self.heads: dict[int, DynamicLayer] = {}
        cache.layers.extend(self.second.values())

    @classmethod
    def of(cls, cache: Cache, n_layers: int, first: int) -> _OwnLayers:
        """Return the own layers of a cache, made when it is first seen.

        Raises:
            BadInput: A kind of cache that cannot be extended, or one that was begun without back attention.
        """
        kinds = (DynamicLayer, DynamicSlidingWindowLayer)
        if type(cache) is not DynamicCache or any(type(layer) not in kinds for layer in cache.layers):
            raise BadInput(
                f"Back attention decodes with a DynamicCache; got {type(cache).__name__} with layers of "
                f"{type(cache.layers[0]).__name__}. Leave cache_implementation at its default, or pass use_cache=False."
            )
        own: _OwnLayers | None = cache.__dict__.get(_OWN)
        if own is None:
            own = cache.__dict__[_OWN] = cls(cache, n_layers, first)
        return own

    def swapped(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return a layer's arguments with the second pass's cache in the place of the model's."""
        view = copy.copy(self.cache)
        view.layers = [self.second.get(i, layer) for i, layer in enumerate(self.cache.layers)]
        args = tuple(view if isinstance(value, Cache) else value for value in args)
        return args, {name: view if isinstance(value, Cache) else value for name, value in kwargs.items()}

    def extended(self, source: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Return the keys and values of all slots so far, the new ones `[N, t, Tq, d']` put behind the old."""
        if source not in self.heads:
            self.heads[source] = DynamicLayer()
            self.cache.layers.append(self.heads[source])
        all_keys, all_values = self.heads[source].update(keys, values)
        n_slots = self.cache.get_seq_length()
        if all_keys.shape[2] != n_slots:
            raise BadInput(
                f"The cache holds {n_slots} tokens, of which {n_slots - all_keys.shape[2]} were computed without this "
                "back attention; begin with an empty cache inside the block."
            )
        return all_keys, all_values


def _empty(layer: DynamicLayer) -> DynamicLayer:
    """Return a cache layer of the same kind without anything in it."""
    if isinstance(layer, DynamicSlidingWindowLayer):
        return DynamicSlidingWindowLayer(sliding_window=layer.sliding_window)
    return DynamicLayer()
