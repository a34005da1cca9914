"""The layers of a model run again from recorded calls, for variants that each lack one head."""

from __future__ import annotations

from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from chainwright._config import Positions
from chainwright.diagnose.heads._sweep.baseline_pass import BaselinePass, Contexts, for_rows
from chainwright.diagnose.heads._sweep.half_products import HalfProducts, Record
from chainwright.diagnose.heads._sweep.same_layer import Shared, Sharing, as_output
from chainwright.diagnose.heads._sweep.segments import Join, Keys, Segment, Split, split, whole
from chainwright.models._probe import first_tensor
from chainwright.models.anatomy import Anatomy, Layer
from chainwright.models.layer_halves import returning
from chainwright.models.seam import STATE_KEY, Attend, AttentionCall, Handlers


@dataclass
class Chunk:
    """Variants that run together from the layer of their silenced heads onwards.

    Attributes:
        layer: That layer.
        pairs: (row, head) of each variant `[R, 2]`; head -1 silences nothing.
        hidden: Their input to the current layer `[R, S, D]`; None before their own layer.
        start: The same of the beginning that their rows share, `[V, P, D]` for V heads; None without such a beginning.
    """

    layer: int
    pairs: Tensor
    hidden: Tensor | None = None
    start: Tensor | None = None
    heads: Tensor = field(init=False)
    variants: Tensor = field(init=False)

    def __post_init__(self) -> None:
        """Number the silenced heads: `heads` `[V]`, and the number of each pair's head `[R]`."""
        self.heads = torch.tensor(sorted(set(self.pairs[:, 1].tolist())))
        self.variants = torch.searchsorted(self.heads, self.pairs[:, 1].contiguous())

    @property
    def where(self) -> Tensor:
        """Return (row, layer, head) of each variant `[R, 3]`."""
        rows, heads = self.pairs.T
        return torch.stack([rows, torch.full_like(rows, self.layer), heads], dim=1)


