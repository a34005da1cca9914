"""A positive control for StepFlow: lock-in that is planted, so that what is broken, and what fixes it, is known.

From every token of the response the scores of the question's tokens are lowered by a constant in one layer, as if that
layer had lost sight of the question. If the bridge on that layer then brings the answers back, the method does what it
says; where it does not help without this, the model does not fail from lock-in.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from chainwright._errors import BadInput
from chainwright.edits.base import Edit, Touched, edit
from chainwright.edits.reading import Reading
from chainwright.models.anatomy import Anatomy, anatomy
from chainwright.models.seam import Attend, AttentionCall, Handlers
from chainwright.repair.base import Repair
from chainwright.repair.run import Cost
from chainwright.repair.stepflow.repair import StepFlow
from chainwright.traces import LiveSteps, Trace
from chainwright.traces.live import KnownRow


@dataclass(frozen=True)
class LockIn(Edit):
    """Lowers the scores between tokens of the response and the question, in one layer.

    Attributes:
        layer: The layer.
        strength: What is subtracted from the scores.
        steps: How responses are read while they are written.
        known: The places of each row of a finished trace, where they are known; then `steps` may be None.
    """

    layer: int
    strength: float
    steps: LiveSteps | None
    known: tuple[KnownRow, ...] | None = None

    def handlers(self, parts: Anatomy, touched: Touched) -> Handlers:
        """Return the handler of the layer."""
        layer = parts.check_layer(self.layer)
        reading = touched.read(self.steps, known=self.known)
        handler = partial(_lower, reading, self.strength, touched, touched.counter(parts, layer))
        return Handlers({layer: (handler,)}, reads_state=True, per_head=True)


def _lower(
    reading: Reading, strength: float, touched: Touched, counter: Tensor, call: AttentionCall, attend: Attend
) -> Tensor:
    """Return z of the call with the scores lowered; what runs inside sees the lowered ones."""
    now = reading.run.latest
    offset = now.offset(call.layer)
    n_rows, _, n_queries, _ = call.q.shape
    bias = torch.zeros(n_rows, 1, n_queries, call.k.shape[2], dtype=call.q.dtype, device=call.q.device)
    for row, places in enumerate(reading.places):
        first = now.first[row]
        for query, place in enumerate(places):
            if place is not None and now.n_past + query >= place.question_end + first:
                bias[row, 0, query, max(0, first - offset) : max(0, place.question_end + first - offset)] = -strength
    is_lowered = (bias != 0).any(-1)[:, 0]  # (batch, query)
    if not bool(is_lowered.any()):
        return attend(call)
    touched.count(counter, call.n_heads * is_lowered)
    return attend(replace(call, mask=_with(call, bias)))


def _with(call: AttentionCall, bias: Tensor) -> Tensor:
    """Return a float mask that hides what the call's mask hides and adds the bias to the rest."""
    n_queries = bias.shape[2]
    mask = call.mask
    if mask is None:
        every = torch.ones(bias.shape[2:], dtype=torch.bool, device=bias.device)
        mask = (every.tril() if n_queries > 1 else every)[None, None]
    if mask.dtype == torch.bool:
        return bias.masked_fill(~mask, torch.finfo(bias.dtype).min)
    return (mask + bias).clamp(min=torch.finfo(bias.dtype).min)


class PlantedLockIn(Repair):
    """A model with planted lock-in, with StepFlow attached or without it; for `generate(..., repair=...)`.

    Attributes:
        repair: What is to fix it. `StepFlow((), ())` fixes nothing.
        layer: Where it is planted.
        strength: What is subtracted from the scores.
    """

    kind = "planted-lock-in"

    def __init__(self, repair: StepFlow, layer: int, strength: float):
        super().__init__()
        if strength <= 0:
            raise BadInput(f"strength must be above 0; got {strength}.")
        self.repair, self.layer, self.strength = repair, layer, strength

    @contextmanager
    def attached(self, model: nn.Module) -> Iterator[Cost]:
        """Decode with both inside this context; the repair sees the lowered scores."""
        lock_in = LockIn(self.layer, self.strength, self.repair.reading(anatomy(model)))
        with self.repair.attached(model) as cost, edit(model, lock_in, strict=False):
            self.cost = cost
            yield cost

    @contextmanager
    def scoring(self, model: nn.Module, traces: Sequence[Trace]) -> Iterator[None]:
        """Run whole traces as one batch inside this context, as decoding them with both would have gone."""
        lock_in = LockIn(self.layer, self.strength, None, tuple(KnownRow.of(trace) for trace in traces))
        with self.repair.scoring(model, traces), edit(model, lock_in, strict=False):
            yield
