"""A positive control for StepFlow: lock-in that is planted, so that it is known what is broken and what mends it.

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
from chainwright.edits.following import Follower
from chainwright.models.anatomy import Anatomy, anatomy
from chainwright.models.seam import Attend, AttentionCall, Handlers
from chainwright.repair.base import Cost
from chainwright.repair.stepflow.repair import StepFlow
from chainwright.traces import Trace
from chainwright.traces.live import KnownRow


@dataclass(frozen=True)
class LockIn(Edit):
    """Lowers the scores between tokens of the response and the question, in one layer.

    Attributes:
        layer: The layer.
        strength: What is subtracted from the scores.
        follower: Knows which tokens are the question.
    """

    layer: int
    strength: float
    follower: Follower

    def handlers(self, parts: Anatomy, touched: Touched) -> Handlers:
        """Return the handler of the layer, and the follower."""
        layer = parts.check_layer(self.layer)
        handler = partial(_lower, self.follower, self.strength, touched.counter(parts, layer))
        return Handlers({layer: (handler,)}, (self.follower.before,))


def _lower(follower: Follower, strength: float, counter: Tensor, call: AttentionCall, attend: Attend) -> Tensor:
    """Return z of the call with the scores lowered; what runs inside sees the lowered ones."""
    now, offset = follower.latest, follower.latest.offset(call.layer)
    n_rows, n_heads, n_queries, _ = call.q.shape
    bias = torch.zeros(n_rows, 1, n_queries, call.k.shape[2], dtype=call.q.dtype, device=call.q.device)
    for row, places in enumerate(now.places):
        first = now.first[row]
        for query, place in enumerate(places):
            if place is not None and now.n_past + query >= place.question_end + first:
                bias[row, 0, query, max(0, first - offset) : max(0, place.question_end + first - offset)] = -strength
    n_lowered = int((bias != 0).any(-1).sum())
    if not n_lowered:
        return attend(call)
    counter.add_(n_lowered * n_heads)
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


class PlantedLockIn:
    """A model with planted lock-in, with a repair attached or without one; for `generate(..., repair=...)`.

    Attributes:
        repair: What is to mend it. `StepFlow((), ())` mends nothing.
        layer: Where it is planted.
        strength: What is subtracted from the scores.
    """

    def __init__(self, repair: StepFlow, layer: int, strength: float):
        if strength <= 0:
            raise BadInput(f"strength must be above 0; got {strength}.")
        self.repair, self.layer, self.strength = repair, layer, strength

    @contextmanager
    def attached(self, model: nn.Module) -> Iterator[Cost]:
        """Decode with both inside this context; the repair sees the lowered scores."""
        follower = Follower(self.repair.reading(anatomy(model)))
        with (
            self.repair.attached(model) as cost,
            edit(model, LockIn(self.layer, self.strength, follower), strict=False),
        ):
            yield cost

    @contextmanager
    def scoring(self, model: nn.Module, traces: Sequence[Trace]) -> Iterator[None]:
        """Run whole traces as one batch inside this context, as decoding them with both would have gone."""
        follower = Follower(None, known=[KnownRow.of(trace) for trace in traces])
        with (
            self.repair.scoring(model, traces),
            edit(model, LockIn(self.layer, self.strength, follower), strict=False),
        ):
            yield
