"""A knockout that is turned on for single forward passes while the seam stays open.

Opening the seam costs milliseconds (the model's configs are copied), a flag comes up many times a second: so it is
opened once, for all layers that may be asked for, and idle layers go straight on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from torch import Tensor

from chainwright.edits import KnockOut, Touched
from chainwright.models.anatomy import Anatomy
from chainwright.models.seam import Attend, AttentionCall, Handler, Handlers, attach


class Switch:
    """The handlers of all layers, which do nothing but inside `on`."""

    def __init__(self, parts: Anatomy):
        self.parts = parts
        self.touched = Touched()
        self._now: Mapping[int, Handler] = {}

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Open the seam for the block."""
        with attach(self.parts.model, Handlers({i: (self._handle,) for i in range(self.parts.n_layers)})):
            yield

    @contextmanager
    def on(self, knock_out: KnockOut) -> Iterator[None]:
        """Knock out in every forward pass of the block; blocks do not nest."""
        self._now = knock_out.handlers(self.parts, self.touched)
        try:
            yield
        finally:
            self._now = {}

    def _handle(self, call: AttentionCall, attend: Attend) -> Tensor:
        handler = self._now.get(call.layer)
        return attend(call) if handler is None else handler(call, attend)
