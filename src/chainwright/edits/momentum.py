"""Momentum (step momentum injection, SMI): the values of the last step are added at the first token of the next one.

At the first token of a new step `alpha * mean(v over the tokens of the step before)` is added to each head's output z,
in every chosen layer. On layers with a sliding window the attention's values have lost the evicted tokens, so there the
values come from a buffer of the edit's own, by slot. No sums are kept along the way: they would keep tokens that
speculative decoding took back.

Source: StepFlow (arXiv 2604.06695), step momentum injection. Departures: every chosen layer gets it (in the authors'
code only the first one that runs); the whole step is averaged as the paper says, `window` gives the authors' last 4.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from chainwright._errors import BadInput
from chainwright._registry import register
from chainwright.edits._passes import Pass
from chainwright.edits.base import Edit, Touched
from chainwright.edits.reading import Reading
from chainwright.models.anatomy import Anatomy
from chainwright.models.seam import Attend, AttentionCall, Handler, Handlers, widened
from chainwright.traces.live import LiveSteps, Place


@register("edit", "momentum")
@dataclass(frozen=True)
class Momentum(Edit):
    """Carries the values of the previous step over to the first token of a new one, in some layers.

    Attributes:
        layers: Which layers, counted from 0; negative ones from the last.
        steps: How the response is read while it is written.
        alpha: How much of the mean value is added.
        window: Average the last tokens of the previous step only; None takes all of it.
        into_summary: Also at the first token of the summary, from the last step of the thinking.
        n_question: As in `Bridge`.

    Note:
        Steps are those of the thinking from the second one on. At the first token of a sentence it is unknown whether
        it will be long enough to be a step, so short fragments get it too.
        On layers with a sliding window it costs the memory of a value cache without a window.
    """

    needs_whole: ClassVar[bool] = True

    layers: Collection[int]
    steps: LiveSteps | None
    alpha: float = 0.06
    window: int | None = None
    into_summary: bool = False
    n_question: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        """Check the window and the strength."""
        check_strength(self.alpha, self.window)

    def handlers(self, parts: Anatomy, touched: Touched) -> Handlers:
        """Return one handler for each layer."""
        layers = self.acting_layers(parts)
        return self.on(touched.read(self.steps, self.n_question), parts, touched) if layers else Handlers({})

    def acting_layers(self, parts: Anatomy) -> list[int]:
        """Return the layers in which anything may change."""
        layers = sorted({parts.check_layer(layer) for layer in self.layers})
        return layers if self.alpha != 0 else []

    def on(self, reading: Reading, parts: Anatomy, touched: Touched) -> Handlers:
        """Return the handlers that act on places which are read already, perhaps for other edits too."""
        by_layer: dict[int, tuple[Handler, ...]] = {}
        sites = _Sites(reading, self, touched)
        for layer in self.acting_layers(parts):
            counter = touched.counter(parts, layer)
            by_layer[layer] = (_Injecting(layer, sites, _Values(reading), self.alpha, counter),)
        return Handlers(by_layer, reads_state=True, per_head=True)


def check_strength(alpha: float, window: int | None) -> None:
    """Raise BadInput unless the momentum can have this strength and window."""
    if window is not None and window < 1:
        raise BadInput(f"window must be at least 1 token, or None for the whole step; got {window}.")
    if not abs(alpha) < float("inf"):
        raise BadInput(f"alpha must be a finite number; got {alpha}.")


class Site(NamedTuple):
    """A first token: its row, its place among the new tokens, and the slots to average (half-open)."""

    row: int
    query: int
    start: int
    end: int


class _Sites:
    """The first tokens of steps in the pass that is running, worked out once for all layers."""

    def __init__(self, reading: Reading, how: Momentum, touched: Touched):
        self.reading, self.how, self.touched = reading, how, touched
        self._of: Pass | None = None
        self._sites: list[Site] = []

    def now(self) -> list[Site]:
        """Return the sites of the pass that is running."""
        latest = self.reading.run.latest
        if self._of is not latest:
            since = perf_counter()
            self._of, self._sites = latest, self._read(latest)
            self.touched.worked(since)
        return self._sites

    def _read(self, latest: Pass) -> list[Site]:
        found = [
            self._site(latest, row, query, place)
            for row, places in enumerate(self.reading.places)
            for query, place in enumerate(places)
        ]
        return [site for site in found if site is not None]

    def n_counted(self) -> int:
        """Return how many of the sites are in rows that are not finished, in a pass of the run itself."""
        run = self.reading.run
        return 0 if run.latest.is_aside else sum(not run.rows[site.row].is_done for site in self._sites)

    def _site(self, latest: Pass, row: int, query: int, place: Place | None) -> Site | None:
        if place is None or place.previous is None:
            return None
        if place.thinking_end >= 0 and not self.how.into_summary:
            return None
        previous = place.previous
        start = previous.start if self.how.window is None else max(previous.start, previous.end - self.how.window)
        return Site(row, query, start + latest.first[row], previous.end + latest.first[row])


class _Values:
    """The values of one layer by slot, `[N, G, slots, dv]`, with room to grow.

    A layer may run more than once in a pass (back attention runs some layers again), on other values each time: each
    of these runs has values of its own.
    """

    def __init__(self, reading: Reading):
        self.run = reading.run
        self.kept: list[Tensor] = []
        self._of: Pass | None = None
        self._n_runs = 0
        reading.on_begin.append(self.kept.clear)
        reading.on_take.append(self._reorder)

    def _reorder(self, order: Sequence[int]) -> None:
        self.kept[:] = [values[list(order)] for values in self.kept]

    def put(self, call: AttentionCall) -> Tensor:
        """Keep the values of the pass's new tokens, and return all of them."""
        latest = self.run.latest
        if latest.is_aside:
            return call.v  # a pass over whole rows has all values itself
        self._n_runs = self._n_runs + 1 if self._of is latest else 0
        self._of = latest
        end = latest.n_past + latest.n_new
        # the slot of the first key tells which of the values are new
        start = latest.n_past - latest.offset(call.layer)
        values = self._with_room(call.v, end)
        values[:, :, latest.n_past : end] = call.v[:, :, start : start + latest.n_new]
        return values

    def _with_room(self, like: Tensor, n_slots: int) -> Tensor:
        if self._n_runs == len(self.kept):
            self.kept.append(like[:, :, :0])
        values = self.kept[self._n_runs]
        if values.shape[2] < n_slots:
            n_rows, n_kv, _, d = like.shape
            room = torch.zeros(n_rows, n_kv, max(64, 2 * n_slots), d, dtype=like.dtype, device=like.device)
            room[:, :, : values.shape[2]] = values
            self.kept[self._n_runs] = values = room
        return values


