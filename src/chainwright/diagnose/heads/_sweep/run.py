"""Many single-head knockouts without repeating the work that they share.

The exact forms return the same numbers as one full forward pass per head:

- all positions: below layer l nothing changes, and in layer l all heads but one stay the same, so that layer starts
  from the baseline pass, and the layers above it run with several variants side by side in the batch
  (`all_positions`);
- last position: the prefix does not change at all, so its keys and values are computed once and shared by all
  variants, each of which is one more query (`last_position`).

Rows of similar length run together, without the padding that they share. Edits that the caller has attached stay in
force. They may treat rows differently, so the batch then keeps its rows in place: all rows run together, with one head
silenced in all of them at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from chainwright._config import Positions
from chainwright.diagnose.heads._sweep.all_positions import from_layer
from chainwright.diagnose.heads._sweep.baseline_pass import BaselinePass, Contexts, Group, groups, is_edited
from chainwright.diagnose.heads._sweep.gradient import gradient_pass
from chainwright.diagnose.heads._sweep.last_position import last_position
from chainwright.diagnose.heads._sweep.same_layer import Sharing
from chainwright.models.anatomy import Anatomy

# memory of the variants that run at once: on a CPU it should fit the processor's caches, a GPU needs large batches
BYTES_AT_ONCE = {"cpu": 2**23, "other": 2**30}
# how much more where a CPU multiplies in bfloat16, whose units need taller matrices
HALVED_AT_ONCE = 4
# memory of the records of one baseline pass, and of the states of the variants that wait between two layers
BYTES_KEPT = {"cpu": 2**29, "other": 2**33}

# memory that a backward pass takes per layer, relative to the records of a baseline pass
BACKWARD = 4
Choose = Callable[[Tensor], Tensor]
Report = Callable[[int], None]


class KnockoutResults(NamedTuple):
    """The prediction at the last position after each knockout.

    Attributes:
        baseline: Probability of the tracked tokens with every head in place `[N, K]`.
        probs: Probability of the tracked tokens `[N, L, H, K]`; NaN where a head was not run.
        argmax: The likeliest token `[N, L, H]`; -1 where a head was not run.
    """

    baseline: Tensor
    probs: Tensor
    argmax: Tensor


class Screened(NamedTuple):
    """First-order estimates for all heads, and measured effects of those that were chosen.

    Attributes:
        baseline: Probability of the first tracked token with every head in place `[N]`.
        estimate: Slope along each head's gate `[N, L, H]`.
        wanted: Which heads were chosen for which row `[N, L, H]`.
        measured: The predictions after those knockouts.
    """

    baseline: Tensor
    estimate: Tensor
    wanted: Tensor
    measured: KnockoutResults


class Sweep:
    """Runs variants group by group and collects their predictions."""

    def __init__(
        self,
        parts: Anatomy,
        contexts: Contexts,
        positions: Positions,
        max_bytes: int | None,
        report: Report | None = None,
        *,
        is_halved: bool = False,
    ):
        self.parts, self.contexts, self.positions = parts, contexts, positions
        self.report = report or (lambda n: None)
        self.max_bytes = max_bytes
        self.at_once = max_bytes or bytes_at_once(parts, is_halved=is_halved)
        is_shared = positions == "last" and not is_edited(parts)
        self.run = (
            last_position
            if is_shared
            else partial(
                from_layer,
                positions=positions,
                sharing=Sharing(parts),
                wave_bytes=max_bytes or BYTES_KEPT[kind_of(parts)],
                is_halved=is_halved,
            )
        )
        n_rows, n_tracked = contexts.tracked.shape
        shape = (n_rows, parts.n_layers, parts.n_heads)
        dtype = torch.promote_types(parts.model.dtype, torch.float32)
        baseline = torch.full((n_rows, n_tracked), float("nan"), dtype=dtype)
        probs, argmax = torch.full((*shape, n_tracked), float("nan"), dtype=dtype), torch.full(shape, -1)
        self.results = KnockoutResults(baseline, probs, argmax)

    def groups(self, times: int = 1) -> Iterator[Group]:
        """Yield groups of rows that fit in memory, where each row takes `times` the records of a baseline pass."""
        if is_edited(self.parts):
            yield Group(torch.arange(len(self.contexts.input_ids)), self.contexts)
            return
        max_tokens = (self.max_bytes or BYTES_KEPT[kind_of(self.parts)]) // (bytes_per_token(self.parts) * times)
        yield from groups(self.contexts, max_tokens, by_start=self.positions == "all")

    def measure(self, group: Group, wanted: Tensor, plain: BaselinePass | None = None) -> None:
        """Silence the wanted heads `[n, L, H]` of a group, one at a time, and fill in their results."""
        baseline, probs, argmax = self.results
        for where, logits in self.run(self.parts, group.contexts, wanted, self.at_once, plain):
            tracked = group.contexts.tracked[where[:, 0].to(logits.device)]
            p_tracked = logits.softmax(-1).gather(-1, tracked).cpu()
            is_knockout = where[:, 2] >= 0
            # `where` counts rows within the group, the tables count them within all contexts
            index = torch.cat([group.rows[where[:, :1]], where[:, 1:]], dim=1)
            probs[tuple(index[is_knockout].T)] = p_tracked[is_knockout]
            argmax[tuple(index[is_knockout].T)] = logits.argmax(-1).cpu()[is_knockout]
            baseline[index[~is_knockout, 0]] = p_tracked[~is_knockout]
            self.report(int(is_knockout.sum()))


def knock_out_each(
    parts: Anatomy,
    contexts: Contexts,
    wanted: Tensor,
    positions: Positions,
    max_bytes: int | None = None,
    report: Report | None = None,
    *,
    is_halved: bool = False,
) -> KnockoutResults:
    """Return the effect of silencing each wanted head alone.

    Args:
        parts: Anatomy of the model.
        contexts: What to run.
        wanted: Which heads to run for which row, bool `[N, L, H]`.
        positions: Where to silence them.
        max_bytes: Approximate memory for the variants that run side by side, and for the records of the rows that run
            together; None chooses by device.
        report: Called with the number of heads of a row that were measured, whenever some were.
        is_halved: Multiply what differs from the baseline pass in bfloat16.

    Raises:
        UnsupportedModel: The layers run one by one do not reproduce the model.
    """
    sweep = Sweep(parts, contexts, positions, max_bytes, report, is_halved=is_halved)
    wanted = wanted.cpu()
    with torch.no_grad():
        for group in sweep.groups():
            sweep.measure(group, wanted[group.rows])
    return sweep.results


def gradient_each(
    parts: Anatomy,
    contexts: Contexts,
    positions: Positions,
    choose: Choose | None = None,
    max_bytes: int | None = None,
    report: Report | None = None,
    *,
    is_halved: bool = False,
) -> Screened:
    """Return every head's first-order estimate, and the measured effect of those that `choose` picks from it.

    `choose` maps estimates `[n, L, H]` to a bool tensor of that shape. One baseline pass per group serves both. The
    other arguments are those of `knock_out_each`.
    """
    sweep = Sweep(parts, contexts, positions, max_bytes, report, is_halved=is_halved)
    estimate = torch.full_like(sweep.results.probs[..., 0], float("nan"))
    wanted = torch.zeros(estimate.shape, dtype=torch.bool)
    baseline = torch.full_like(sweep.results.baseline[:, 0], float("nan"))
    for group in sweep.groups(BACKWARD):
        plain, baseline[group.rows], estimate[group.rows] = gradient_pass(parts, group.contexts, positions)
        if choose is not None:
            wanted[group.rows] = choose(estimate[group.rows])
            with torch.no_grad():
                sweep.measure(group, wanted[group.rows], plain)
    return Screened(baseline, estimate, wanted, sweep.results)


def bytes_at_once(parts: Anatomy, *, is_halved: bool) -> int:
    """Return the memory of the variants that run at once; `is_halved` as in `knock_out_each`."""
    kind = kind_of(parts)
    return BYTES_AT_ONCE[kind] * (HALVED_AT_ONCE if is_halved and kind == "cpu" else 1)


def kind_of(parts: Anatomy) -> str:
    """Return the kind of device by which memory bounds are chosen, "cpu" or "other"."""
    return "cpu" if parts.device.type == "cpu" else "other"


def bytes_per_token(parts: Anatomy) -> int:
    """Return the memory of one token's records: input, head outputs and attention output of every layer.

    Keys and values, recorded instead of head outputs for the last position, take no more.
    """
    return parts.n_layers * (2 * parts.d_model + parts.n_heads * parts.d_head) * int(parts.model.dtype.itemsize)
