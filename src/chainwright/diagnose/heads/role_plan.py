"""The cost of `head_roles`, estimated before it runs."""

from __future__ import annotations

from torch import nn

from chainwright.diagnose.contexts import SlotContexts
from chainwright.diagnose.heads._sweep.baseline_pass import FEWEST_SHARED, Contexts, groups
from chainwright.diagnose.heads._sweep.estimate import SweepPlan, passes_per_variant_row, seconds_per_token
from chainwright.diagnose.heads._sweep.options import n_screened
from chainwright.diagnose.heads._sweep.run import BYTES_KEPT, bytes_at_once, bytes_per_token, kind_of
from chainwright.diagnose.heads._sweep.segments import n_shared_tokens
from chainwright.diagnose.heads.role_sweep import RolesConfig, chosen, joined, tracked
from chainwright.models.anatomy import Anatomy, anatomy

# time of a variant whose products are in bfloat16, relative to the model's own products
_HALVED = 0.62
# in forward passes over the contexts: a forward and two backward passes; reading the heads' direct writing
SLOPES, WRITING = 3.5, 1.0


def plan_head_roles(
    model: nn.Module, correct: SlotContexts, erroneous: SlotContexts, *, config: RolesConfig | None = None
) -> SweepPlan:
    """Return the estimated time and memory of `head_roles` with the same arguments.

    One short forward pass is timed for it; no knockout is run. Expect the seconds to be right within a factor of two.

    Raises:
        BadInput: bfloat16 products do not fit the model.
    """
    parts = anatomy(model)
    settings = chosen(parts, config or RolesConfig())
    contexts = joined(tracked(parts, correct), tracked(parts, erroneous))
    n_heads, n_rows = parts.n_layers * parts.n_heads, len(contexts.input_ids)
    n_measured = n_screened(settings.measured, n_heads) if settings.method == "screened" else n_heads
    kept, at_once = BYTES_KEPT[kind_of(parts)], bytes_at_once(parts, is_halved=settings.products == "bfloat16")
    found = list(groups(contexts, kept // bytes_per_token(parts), by_start=settings.positions == "all"))
    n_tokens = int(contexts.mask.sum())
    # heads that rank high are spread over the layers, so the share of the work is the share of the heads
    share = n_measured / n_heads * (_HALVED if settings.products == "bfloat16" else 1.0)
    at_last = n_rows * n_heads / 2 / n_tokens  # a variant at the last position: one token through half of the layers
    if settings.positions == "last":
        sweep = n_measured / n_heads * at_last
    else:
        sweep = (
            share
            * passes_per_variant_row(parts.n_layers, parts.n_heads)
            * sum(_tokens(group.contexts) for group in found)
            / n_tokens
        )
    # of a screened model one pass is read for the slopes, the last position and the direct writing
    before = SLOPES + at_last if settings.method == "screened" else WRITING
    passes = 1 + sweep + before
    longest = contexts.input_ids.shape[1]
    per_token = seconds_per_token(parts, longest)
    return SweepPlan(
        n_variants=n_rows * n_measured,
        n_groups=len(found),
        plain_passes=passes,
        bytes=min(kept, n_tokens * bytes_per_token(parts)) + _waiting(parts, n_tokens, n_measured, kept) + at_once,
        seconds=passes * n_tokens * per_token + _writing_seconds(parts, n_rows, per_token),
    )


def _writing_seconds(parts: Anatomy, n_rows: int, per_token: float) -> float:
    """Return the time of reading every layer through the lens, in both sets, with every head and without each."""
    in_layers = sum(p.numel() for layer in parts.layers for p in layer.block.parameters())
    n_logits = n_rows * parts.n_layers * (parts.n_heads + 1)
    # each set is unembedded at once, for which `unembed` takes a pass of one token to get at the output head
    passes = 2 * seconds_per_token(parts, 1)
    return passes + n_logits * per_token * parts.d_model * parts.d_vocab / in_layers


def _tokens(contexts: Contexts) -> int:
    """Return how many tokens a variant runs for a group: what its rows begin with once, and the rest of each."""
    n_rows, longest = contexts.input_ids.shape
    shared = n_shared_tokens(contexts) if n_rows > 1 else 0
    return n_rows * longest if shared < FEWEST_SHARED else shared + n_rows * (longest - shared)


def _waiting(parts: Anatomy, n_tokens: int, n_measured: int, most: int) -> int:
    """Return the memory of the states between two layers."""
    return min(most, n_tokens * n_measured * parts.d_model * int(parts.model.dtype.itemsize))
