"""Edits: changes to the forward pass that hold inside a `with` block and prove that they happened."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn

from chainwright._errors import EditNeverFired
from chainwright.models.anatomy import Anatomy, anatomy
from chainwright.models.seam import Handler, Handlers, attach


@dataclass
class Touched:
    """Counts the (layer, head, position) sites that an edit changed, on each layer's own device.

    A tensor is counted in, not a Python number, so that a compiled forward pass counts too.
    """

    by_layer: dict[int, Tensor] = field(default_factory=dict)

    def counter(self, parts: Anatomy, layer: int) -> Tensor:
        """Return the zero-dimensional counter of a layer, made on first use."""
        if layer not in self.by_layer:
            device = next(parts.layers[layer].block.parameters()).device
            self.by_layer[layer] = torch.zeros((), dtype=torch.long, device=device)
        return self.by_layer[layer]

    @property
    def n_sites(self) -> int:
        """Return the number of sites touched so far."""
        return sum(int(n) for n in self.by_layer.values())


class Edit(ABC):
    """A change to the forward pass. Holds no model and no state of a run; one edit can be used many times.

    Attributes:
        is_innermost: Whether it computes the attention itself. Such an edit runs before all others, in whatever order
            they are given, since it would undo what they made of the heads.
    """

    is_innermost: ClassVar[bool] = False

    @abstractmethod
    def handlers(self, parts: Anatomy, touched: Touched) -> Mapping[int, Handler] | Handlers:
        """Return what is to run at each layer, counting in `touched` what it changes.

        An edit that has to know of each forward pass before it runs returns `Handlers` with that in `before`.

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
    counts = [Touched() for _ in edits]
    handlers = {True: Handlers({}), False: Handlers({})}
    for one, touched in zip(edits, counts, strict=True):
        given = one.handlers(parts, touched)
        if not isinstance(given, Handlers):
            given = Handlers({layer: (handler,) for layer, handler in given.items()})
        handlers[one.is_innermost] = handlers[one.is_innermost].joined(given)
    with attach(model, handlers[False]), attach(model, handlers[True], innermost=True), ExitStack() as hooks:
        for one, touched in zip(edits, counts, strict=True):
            hooks.enter_context(one.hooked(parts, touched))
        yield counts
    for one, touched in zip(edits, counts, strict=True):
        if strict and touched.n_sites == 0:
            raise EditNeverFired(
                f"{one!r} was attached but touched no (layer, head, position) site: no forward pass ran inside the "
                "block, or the edit selects nothing. Run the model inside the block, or pass strict=False."
            )
