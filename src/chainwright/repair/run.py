"""What decoding with repairs costs, counted in one way for all of them.

`edits/run.py` follows the run; this counts on top of it, around each forward pass of the causal language model:

1. The model's own time ends when its forward pass does. What a repair then does with the logits is extra, and so is
   what it has done inside the pass, as far as it measures that itself.
2. Each row that is not finished has one more token decided. Where the prompt continues after all (it is read in
   pieces), what was counted for the piece before is taken back; where assisted decoding had candidates accepted, they
   are added at the next pass.
3. Passes without the unembedding, passes with the seam suspended, and passes that a repair runs aside are not counted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

import torch
from torch import nn

from chainwright.edits.base import Touched
from chainwright.edits.run import Run, following
from chainwright.models.anatomy import Anatomy


@dataclass
class Cost:
    """What decoding with a repair took, counted while it was attached.

    Attributes:
        n_tokens: Tokens written, over all rows that were not finished (with beams, over all beams). Of the last pass
            of assisted decoding one token counts, however many candidates are accepted.
        n_flagged: Tokens at which a repair that decides single tokens looked again.
        n_changed: Tokens that it decided otherwise than the model alone; None for a repair that only edits the forward
            pass, which does not know what the model alone would have written.
        n_sites: (layer, head, position) sites that its edits changed.
        n_forwards: Forward passes of the model itself.
        n_extra_forwards: Forward passes, of the whole model or of some layers, that the repair added.
        n_extra_tokens: Tokens in those passes, padding included.
        seconds: Wall seconds in forward passes, the repair's included.
        extra_seconds: The part of them that the repair took. Of work inside the model's layers on a GPU, this is
            mostly the time to issue it.
        parts: The cost of each of several repairs that decode together, by its kind.
    """

    n_tokens: int = 0
    n_flagged: int = 0
    n_changed: int | None = None
    n_sites: int = 0
    n_forwards: int = 0
    n_extra_forwards: int = 0
    n_extra_tokens: int = 0
    seconds: float = 0.0
    extra_seconds: float = 0.0
    parts: dict[str, Cost] = field(default_factory=dict)

    @property
    def flag_rate(self) -> float:
        """Return the share of tokens at which the repair looked again."""
        return self.n_flagged / max(1, self.n_tokens)

    @property
    def seconds_per_token(self) -> float:
        """Return wall seconds per token."""
        return self.seconds / max(1, self.n_tokens)

    @property
    def slowdown(self) -> float:
        """Return wall time as a multiple of what the model's own passes took."""
        own = self.seconds - self.extra_seconds
        return self.seconds / own if own > 0 else 1.0

    def summary(self) -> str:
        """Return the cost in words."""
        words = f"{self.n_tokens} tokens"
        if self.n_changed is not None:
            words += f", {self.n_flagged} flagged ({self.flag_rate:.2%}), {self.n_changed} changed"
        if self.n_sites:
            words += f", {self.n_sites} (layer, head, position) sites changed"
        words += f"; {self.n_forwards} forward passes"
        if self.n_extra_forwards:
            words += f" and {self.n_extra_forwards} more of {self.n_extra_tokens} tokens"
        words += f"; {1000 * self.seconds_per_token:.2f} ms per token, {self.slowdown:.2f} times the model alone."
        return " ".join([words, *(f"{kind}: {part.summary()}" for kind, part in self.parts.items())])

    def add_work(self, touched: Touched) -> None:
        """Add what an edit did."""
        self.n_sites += touched.n_sites
        self.n_extra_forwards += touched.n_extra_forwards
        self.n_extra_tokens += touched.n_extra_tokens
        self.extra_seconds += touched.seconds

    @classmethod
    def one_after_the_other(cls, costs: Sequence[Cost]) -> Cost:
        """Return the cost of several runs with the same repairs, such as the parts of a long list of problems."""
        kinds = dict.fromkeys(kind for cost in costs for kind in cost.parts)
        parts = {k: cls.one_after_the_other([cost.parts[k] for cost in costs if k in cost.parts]) for k in kinds}
        return cls._joined(costs, sum, parts)

    @classmethod
    def together(cls, parts: dict[str, Cost]) -> Cost:
        """Return the cost of repairs that decoded together, each of which counted the same passes of the model."""
        return cls._joined(list(parts.values()), max, parts)

    @classmethod
    def _joined(cls, costs: Sequence[Cost], of_passes: Callable[[list[Any]], Any], parts: dict[str, Cost]) -> Cost:
        """Return a sum of costs; `of_passes` joins what belongs to the model's own passes."""
        changed = [cost.n_changed for cost in costs if cost.n_changed is not None]
        return cls(
            of_passes([cost.n_tokens for cost in costs]),
            sum(cost.n_flagged for cost in costs),
            sum(changed) if changed else None,
            sum(cost.n_sites for cost in costs),
            of_passes([cost.n_forwards for cost in costs]),
            sum(cost.n_extra_forwards for cost in costs),
            sum(cost.n_extra_tokens for cost in costs),
            of_passes([cost.seconds for cost in costs]),
            sum(cost.extra_seconds for cost in costs),
            parts,
        )


