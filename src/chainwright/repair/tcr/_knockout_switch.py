"""A knockout that is turned on for single forward passes while the seam stays open.

Opening the seam costs milliseconds (the model's configs are copied), a flag comes up many times a second: so it is
opened once, with nothing in it, and while nothing is knocked out no layer does anything.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

from chainwright.edits import KnockOut, Touched
from chainwright.models.anatomy import Anatomy
from chainwright.models.seam import Handlers, attach, exchanged


class Switch:
    """A place among the open contexts of a model that is empty but inside `on`."""

    def __init__(self, parts: Anatomy):
        self.parts = parts
        self.touched = Touched()
        self._idle = Handlers({})

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Open the seam for the block."""
        with attach(self.parts.model, self._idle):
            yield

    def on(self, knock_out: KnockOut) -> AbstractContextManager[None]:
        """Knock out in every forward pass of the block; blocks do not nest."""
        return self.put(knock_out.handlers(self.parts, self.touched))

    def put(self, handlers: Handlers) -> AbstractContextManager[None]:
        """Run handlers in every forward pass of the block; blocks do not nest."""
        return exchanged(self.parts.model, self._idle, handlers)
