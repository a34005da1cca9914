"""Knockouts at all positions: rerun the layers from the silenced head's onwards, several variants per batch.

All variants of a wave pass through a layer before any of them enters the next, so what they need of a layer is computed
once and dropped again. What all contexts begin with runs once per variant (`segments`). In the last layer only the last
query and what follows from it is needed; only that position is unembedded.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from chainwright._config import Positions
from chainwright._errors import UnsupportedModel
from chainwright.diagnose.heads._sweep.baseline_pass import (
    BaselinePass,
    Contexts,
    VariantLogits,
    is_edited,
    record,
    rounding_tolerance,
    total_variation,
)
from chainwright.diagnose.heads._sweep.options import ONE_BY_ONE
from chainwright.diagnose.heads._sweep.rerun import Chunk, Rerun
from chainwright.diagnose.heads._sweep.same_layer import Sharing
from chainwright.models.anatomy import Anatomy
from chainwright.models.gradients import has_gradients
from chainwright.models.residual import unembed
from chainwright.models.seam import Handlers, attach, attached_handlers


def from_layer(
    parts: Anatomy,
    contexts: Contexts,
    wanted: Tensor,
    max_bytes: int,
    plain: BaselinePass | None = None,
    *,
    positions: Positions,
    sharing: Sharing,
    wave_bytes: int,
    is_halved: bool = False,
) -> Iterator[VariantLogits]:
    """Yield the logits of the baseline pass, then those with each wanted head `[N, L, H]` silenced alone.

    Args:
        parts: Anatomy of the model.
        contexts: Rows to run.
        wanted: Which heads to silence in which row.
        max_bytes: Approximate memory of the variants that run at once.
        plain: The baseline pass, if it was recorded already.
        positions: Where to silence the heads.
        sharing: The shared terms of each layer.
        wave_bytes: Approximate memory of the hidden states of the variants that wait between two layers.
        is_halved: Multiply what differs from the baseline pass in bfloat16.
    """
    n_rows = len(contexts.input_ids)
    with attach(parts.model, Handlers({})):
        plain = plain or record(parts, contexts, attached_handlers(parts.model))
        yield VariantLogits(torch.tensor([[row, 0, -1] for row in range(n_rows)]), plain.logits)
        rerun = _checked(parts, contexts, plain, Rerun(parts, contexts, plain, positions, sharing, max_bytes))
        per_pair = bytes_per_state(parts, rerun.n_tokens_per_pair)
        for wave in _waves(rerun, wanted, max(1, wave_bytes // per_pair), in_rows=is_edited(parts)):
            hidden = rerun.run(wave, is_halved=is_halved)
            where = torch.cat([chunk.where for chunk in wave])
            # an edited model runs all rows together, also those that were not wanted
            is_wanted = wanted[tuple(where.T)]
            yield from _unembedded(parts, where[is_wanted], hidden[is_wanted.to(hidden.device)])


def bytes_per_variant(parts: Anatomy, n_tokens: int) -> int:
    """Return the memory that one variant takes inside a block at its widest point: about eight residual streams."""
    return 8 * bytes_per_state(parts, n_tokens)


def bytes_per_state(parts: Anatomy, n_tokens: int) -> int:
    """Return the memory of the hidden states of some tokens between two layers."""
    return n_tokens * parts.d_model * int(parts.model.dtype.itemsize)


def _unembedded(parts: Anatomy, where: Tensor, hidden: Tensor) -> Iterator[VariantLogits]:
    step = max(1, 2**25 // parts.d_vocab)
    for start in range(0, len(where), step):
        rows = slice(start, start + step)
        yield VariantLogits(where[rows], unembed(parts, parts.final_norm(hidden[rows])))


def _waves(rerun: Rerun, wanted: Tensor, n_pairs: int, *, in_rows: bool) -> Iterator[list[Chunk]]:
    """Yield chunks that cover `wanted` `[N, L, H]`, in the order of their layers, about `n_pairs` (row, head) together.

    Args:
        rerun: How many variants run at once, and whether the rows share a beginning.
        wanted: Which heads to silence in which row.
        n_pairs: A wave ends before it has more.
        in_rows: Each chunk has every row once, in order, since an attached edit may treat rows differently.
    """
    wave: list[Chunk] = []
    for layer in range(wanted.shape[1]):
        for pairs in _pairs(wanted[:, layer], rerun, in_rows=in_rows):
            if wave and sum(len(chunk.pairs) for chunk in wave) + len(pairs) > n_pairs:
                yield wave
                wave = []
            wave.append(Chunk(layer, pairs))
    if wave:
        yield wave


def _pairs(wanted: Tensor, rerun: Rerun, *, in_rows: bool) -> Iterator[Tensor]:
    """Yield the (row, head) pairs `[R, 2]` of each chunk that together cover `wanted` `[N, H]`."""
    if in_rows or rerun.split is not None:
        # of a shared beginning, a chunk has all rows of one head, so that it runs the beginning once
        for head in wanted.any(0).nonzero()[:, 0]:
            rows = torch.arange(len(wanted)) if in_rows else wanted[:, head].nonzero()[:, 0]
            yield torch.stack([rows, head.expand_as(rows)], dim=1)
        return
    pairs = wanted.nonzero()
    yield from (pairs[i : i + rerun.at_once] for i in range(0, len(pairs), rerun.at_once))


def _checked(parts: Anatomy, contexts: Contexts, plain: BaselinePass, rerun: Rerun) -> Rerun:
    """Return the rerun if its layers, run one by one, give what the model gave; without sharing a beginning if need be.

    Raises:
        UnsupportedModel: They do not.
    """
    off = _largest_difference(parts, contexts, plain, rerun)
    if not off <= rounding_tolerance(parts) and rerun.split is not None:  # written so that NaN fails too
        rerun = rerun.without_split(contexts, plain)
        off = _largest_difference(parts, contexts, plain, rerun)
    if not off <= rounding_tolerance(parts):
        advice = "use method='gradient'" if has_gradients(parts) else ONE_BY_ONE
        raise UnsupportedModel(
            f"The layers of this {parts.model.config.model_type} model, called one by one, move {off:.3g} of the "
            "probability that the whole model gives, so single knockouts cannot share what they have in common; "
            f"{advice}."
        )
    return rerun


def _largest_difference(parts: Anatomy, contexts: Contexts, plain: BaselinePass, rerun: Rerun) -> float:
    """Return the total variation between the model and its layers run one by one, on one row.

    With a shared beginning, on the shortest row and the longest: how a beginning is put in front of a row depends on
    its padding alone. An edited model runs all its rows together.
    """
    n_rows, rows = len(plain.logits), [0]
    if rerun.split is not None:
        lengths = contexts.mask.sum(-1)
        rows = sorted({int(lengths.argmin()), int(lengths.argmax())})
    run = torch.arange(n_rows) if is_edited(parts) else torch.tensor(rows)
    every = torch.stack([run, torch.full_like(run, -1)], dim=1)
    off = []
    # from layer 0 all layers are replayed; from the last one alone, also its shortened form
    for layer in {0, parts.n_layers - 1}:
        hidden = rerun.run([Chunk(layer, every)], shares=False)
        logits = unembed(parts, parts.final_norm(hidden[: len(rows)]))
        off.append(total_variation(logits, plain.logits[rows]))
    return max(off)
