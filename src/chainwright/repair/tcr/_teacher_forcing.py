"""Whole rows of tokens run at once and read at many places: for scoring traces and for fitting.

A site is a place before a token: (row, number of tokens before it). One pass without a head gives what it says at every
site of a row, so silencing a head at all positions costs a pass per row and head, however many sites there are. At the
last position alone it costs one step of one token per site and head (`_forced_last`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from chainwright._config import Positions
from chainwright.edits import Head, KnockOut
from chainwright.edits.run import aside
from chainwright.models._probe import first_tensor, widened
from chainwright.models.anatomy import Anatomy
from chainwright.models.capture import final_states
from chainwright.models.padding import left_pad
from chainwright.models.residual import unembed
from chainwright.repair.tcr._ablated_cache import Pair
from chainwright.repair.tcr._forced_last import Place, ablated_last, cached_states, kept_cache
from chainwright.repair.tcr._knockout_switch import Switch
from chainwright.repair.tcr._last_position import whole_prefix_logits
from chainwright.repair.tcr._seen import Seen
from chainwright.repair.tcr._two_best import TwoBest
from chainwright.scoring import Corrections
from chainwright.traces import Trace

if TYPE_CHECKING:
    from chainwright.repair.tcr.token_repair import CorrectingRepair

LOGITS_AT_ONCE = 2**25


class Site(NamedTuple):
    """A place before a token: its row, and how many tokens of the row stand before it."""

    row: int
    n_before: int


class ForcedRows:
    """Rows of tokens that have been run once, and can be run again without heads.

    Args:
        parts: Anatomy of the model, which is in evaluation mode.
        switch: Its open knockout switch.
        rows: The tokens of each row.
        prompts: How many of them are the prompt.
        layers: Layers whose output is read.
        lens_layers: Layers at which the two likeliest tokens are read through the logit lens.
        positions: Where heads will be silenced: for "last" keys and values are kept.
    """

    def __init__(
        self,
        parts: Anatomy,
        switch: Switch,
        rows: Sequence[Sequence[int]],
        prompts: Sequence[int],
        layers: Sequence[int],
        lens_layers: Sequence[int] = (),
        positions: Positions = "all",
    ):
        self.parts = parts
        self.switch = switch
        self.rows = rows
        self.prompts = prompts
        self.ids, self.mask = left_pad(rows, 0, parts.device)
        self.layers = [i % parts.n_layers for i in layers]
        self.two_best = TwoBest(parts, lens_layers) if lens_layers else None
        self._cache = kept_cache(parts) if positions == "last" else None
        self._hidden: dict[int, Tensor] = {}
        with ExitStack() as stack, torch.no_grad():
            for i in {*self.layers, *(self.two_best.layers if self.two_best else ())}:
                stack.callback(parts.layers[i].block.register_forward_hook(self._reader(i)).remove)
            every = torch.arange(len(rows))
            has_cache = self._cache is not None
            self.final = cached_states(parts, self.ids, self.mask, self._cache) if has_cache else self._run(every)

    def _reader(self, layer: int) -> Callable[..., None]:
        def read(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            given = first_tensor(output)
            assert given is not None
            self._hidden[layer] = given.reshape(*self.ids.shape, -1)

        return read

    def _run(self, rows: Tensor) -> Tensor:
        """Return the decoder's output `[rows, T, D]`."""
        at = rows.to(self.ids.device)
        return final_states(self.parts, self.ids[at], self.mask[at])

    def _columns(self, sites: Sequence[Site]) -> tuple[Tensor, Tensor]:
        """Return row and column of the last token before each site."""
        width = self.ids.shape[1]
        rows = torch.tensor([s.row for s in sites], device=self.ids.device)
        columns = torch.tensor([width - len(self.rows[s.row]) + s.n_before - 1 for s in sites], device=self.ids.device)
        return rows, columns

    def seen(self, sites: Sequence[Site]) -> Seen:
        """Return what decoding would have seen at the sites."""
        rows, columns = self._columns(sites)
        logits = unembed(self.parts, self.final[rows, columns])

        def states(layers: Sequence[int]) -> Tensor:
            read = [widened(self._hidden[i][rows, columns]) for i in layers]
            return torch.stack(read, dim=1) if read else logits.new_zeros(len(sites), 0, 0)

        lens = None if self.two_best is None else self.two_best.read(states(self.two_best.layers), logits)
        contexts = [self.rows[s.row][: s.n_before] for s in sites]
        prompts = [self.rows[s.row][: self.prompts[s.row]] for s in sites]
        return Seen(states(self.layers), logits, contexts, prompts, lens)

    def chunks(self, sites: Sequence[Site]) -> Iterator[Sequence[Site]]:
        """Yield the sites in pieces whose logits are not too large."""
        step = max(1, LOGITS_AT_ONCE // self.parts.d_vocab)
        yield from (sites[i : i + step] for i in range(0, len(sites), step))

    def without(self, sites: Sequence[Site], pairs: Sequence[Pair], positions: Positions, scale: float) -> Tensor:
        """Return the next-token logits `[pairs, V]` of (index of a site, head) pairs without that head."""
        with torch.no_grad():
            if positions == "all":
                return self._without_all(sites, pairs, scale)
            if self._cache is not None:
                rows, columns = (at.tolist() for at in self._columns([sites[i] for i, _ in pairs]))
                heads = [{head} for _, head in pairs]
                places = [Place(*at) for at in zip(rows, columns, heads, strict=True)]
                return ablated_last(self.parts, self.switch, self.ids, self.mask, self._cache, places, scale)
            contexts = [self.rows[sites[i].row][: sites[i].n_before] for i, _ in pairs]
            by_row = [(sites[i].row, head) for i, head in pairs]
            return whole_prefix_logits(self.parts, self.switch, by_row, contexts, "last", scale)

    def without_each(
        self, sites: Sequence[Site], heads: Sequence[Head], positions: Positions, scale: float
    ) -> Iterator[tuple[slice, Tensor]]:
        """Yield the next-token logits `[sites, heads, V]` without each head, for pieces of the sites.

        With heads silenced at all positions, every row is run once per head, however many pieces there are.
        """
        step = max(1, LOGITS_AT_ONCE // (len(heads) * self.parts.d_vocab))
        states = self._states_without(sites, heads, scale) if positions == "all" else None
        for start in range(0, len(sites), step):
            here = slice(start, min(start + step, len(sites)))
            some = sites[here]
            if states is None:
                pairs = [(i, head) for head in heads for i in range(len(some))]
                logits = self.without(some, pairs, positions, scale)
            else:
                logits = unembed(self.parts, states[:, here].flatten(0, 1))
            yield here, logits.view(len(heads), len(some), -1).transpose(0, 1)

    def _states_without(self, sites: Sequence[Site], heads: Sequence[Head], scale: float) -> Tensor:
        """Return what is unembedded at the sites without each head, `[heads, sites, D]`."""
        rows, columns = self._columns(sites)
        needed, at = torch.unique(rows.cpu(), return_inverse=True)
        found = []
        for head in heads:
            with torch.no_grad(), aside(self.parts, needed.tolist()), self.switch.on(KnockOut({head}, scale=scale)):
                found.append(self._run(needed)[at.to(columns.device), columns])
        return torch.stack(found)

    def _without_all(self, sites: Sequence[Site], pairs: Sequence[Pair], scale: float) -> Tensor:
        out = torch.empty(len(pairs), self.parts.d_vocab, device=self.ids.device)
        for head in dict.fromkeys(head for _, head in pairs):
            mine = [i for i, pair in enumerate(pairs) if pair[1] == head]
            rows, columns = self._columns([sites[pairs[i][0]] for i in mine])
            needed, at = torch.unique(rows.cpu(), return_inverse=True)
            with aside(self.parts, needed.tolist()), self.switch.on(KnockOut({head}, scale=scale)):
                final = self._run(needed)
            out[mine] = unembed(self.parts, final[at.to(columns.device), columns]).to(out.dtype)
        return out


def trace_corrections(parts: Anatomy, repair: CorrectingRepair, traces: Sequence[Trace]) -> list[Corrections]:
    """Return for each trace the logits that `repair` puts in at the flagged tokens of its response."""
    rows = [trace.input_ids.tolist() for trace in traces]
    starts = [max(1, trace.response_start) for trace in traces]
    switch = Switch(parts)
    found: list[list[tuple[int, Tensor]]] = [[] for _ in traces]
    with switch.attached(), torch.no_grad():
        forced = ForcedRows(parts, switch, rows, starts, repair.layers, repair.lens_layers, repair.positions)
        sites = [Site(i, n) for i, row in enumerate(rows) for n in range(starts[i], len(row))]
        for chunk in forced.chunks(sites):
            for site, logits in _corrected(parts, repair, forced, chunk):
                found[site.row].append((site.n_before, logits))
    empty = torch.empty(0, parts.d_vocab)
    return [
        Corrections(
            torch.tensor([n for n, _ in row], dtype=torch.long),
            torch.stack([logits for _, logits in row]) if row else empty,
        )
        for row in found
    ]


def _corrected(
    parts: Anatomy, repair: CorrectingRepair, forced: ForcedRows, sites: Sequence[Site]
) -> Iterator[tuple[Site, Tensor]]:
    seen = forced.seen(sites)
    flagged = repair.detector.flags(seen).nonzero()[:, 0].tolist()
    if not flagged:
        return
    doubtful = [sites[i] for i in flagged]

    def without(pairs: Sequence[tuple[int, Head]]) -> Tensor:
        return forced.without(doubtful, pairs, repair.positions, repair.scale)

    yield from zip(doubtful, repair.corrected(parts, seen.take(flagged), without), strict=True)