class _Injecting:
    """The handler of one layer."""

    def __init__(self, layer: int, sites: _Sites, values: _Values, alpha: float, counter: Tensor):
        self.layer, self.sites, self.values, self.alpha, self.counter = layer, sites, values, alpha, counter

    def is_idle(self) -> bool:
        """Return whether the pass that is running begins no step, and the layer is given the values of all slots."""
        return not self.sites.now() and self.layer not in self.values.run.latest.windows

    def __call__(self, call: AttentionCall, attend: Attend) -> Tensor:
        """Return z with the mean values added at the first tokens of steps."""
        z = attend(call)  # (batch, query, head, d_head)
        here, touched = self.sites.now(), self.sites.touched
        since = perf_counter()
        # a layer without a window is given the values of all slots
        has_window = self.layer in self.values.run.latest.windows
        values = self.values.put(call) if has_window else call.v
        if here:
            z = z.clone()
            n_rep = z.shape[2] // values.shape[1]
            for site in here:
                mean = widened(values[site.row, :, site.start : site.end]).mean(1)  # (kv head, d_head)
                z[site.row, site.query] += (self.alpha * mean).repeat_interleave(n_rep, dim=0).to(z.dtype)
            self.counter.add_(self.sites.n_counted() * call.n_heads)
        touched.worked(since)
        return z
