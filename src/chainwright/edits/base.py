"""Edits: changes to the forward pass that hold inside a `with` block and prove that they happened."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from time import perf_counter
from typing import ClassVar

import torch
from torch import Tensor, nn

from chainwright._errors import EditNeverFired
from chainwright.edits.reading import Reading
from chainwright.edits.run import Run, following
from chainwright.models.anatomy import Anatomy, anatomy
from chainwright.models.placement import device_of
from chainwright.models.seam import AttentionCall, Handlers, attach
from chainwright.models.sharding import Shards
from chainwright.traces.live import KnownRow, LiveSteps


@dataclass
class Touched:
    """What an edit did: the (layer, head, position) sites that it changed, and what that took.

    Padding and the tokens that `generate` feeds to finished rows are not counted, nor are passes that a repair runs
    aside to see what the model would say otherwise.

    Attributes:
        run: The run that the edit is a part of.
        by_layer: Sites by layer, each on the device that its layer runs on. A tensor is counted in, not a Python
            number, so that a compiled forward pass counts too.
        own_by_layer: Sites by layer that only this rank knows of, as they depend on what its own heads compute.
        shards: The ranks over which those are summed; None as long as there are none.
        readings: The segments and steps that the edit follows.
        n_extra_forwards: Passes over some of the layers that the edit added.
        n_extra_tokens: Tokens in those passes, padding included.
        own_seconds: Wall seconds of the edit's own work where it measures them, without reading segments and steps.
    """

    run: Run = field(default_factory=Run)
    by_layer: dict[int, Tensor] = field(default_factory=dict)
    own_by_layer: dict[int, Tensor] = field(default_factory=dict)
    shards: Shards | None = None
    readings: list[Reading] = field(default_factory=list)
    n_extra_forwards: int = 0
    n_extra_tokens: int = 0
    own_seconds: float = 0.0

    def counter(self, parts: Anatomy, layer: int) -> Tensor:
        """Return the zero-dimensional counter of a layer, made on first use."""
        if layer not in self.by_layer:
            device = device_of(parts.layers[layer].block)
            self.by_layer[layer] = torch.zeros((), dtype=torch.long, device=device)
        return self.by_layer[layer]

    @property
    def n_sites(self) -> int:
        """Return the number of sites touched so far, over all ranks of a spread model; every rank has to ask."""
        known = sum(int(n) for n in self.by_layer.values())
        if self.shards is None:
            return known
        return known + int(self.shards.total(torch.stack(list(self.own_by_layer.values())).sum()))

    @property
    def seconds(self) -> float:
        """Return the wall seconds of the edit's own work; on a GPU mostly the time to issue it."""
        return self.own_seconds + sum(reading.seconds for reading in self.readings)

    def count(self, counter: Tensor, sites: Tensor) -> None:
        """Add sites to a layer's counter.

        Args:
            counter: What `counter` returned.
            sites: How many heads were changed at each new token, `[N, Tq]` or with a dimension of 1.
        """
        counted = self.run.counted
        counter.add_((sites if counted is None else sites * counted.to(sites.device)).sum())

    def count_own(self, call: AttentionCall, n_sites: Tensor) -> None:
        """Add sites among this rank's heads; the ranks are only asked for theirs when `n_sites` is read.

        Args:
            call: The call of the layer, with the heads of this rank alone.
            n_sites: How many heads were changed, zero-dimensional.
        """
        self.shards = call.shards
        self.own_by_layer[call.layer] = self.own_by_layer.get(call.layer, torch.zeros_like(n_sites)) + n_sites

    def worked(self, since: float) -> None:
        """Add the time since `since` to the edit's own work, unless the pass is one aside of the run."""
        if not self.run.is_aside:
            self.own_seconds += perf_counter() - since

    def read(
        self,
        steps: LiveSteps | None,
        n_question: Sequence[int] | None = None,
        known: Sequence[KnownRow] | None = None,
    ) -> Reading:
        """Follow segments and steps for as long as the edit is open; see `Reading`."""
        reading = Reading(self.run, steps, n_question, known)
        self.run.readings.append(reading)
        self.readings.append(reading)
        return reading

    def close(self) -> None:
        """Stop following."""
        for reading in self.readings:
            self.run.readings.remove(reading)


class Edit(ABC):
    """A change to the forward pass. Holds no model and no state of a run; one edit can be used many times.

    Attributes:
        is_innermost: Whether it computes the attention itself. Such an edit runs before all others, in whatever order
            they are given, since it would undo what they made of the heads.
        needs_whole: Whether it acts on whole rows, so that what the model would say without a head has to be computed
            from a row's first token each time, without a cache.
    """

    is_innermost: ClassVar[bool] = False
    needs_whole: ClassVar[bool] = False

    @abstractmethod
    def handlers(self, parts: Anatomy, touched: Touched) -> Handlers:
        """Return what is to run at each layer, counting in `touched` what it changes.

        Raises:
            BadInput: The edit names a layer or head that the model does not have.
        """

    def hooked(self, parts: Anatomy, touched: Touched) -> AbstractContextManager[None]:
        """Return a context that is open while the edit is, for edits that do more than handlers can."""
        return nullcontext()


@contextmanager
def edit(model: nn.Module, *edits: Edit, strict: bool = True) -> Iterator[list[Touched]]:
    """Apply edits to every forward pass of `model` inside the block, and undo them at its end, whatever happens.

    Edits apply in the order given; a later one sees what the earlier ones did. `Bridge` comes before all others, since
    it computes the attention itself.

    Args:
        model: A Transformers decoder, also compiled or PEFT-wrapped.
        *edits: What to change.
        strict: Raise if an edit changed nothing in the whole block.

    Yields:
        One `Touched` for each edit, whose `n_sites` grows as the model runs.

    Raises:
        EditNeverFired: The block ended without an exception and some edit had touched no site.
        UnsupportedModel: The model does not go through the seam.
        BadInput: An edit does not fit the model.

    Note:
        Under gradient checkpointing the backward pass runs the layers again: call it inside the block too (outside it
        PyTorch raises, or with `use_reentrant=True` silently gives the gradients of the unedited model), and know
        that the sites are counted twice.
    """
    parts = anatomy(model)
    with following(parts) as run, ExitStack() as stack:
        counts = [Touched(run) for _ in edits]
        handlers = {True: Handlers({}), False: Handlers({})}
        for change, touched in zip(edits, counts, strict=True):
            stack.callback(touched.close)
            own = change.handlers(parts, touched)
            handlers[change.is_innermost] = handlers[change.is_innermost].joined(own)
        stack.enter_context(attach(model, handlers[False]))
        stack.enter_context(attach(model, handlers[True], innermost=True))
        for change, touched in zip(edits, counts, strict=True):
            stack.enter_context(change.hooked(parts, touched))
        whole = [run.opening for change in edits if change.needs_whole]
        run.whole_owners += whole
        try:
            yield counts
        finally:
            for owner in whole:
                run.whole_owners.remove(owner)
    for change, touched in zip(edits, counts, strict=True):
        if strict and touched.n_sites == 0:
            raise EditNeverFired(
                f"{change!r} was attached but touched no (layer, head, position) site: no forward pass ran inside the "
                "block, or the edit selects nothing. Run the model inside the block, or pass strict=False."
            )
