"""Running the model once more for many single-head knockouts, without repeating what they share.

The exact forms return the same numbers as one full forward pass a head:

- all positions: up to layer l nothing changes, and in layer l all heads but one do not, so that layer goes on from
  what the plain pass gave, and the layers after it follow with several variants side by side in the batch
  (`_sweep_layers`);
- last position: the prefix does not change at all, so its keys and values are computed once and are shared by all
  variants, of which each is one more query (`_sweep_last`).

Rows of about one length go together, without the padding that they share. Edits that are attached from outside stay
in force. As they may treat rows differently, the rows then keep their places: all together, one head silenced in all
of them at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from chainwright.diagnose.heads._sweep.all_positions import from_layer
from chainwright.diagnose.heads._sweep.baseline_pass import Contexts, Group, Plain, groups, is_edited
from chainwright.diagnose.heads._sweep.gradient import gradient_pass
from chainwright.diagnose.heads._sweep.last_position import last_position
from chainwright.diagnose.heads._sweep.same_layer import Sharing
from chainwright.models.anatomy import Anatomy
from chainwright.models.capture import Positions

# variants at once: a layer's tensors should stay in a processor's caches; a GPU wants large batches
BYTES_AT_ONCE = {"cpu": 2**23, "other": 2**30}
# what is kept of a plain pass
BYTES_KEPT = {"cpu": 2**28, "other": 2**33}

# what a backward pass needs of a layer, compared with what is kept of a plain pass
BACKWARD = 4
Choose = Callable[[Tensor], Tensor]
Report = Callable[[int], None]


class Knocked(NamedTuple):
    """What the last position says after each knockout.

    Attributes:
        baseline: Probability of the tracked tokens with every head in place `[N, K]`.
        probs: Probability of the tracked tokens `[N, L, H, K]`; NaN where a head was not run.
        argmax: The likeliest token `[N, L, H]`; -1 where a head was not run.
    """

    baseline: Tensor
    probs: Tensor
    argmax: Tensor


class Screened(NamedTuple):
    """First-order estimates for all heads, and what was measured.

    Attributes:
        baseline: Probability of the first tracked token with every head in place `[N]`.
        estimate: Slope along each head's gate `[N, L, H]`.
        wanted: Which heads were chosen for which row `[N, L, H]`.
        knocked: What was measured there.
    """

    baseline: Tensor
    estimate: Tensor
    wanted: Tensor
    knocked: Knocked


class _Sweep:
    """Runs variants group by group and writes what they say into one table."""

    def __init__(
        self, parts: Anatomy, contexts: Contexts, positions: Positions, max_bytes: int | None, report: Report | None
    ):
        self.parts, self.contexts, self.positions = parts, contexts, positions
        self.report = report or (lambda n: None)
        self.max_bytes = max_bytes
        self.at_once = max_bytes or BYTES_AT_ONCE[kind_of(parts)]
        is_shared = positions == "last" and not is_edited(parts)
        self.run = last_position if is_shared else partial(from_layer, positions=positions, sharing=Sharing(parts))
        n_rows, n_tracked = contexts.tracked.shape
        shape = (n_rows, parts.n_layers, parts.n_heads)
        dtype = torch.promote_types(parts.model.dtype, torch.float32)
        baseline = torch.full((n_rows, n_tracked), float("nan"), dtype=dtype)
        probs, argmax = torch.full((*shape, n_tracked), float("nan"), dtype=dtype), torch.full(shape, -1)
        self.knocked = Knocked(baseline, probs, argmax)

    def groups(self, times: int = 1) -> Iterator[Group]:
        """Yield rows that go together; `times`: what is kept of them, in plain passes."""
        if is_edited(self.parts):
            yield Group(torch.arange(len(self.contexts.input_ids)), self.contexts)
            return
        kept = self.max_bytes or BYTES_KEPT[kind_of(self.parts)]
        yield from groups(self.contexts, kept // (bytes_per_token(self.parts) * times))

    def measure(self, group: Group, wanted: Tensor, plain: Plain | None = None) -> None:
        """Run the wanted heads `[n, L, H]` of a group."""
        baseline, probs, argmax = self.knocked
        for where, logits in self.run(self.parts, group.contexts, wanted, self.at_once, plain):
            tracked = group.contexts.tracked[where[:, 0].to(logits.device)]
            found = logits.softmax(-1).gather(-1, tracked).cpu()
            is_out = where[:, 2] >= 0
            at = torch.cat([group.rows[where[:, :1]], where[:, 1:]], dim=1)
            probs[tuple(at[is_out].T)] = found[is_out]
            argmax[tuple(at[is_out].T)] = logits.argmax(-1).cpu()[is_out]
            baseline[at[~is_out, 0]] = found[~is_out]
            self.report(int(is_out.sum()))


def knock_out_each(
    parts: Anatomy,
    contexts: Contexts,
    wanted: Tensor,
    positions: Positions,
    max_bytes: int | None = None,
    report: Report | None = None,
) -> Knocked:
    """Return the effect of silencing each wanted head alone.

    Args:
        parts: Anatomy of the model.
        contexts: What to run.
        wanted: Which heads to run for which row, bool `[N, L, H]`.
        positions: Where to silence them.
        max_bytes: How much memory the variants that run side by side may take, roughly, and how much is kept of the
            rows that go together; None chooses by device.
        report: Told how many heads of a row were measured, whenever some were.

    Raises:
        UnsupportedModel: The layers, run one by one, do not give what the model gives.
    """
    sweep, wanted = _Sweep(parts, contexts, positions, max_bytes, report), wanted.cpu()
    with torch.no_grad():
        for group in sweep.groups():
            sweep.measure(group, wanted[group.rows])
    return sweep.knocked


def gradient_each(
    parts: Anatomy,
    contexts: Contexts,
    positions: Positions,
    choose: Choose | None = None,
    max_bytes: int | None = None,
    report: Report | None = None,
) -> Screened:
    """Return every head's first-order estimate, and measure those that `choose` picks from the estimates `[n, L, H]`.

    One pass over a group serves both.
    """
    sweep = _Sweep(parts, contexts, positions, max_bytes, report)
    estimate = torch.full_like(sweep.knocked.probs[..., 0], float("nan"))
    wanted = torch.zeros(estimate.shape, dtype=torch.bool)
    baseline = torch.full_like(sweep.knocked.baseline[:, 0], float("nan"))
    for group in sweep.groups(BACKWARD):
        plain, baseline[group.rows], estimate[group.rows] = gradient_pass(parts, group.contexts, positions)
        if choose is not None:
            wanted[group.rows] = choose(estimate[group.rows])
            with torch.no_grad():
                sweep.measure(group, wanted[group.rows], plain)
    return Screened(baseline, estimate, wanted, sweep.knocked)


def kind_of(parts: Anatomy) -> str:
    """Return the kind of device that memory bounds are chosen for."""
    return "cpu" if parts.model.device.type == "cpu" else "other"


def bytes_per_token(parts: Anatomy) -> int:
    """Return what is kept of a token: a layer's input, its heads' outputs and what its attention gave, of all layers.

    Keys and values, which are kept in their place for the last position, are no more.
    """
    return parts.n_layers * (2 * parts.d_model + parts.n_heads * parts.d_head) * int(parts.model.dtype.itemsize)