class Decider:
    """What a repair that decides tokens does around each pass of the causal language model; this one does nothing."""

    def before(self, kwargs: dict[str, Any]) -> None:
        """Prepare for a pass of the causal language model, whose arguments are `kwargs`."""

    def begin(self, kwargs: dict[str, Any]) -> None:
        """Prepare for a pass of its decoder that is no plain step (see `Run.is_step`); may refuse it."""

    def decide(self, kwargs: dict[str, Any], output: Any) -> Any:
        """Return the output of the pass with the repair's logits in it."""
        return output


@dataclass
class _Member:
    cost: Cost
    decider: Decider


class _Counter:
    """The hooks on the causal language model, for all repairs that are attached to it."""

    def __init__(self, parts: Anatomy, run: Run):
        self.run = run
        device = parts.device  # walks through the model, which takes too long for every token
        self._gpu = device if device.type == "cuda" else None
        self.members: list[_Member] = []
        self._since = 0.0
        self._n_passes = -1  # of the run when the pass began; -1 outside of a pass
        self._run, self._confirmed, self._n_counted = -1, 0, 0

    def before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Start the clock."""
        if not self.members or self.run.is_aside:
            return
        named = _named(args, kwargs)
        for member in self.members:
            member.decider.before(named)
        self._n_passes = self.run.n_passes
        self._since = self._now()

    def begin(self, kwargs: dict[str, Any]) -> None:
        """Let the repairs look at a pass of the decoder that is no plain step, unless it runs by itself."""
        if self._n_passes >= 0:
            for member in self.members:
                member.decider.begin(kwargs)

    def after(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        """Count the pass, and let the repairs decide."""
        if self._n_passes < 0 or self.run.is_aside:
            return output
        was_followed, self._n_passes = self.run.n_passes > self._n_passes, -1
        if not was_followed:
            return output  # the seam is suspended: the pass only serves to compute something
        took = self._now() - self._since
        n_tokens = self._n_written(output)
        for member in self.members:
            member.cost.n_forwards += 1
            member.cost.n_tokens += n_tokens
            member.cost.seconds += took
        named = _named(args, kwargs)
        for member in self.members:
            output = self._decided(member, named, output)
        return output

    def _decided(self, member: _Member, kwargs: dict[str, Any], output: Any) -> Any:
        since = perf_counter()
        output = member.decider.decide(kwargs, output)
        if type(member.decider) is not Decider:
            took = self._now() - since
            member.cost.extra_seconds += took
            for other in self.members:
                other.cost.seconds += took
        return output

    def _n_live(self, output: Any) -> int:
        """Return how many rows are not finished."""
        if self.run.rows:
            return sum(not row.is_done for row in self.run.rows)
        logits = getattr(output, "logits", output[0] if isinstance(output, tuple) else None)
        return 0 if logits is None else len(logits)

    def _now(self) -> float:
        """Return the time at which the work that was issued so far is done."""
        if self._gpu is not None:
            torch.cuda.synchronize(self._gpu)
        return perf_counter()

    def _n_written(self, output: Any) -> int:
        """Return how many more tokens have been decided after the pass that has just run."""
        run = self.run
        n_live = len(run.rows) if run.is_step else self._n_live(output)
        n_written, confirmed = n_live, run.latest.n_confirmed
        if run.rows and run.n_runs == self._run:
            if run.is_decoding:
                n_accepted = max(0, confirmed - self._confirmed - 1)
                n_written += n_accepted * n_live + run.n_reopened
            else:
                n_written -= self._n_counted
        self._run, self._confirmed, self._n_counted = run.n_runs, confirmed, n_live
        return n_written


def _named(args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of a pass of the causal language model by name, as far as repairs read them."""
    return kwargs if not args or "input_ids" in kwargs else {**kwargs, "input_ids": args[0]}


@contextmanager
def counted(parts: Anatomy, cost: Cost, decider: Decider | None = None) -> Iterator[Run]:
    """Count in `cost` what decoding takes inside the block, and let a repair decide tokens in it.

    Repairs that are attached inside each other share the run and the clock, and decide in the order in which they
    were attached.

    Args:
        parts: Anatomy of the model.
        cost: Where it is counted.
        decider: Decides tokens, for repairs that do.

    Yields:
        The run that is being followed.
    """
    member = _Member(cost, decider or Decider())
    model = parts.model
    with following(parts) as run:
        counter: _Counter = run.on_top or _Counter(parts, run)
        if run.on_top is None:
            run.on_top = counter
            # the first of all hooks before a pass; after it, hooks of the model's own come first
            for handle in (
                model.register_forward_pre_hook(counter.before, with_kwargs=True, prepend=True),
                model.register_forward_hook(counter.after, with_kwargs=True),
            ):
                run.closing.callback(handle.remove)
        counter.members.append(member)
        try:
            yield run
        finally:
            # by identity: two repairs may have counted the same
            counter.members = [other for other in counter.members if other is not member]


__all__ = ["Cost", "Decider", "counted"]