class Rerun:
    """Runs chunks of variants through the layers: whole contexts, or what they share and the rest of each."""

    def __init__(
        self,
        parts: Anatomy,
        contexts: Contexts,
        plain: BaselinePass,
        positions: Positions,
        sharing: Sharing,
        max_bytes: int,
        *,
        splits: bool = True,
    ):
        self.parts, self.positions, self.sharing, self.max_bytes = parts, positions, sharing, max_bytes
        self.split: Split | None = split(plain, contexts) if splits and positions == "all" else None
        self.rest: Segment = whole(plain, contexts) if self.split is None else self.split.rest
        # inside a block a variant takes about eight residual streams at its widest point
        per_variant = 8 * self.rest.n_tokens * parts.d_model * int(parts.model.dtype.itemsize)
        self.at_once = max(1, max_bytes // per_variant)

    def without_split(self, contexts: Contexts, plain: BaselinePass) -> Rerun:
        """Return the same without sharing a beginning."""
        return Rerun(self.parts, contexts, plain, self.positions, self.sharing, self.max_bytes, splits=False)

    @property
    def n_tokens_per_pair(self) -> int:
        """Return how many tokens a (row, head) pair runs, with its share of the beginning."""
        shared = 0 if self.split is None else -(-self.split.start.n_tokens // self.rest.n_rows)
        return self.rest.n_tokens + shared

    def run(self, wave: list[Chunk], *, shares: bool = True, is_halved: bool = False) -> Tensor:
        """Return the last layer's output at the last position `[R, D]`, chunk after chunk.

        Args:
            wave: Chunks in the order of their layers.
            shares: Compute what the heads of a layer share once.
            is_halved: Multiply what differs from the baseline pass in bfloat16.
        """
        for index in range(wave[0].layer, self.parts.n_layers):
            running = [chunk for chunk in wave if chunk.layer <= index]
            n_new = sum(len(chunk.pairs) for chunk in running if chunk.layer == index)
            step = _Step(self, index)
            if shares and n_new and self.positions == "all":
                step.share(n_new)
            if is_halved:
                step.halve()
            for chunk in running:
                step.advance(chunk)
        return torch.cat([_states(chunk.hidden)[:, -1] for chunk in wave])


class _Part:
    """One layer, for the columns of one segment."""

    def __init__(self, layer: Layer, segment: Segment, index: int, positions: Positions):
        self.layer, self.positions = layer, positions
        self.call, self.n_rows = segment.calls[index], segment.n_rows
        self.shared: Shared | None = None
        self.products: HalfProducts | None = None
        self.records: dict[nn.Module, Record] = {}

    def arguments(
        self, rows: Tensor, hidden: Tensor | None, handlers: Handlers | None
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the layer's arguments for some rows; `hidden` None takes the recorded states."""
        args, kwargs = for_rows(self.call, rows, self.n_rows, hidden)
        return args, kwargs if handlers is None else {**kwargs, STATE_KEY: handlers}

    def record(self, products: HalfProducts, handlers: Handlers | None) -> None:
        """Record what the linear modules do in the baseline pass, and multiply only what differs from it."""
        args, kwargs = self.arguments(torch.arange(self.n_rows), None, handlers)
        self.products = products
        self.records = products.recorded(self.call.hidden.shape[:2], lambda: self.layer.block(*args, **kwargs))

    def run(self, pairs: Tensor, hidden: Tensor | None, handlers: Handlers | None) -> Tensor:
        """Return the layer's output `[R, S, D]`; where `hidden` is None, with each pair's head silenced."""
        rows, heads = pairs.T
        args, kwargs = self.arguments(rows, hidden, handlers)
        with ExitStack() as stack:
            if self.products is not None:
                stack.enter_context(self.products.used(self.records, rows))
            if hidden is None and self.shared is not None:
                # the silenced head's own layer: the formula of `same_layer`, or else its projection run again
                stack.enter_context(self.shared.given(rows, heads))
            elif hidden is None:
                stack.enter_context(self.attention_gives(_silenced(self.call.z, pairs, self.positions)))
            return _states(first_tensor(self.layer.block(*args, **kwargs)))

    def run_last(self, pairs: Tensor, hidden: Tensor | None, last_z: Any) -> Tensor:
        """Return the output of the last layer at the last position `[R, 1, D]`.

        Args:
            pairs: (row, head).
            hidden: Its input; None silences each pair's head.
            last_z: Gives the head outputs of the last query for the layer's arguments.
        """
        args, kwargs = self.arguments(pairs[:, 0], hidden, None)
        z = _silenced(self.call.z[:, -1:], pairs, self.positions) if hidden is None else last_z(args, kwargs)
        args, kwargs = _at_last_position(args, kwargs)
        with self.attention_gives(z):
            return _states(first_tensor(self.layer.block(*args, **kwargs))).clone()

    def attention_gives(self, z: Tensor) -> AbstractContextManager[None]:
        """Make the layer's attention module return the projection of `z` instead of attending."""
        output = as_output(self.call, self.layer.project(z).reshape(*z.shape[:2], -1))
        return returning(self.layer.attention, lambda *args, **kwargs: output)


class _Step:
    """One layer of a rerun."""

    def __init__(self, rerun: Rerun, index: int):
        self.rerun, self.index, self.layer = rerun, index, rerun.parts.layers[index]
        self.rest = _Part(self.layer, rerun.rest, index, rerun.positions)
        self.split, self.start = rerun.split, None
        if rerun.split is not None:
            self.start = _Part(self.layer, rerun.split.start, index, rerun.positions)
        # the logits need only the last position: its z alone, then the rest of the layer for one position
        self.is_last = index == rerun.parts.n_layers - 1 and self.rest.call.is_positionwise

    def share(self, n_new: int) -> None:
        """Compute once what the `n_new` variants that begin in this layer share."""
        for part in (self.start, self.rest):
            if part is not None and not self.is_last:
                part.shared = self.rerun.sharing.of_layer(self.index, part.call, n_new)

    def halve(self) -> None:
        """Multiply in bfloat16 from here on; the last layer has too few products to gain from it."""
        if self.is_last:
            return
        products, read, join = HalfProducts(self.layer.block), list[Keys](), None
        if self.split is not None and self.start is not None:
            self.start.record(products, self._reading(read))
            rows = torch.arange(self.rest.n_rows)
            join = partial(self.split.joined, keys=read[0], rows=rows, variants=torch.zeros_like(rows))
        self.rest.record(products, self._joining(join))

    def advance(self, chunk: Chunk) -> None:
        """Move a chunk through this layer."""
        keys = self._advance_start(chunk)
        # without a shared beginning, chunks are as large as may run at once
        at_once = len(chunk.pairs) if self.split is None else self.rerun.at_once
        pieces = []
        for begin in range(0, len(chunk.pairs), at_once):
            some = slice(begin, begin + at_once)
            pairs, hidden = chunk.pairs[some], None if chunk.hidden is None else chunk.hidden[some]
            join = None
            if self.split is not None and keys is not None:
                join = partial(self.split.joined, keys=keys, rows=pairs[:, 0], variants=chunk.variants[some])
            if self.is_last:
                pieces.append(self.rest.run_last(pairs, hidden, partial(self.rerun.sharing.last_query.z, join=join)))
            else:
                pieces.append(self.rest.run(pairs, hidden, self._joining(join)))
        chunk.hidden = pieces[0] if len(pieces) == 1 else torch.cat(pieces)

    def _advance_start(self, chunk: Chunk) -> Keys | None:
        """Move what the rows share through this layer; return its keys and values, or None if they are not needed."""
        if self.start is None or (self.is_last and chunk.start is None):
            return None
        read: list[Keys] = []
        pairs = torch.stack([torch.zeros_like(chunk.heads), chunk.heads], dim=1)
        if self.is_last:
            args, kwargs = self.start.arguments(pairs[:, 0], chunk.start, None)
            return self.rerun.sharing.last_query.keys(args, kwargs)
        chunk.start = self.start.run(pairs, chunk.start, self._reading(read))
        return read[0] if read else None

    def _reading(self, read: list[Keys]) -> Handlers:
        def handler(call: AttentionCall, attend: Attend) -> Tensor:
            read.append(Keys(call.k, call.v))
            return attend(call)

        return self._handlers(handler)

    def _joining(self, join: Join | None) -> Handlers | None:
        return None if join is None else self._handlers(lambda call, attend: attend(join(call)))

    def _handlers(self, handler: Any) -> Handlers:
        return Handlers({int(self.layer.attention.layer_idx): (handler,)})  # type: ignore[arg-type]


def _states(hidden: Tensor | None) -> Tensor:
    assert hidden is not None
    return hidden


def _silenced(z: Tensor, pairs: Tensor, positions: Positions) -> Tensor:
    """Return z of each (row, head) pair `[R, P, H, d]` with its head set to zero; head -1 stays."""
    rows, heads = pairs.T
    z = z[rows.to(z.device)]
    (silenced,) = (heads >= 0).nonzero(as_tuple=True)
    where = slice(None) if positions == "all" else -1
    z[silenced, where, heads[silenced]] = 0
    return z


def _at_last_position(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if args:
        return (args[0][:, -1:], *args[1:]), kwargs
    return args, {**kwargs, "hidden_states": kwargs["hidden_states"][:, -1:]}
