"""Momentum (step momentum injection, SMI): what the last step said is added to the first token of the next one.

At the first token of a new step `alpha * mean(v over the tokens of the step before)` is added to each head's output z,
in every chosen layer. On layers with a sliding window the attention's values have lost the evicted tokens, so there the
values come from a buffer of the edit's own, by slot. No sums are kept along the way: they would keep tokens that
speculative decoding took back.

Source: StepFlow (arXiv 2604.06695), step momentum injection. Departures: every chosen layer gets it (in the authors'
code only the first one that runs); the whole step is averaged as the paper says, `window` gives the authors' last 4.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from chainwright._errors import BadInput
from chainwright._registry import register
from chainwright.edits.base import Edit, Touched
from chainwright.edits.following import Follower, LiveSteps, Pass
from chainwright.models.anatomy import Anatomy
from chainwright.models.seam import Attend, AttentionCall, Handler, Handlers, widened
from chainwright.traces.live import Place


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
        Steps are those of the thinking from the second one on. At the first token of a sentence nobody knows whether
        it will be long enough to be a step, so short fragments get it too.
        On layers with a sliding window it costs the memory of a value cache without a window.
    """

    layers: Collection[int]
    steps: LiveSteps | None
    alpha: float = 0.06
    window: int | None = None
    into_summary: bool = False
    n_question: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        """Check the window and the strength."""
        if self.window is not None and self.window < 1:
            raise BadInput(f"window must be at least 1 token, or None for the whole step; got {self.window}.")
        if not abs(self.alpha) < float("inf"):
            raise BadInput(f"alpha must be a finite number; got {self.alpha}.")

    def handlers(self, parts: Anatomy, touched: Touched) -> Handlers:
        """Return one handler for each layer, and what follows the run."""
        return self.following(Follower(self.steps, self.n_question), parts, touched)

    def following(self, follower: Follower, parts: Anatomy, touched: Touched) -> Handlers:
        """Return the handlers of a run that `follower` follows, and the follower's own."""
        layers = sorted({parts.check_layer(layer) for layer in self.layers})
        if self.alpha == 0:
            return Handlers({})
        by_layer: dict[int, tuple[Handler, ...]] = {}
        sites = _Sites(follower, self)
        for layer in layers:
            buffer = _Values(follower)
            by_layer[layer] = (partial(_inject, sites, buffer, self.alpha, touched.counter(parts, layer)),)
        return Handlers(by_layer, (follower.before,))


class Site(NamedTuple):
    """A first token: its row, its place among the new tokens, and the slots to average (half-open)."""

    row: int
    query: int
    start: int
    end: int


class _Sites:
    """The first tokens of steps in the pass that is running, worked out once for all layers."""

    def __init__(self, follower: Follower, how: Momentum):
        self.follower = follower
        self.how = how
        self._of: Pass | None = None
        self._sites: list[Site] = []

    def now(self) -> list[Site]:
        """Return them."""
        latest = self.follower.latest
        if self._of is not latest:
            self._of = latest
            self._sites = [
                site
                for row, places in enumerate(latest.places)
                for query, place in enumerate(places)
                if (site := self._site(latest, row, query, place)) is not None
            ]
        return self._sites

    def _site(self, latest: Pass, row: int, query: int, place: Place | None) -> Site | None:
        if place is None or place.previous is None:
            return None
        if place.thinking_end >= 0 and not self.how.into_summary:
            return None
        previous = place.previous
        start = previous.start if self.how.window is None else max(previous.start, previous.end - self.how.window)
        return Site(row, query, start + latest.first[row], previous.end + latest.first[row])


class _Values:
    """The values of one layer by slot, `[N, G, slots, dv]`, with room to grow."""

    def __init__(self, follower: Follower):
        self.follower = follower
        self.kept: Tensor | None = None
        follower.on_new_run.append(self._forget)
        follower.on_reorder.append(self._reorder)

    def _forget(self) -> None:
        self.kept = None

    def _reorder(self, order: Tensor) -> None:
        if self.kept is not None:
            self.kept = self.kept[order.to(self.kept.device)]

    def put(self, call: AttentionCall) -> Tensor:
        """Keep the values of the pass's new tokens, and return all of them."""
        latest = self.follower.latest
        end = latest.n_past + latest.n_new
        # the slot of the first key tells which of the values are new
        start = latest.n_past - latest.offset(call.layer)
        new = call.v[:, :, start : start + latest.n_new]
        if self.kept is None or self.kept.shape[2] < end:
            n_rows, n_kv, _, d = call.v.shape
            room = torch.zeros(n_rows, n_kv, max(64, 2 * end), d, dtype=call.v.dtype, device=call.v.device)
            if self.kept is not None:
                room[:, :, : self.kept.shape[2]] = self.kept
            self.kept = room
        self.kept[:, :, latest.n_past : end] = new
        return self.kept


def _inject(
    sites: _Sites, buffer: _Values, alpha: float, counter: Tensor, call: AttentionCall, attend: Attend
) -> Tensor:
    """Return z with the mean values added at the first tokens of steps."""
    z = attend(call)  # (batch, query, head, d_head)
    # a layer without a window is given the values of all slots
    values = buffer.put(call) if call.layer in buffer.follower.latest.windows else call.v
    found = sites.now()
    if not found:
        return z
    z = z.clone()
    n_rep = z.shape[2] // values.shape[1]
    for site in found:
        mean = widened(values[site.row, :, site.start : site.end]).mean(1)  # (kv head, d_head)
        z[site.row, site.query] += (alpha * mean).repeat_interleave(n_rep, dim=0).to(z.dtype)
    counter.add_(len(found) * z.shape[2])
    return z
