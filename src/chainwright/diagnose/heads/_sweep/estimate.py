"""The cost of a sweep, estimated before it runs: a short forward pass is timed, and the rest is arithmetic."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import nn

from chainwright._config import Positions
from chainwright._errors import BadInput
from chainwright.diagnose.heads._sweep.all_positions import bytes_per_variant
from chainwright.diagnose.heads._sweep.baseline_pass import Contexts, groups
from chainwright.diagnose.heads._sweep.options import Method, check_options, n_measured
from chainwright.diagnose.heads._sweep.run import BACKWARD, BYTES_AT_ONCE, BYTES_KEPT, bytes_per_token, kind_of
from chainwright.models.anatomy import Anatomy, anatomy, evaluating
from chainwright.models.capture import forward

# shares of a layer's time: the silenced head's layer after its attention, and what still runs of the last layer
_OWN_LAYER, _LAST_LAYER = 0.4, 0.3
# a forward and a backward pass, in baseline passes
_GRADIENT = 2.5
_MOST_TIMED = 512


@dataclass(frozen=True, kw_only=True)
class SweepPlan:
    """The estimated cost of `knockout_effects` for contexts of given lengths.

    Attributes:
        n_variants: How many (row, head) pairs are measured.
        n_groups: Groups of rows that run together, each with one baseline pass.
        plain_passes: The work, in forward passes over all contexts; one pass per head would be `n_layers x n_heads`.
        bytes: Approximate peak memory besides the model.
        seconds: Approximate time, from a forward pass timed for this estimate.
    """

    n_variants: int
    n_groups: int
    plain_passes: float
    bytes: int
    seconds: float

    def summary(self) -> str:
        """Return the plan in a sentence."""
        return (
            f"{self.n_variants} knockouts in {self.n_groups} groups of rows: the work of {self.plain_passes:.1f} "
            f"forward passes over the contexts, about {self.seconds:.1f} s and {self.bytes / 2**20:.0f} MiB besides "
            "the model."
        )


class _Work(NamedTuple):
    """Forward passes per row of a kind of sweep, and how many times the records of one baseline pass are needed."""

    passes: float
    times_kept: int


def plan_knockout_effects(
    model: nn.Module,
    lengths: Sequence[int],
    *,
    positions: Positions = "all",
    method: Method = "exact",
    share: float = 0.25,
    max_bytes: int | None = None,
) -> SweepPlan:
    """Return the estimated time and memory of a sweep over contexts of these lengths.

    One short forward pass is timed for it.

    Args:
        model: A Transformers decoder.
        lengths: Tokens of each context, without padding.
        positions: As for `knockout_effects`, like all that follow.
        method: "exact", "gradient" or "screened".
        share: Share of each row's heads that is measured.
        max_bytes: Memory bound.

    Raises:
        BadInput: No length, a length below 1, or an option that `knockout_effects` would refuse.

    Note:
        Expect the seconds to be right within a factor of two. Attention is counted as linear in the length, not
        quadratic.
    """
    check_options(method, positions, share, max_bytes)
    if not len(lengths) or min(lengths) < 1:
        raise BadInput(f"lengths must be positive integers, one per context; got {list(lengths)[:8]}.")
    parts = anatomy(model)
    work = _work(parts, lengths, positions, method, share)
    per_token = bytes_per_token(parts) * work.times_kept
    recorded, at_once = (max_bytes or table[kind_of(parts)] for table in (BYTES_KEPT, BYTES_AT_ONCE))
    longest = max(lengths)
    sizes = [int(group.contexts.mask.sum()) for group in groups(_dummy(lengths), recorded // per_token)]
    variants = 0 if method == "gradient" else max(at_once, bytes_per_variant(parts, longest))
    return SweepPlan(
        n_variants=n_measured(parts, len(lengths), method, share),
        n_groups=len(sizes),
        plain_passes=work.passes,
        bytes=max(sizes) * per_token + variants,
        seconds=work.passes * sum(lengths) * seconds_per_token(parts, longest),
    )


def _work(parts: Anatomy, lengths: Sequence[int], positions: Positions, method: Method, share: float) -> _Work:
    n_layers, n_heads = parts.n_layers, parts.n_heads
    measured = {"exact": 1.0, "gradient": 0.0, "screened": share}[method]
    if positions == "last":  # a variant is one position of half the layers
        variants = n_layers * n_heads / 2 / (sum(lengths) / len(lengths))
    else:
        variants = passes_per_variant_row(parts.n_layers, parts.n_heads)
    base = 1.0 if method == "exact" else _GRADIENT
    return _Work(base + measured * variants, 1 if method == "exact" else BACKWARD)


def passes_per_variant_row(n_layers: int, n_heads: int) -> float:
    """Return the work of silencing every head of a row at all positions, in forward passes over the row."""
    after = sum(max(0, n_layers - 2 - layer) for layer in range(n_layers))
    return n_heads * (after + (n_layers - 1) * (_OWN_LAYER + _LAST_LAYER)) / n_layers


def _dummy(lengths: Sequence[int]) -> Contexts:
    columns = torch.arange(max(lengths))
    mask = (columns >= max(lengths) - torch.tensor(list(lengths))[:, None]).long()
    return Contexts(mask, mask, mask[:, :1])


@torch.no_grad()
def seconds_per_token(parts: Anatomy, longest: int) -> float:
    """Return the time of a token in a forward pass over at most `longest` tokens."""
    n_tokens = min(longest, _MOST_TIMED)
    ids = torch.arange(n_tokens, device=parts.device)[None] % parts.d_vocab
    seconds = []
    with evaluating(parts.model):
        for _ in range(3):  # the first one warms up
            started = time.perf_counter()
            forward(parts, ids, None, last_only=True).sum().item()
            seconds.append(time.perf_counter() - started)
    return min(seconds[1:]) / n_tokens
