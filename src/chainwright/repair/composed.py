"""Several repairs as one, for whatever takes a single repair; `generate` and `score` take a list as well."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

from torch import nn

from chainwright._errors import BadInput
from chainwright.decode.run import in_order
from chainwright.repair.base import Repair
from chainwright.repair.run import Cost
from chainwright.scoring import Corrections
from chainwright.traces import Trace


class Composed(Repair):
    """Repairs that decode together: first those that edit the forward pass, in the order given, then what decides.

    It cannot be saved as a whole; save each repair.

    Attributes:
        repairs: The repairs, in the order in which they act.
    """

    kind = "composed"

    def __init__(self, repairs: Sequence[Repair]):
        if not repairs:
            raise BadInput("Composed needs at least one repair; the list is empty.")
        self.repairs = tuple(in_order(repairs))
        super().__init__()

    @property
    def cost(self) -> Cost:
        """Return what the last run took, with the cost of each repair in `parts`."""
        return Cost.together({repair.kind: repair.cost for repair in self.repairs})

    @cost.setter
    def cost(self, cost: Cost) -> None:
        """Do nothing: each repair counts for itself."""

    @property
    def decides_tokens(self) -> bool:  # type: ignore[override]
        """Whether one of them decides single tokens."""
        return any(repair.decides_tokens for repair in self.repairs)

    @property
    def acts_by_row(self) -> bool:  # type: ignore[override]
        """Whether all of them may act in some rows of a batch alone."""
        return all(repair.acts_by_row for repair in self.repairs)

    def check_beside(self, other: Repair) -> None:
        """Raise BadInput if any of them cannot decode beside `other`."""
        for repair in self.repairs:
            other.check_beside(repair)

    @contextmanager
    def attached(self, model: nn.Module) -> Iterator[Cost]:
        """Decode with all of them inside this context; the cost is theirs together when it is left."""
        with ExitStack() as stack:
            for repair in self.repairs:
                stack.enter_context(repair.attached(model))
            yield self.cost

    @contextmanager
    def scoring(self, model: nn.Module, traces: Sequence[Trace]) -> Iterator[None]:
        """Score traces as decoding them with all would have gone."""
        with ExitStack() as stack:
            for repair in self.repairs:
                stack.enter_context(repair.scoring(model, traces))
            yield

    def corrections(self, model: nn.Module, traces: Sequence[Trace]) -> list[Corrections]:
        """Return the corrections of the one that decides tokens, if there is one."""
        return self.repairs[-1].corrections(model, traces)

    def describe(self) -> str:
        """Return what each of them does."""
        return " ".join(repair.describe() for repair in self.repairs)


__all__ = ["Composed"]
