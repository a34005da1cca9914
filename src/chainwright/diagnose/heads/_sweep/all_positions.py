"""Knockouts at all positions: rerun the layers from the silenced head's onwards, several variants per batch.

In the last layer only the last query and what follows from it is needed; only that position is unembedded.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack
from typing import Any, NamedTuple

import torch
from torch import Tensor

from chainwright._config import Positions
from chainwright._errors import UnsupportedModel
from chainwright.diagnose.heads._sweep.baseline_pass import (
    BaselinePass,
    Contexts,
    LayerCall,
    VariantLogits,
    for_rows,
    is_edited,
    record,
    returning,
    rounding_tolerance,
    total_variation,
)
from chainwright.diagnose.heads._sweep.options import ONE_BY_ONE
from chainwright.diagnose.heads._sweep.same_layer import Shared, Sharing, as_output
from chainwright.models._probe import first_tensor
from chainwright.models.anatomy import Anatomy, Layer
from chainwright.models.gradients import has_gradients
from chainwright.models.residual import unembed
from chainwright.models.seam import Handlers, attach, attached_handlers


class _Variants(NamedTuple):
    """Which rows to rerun from a layer onwards, and which head to silence in each.

    Attributes:
        layer: The layer of the silenced heads.
        pairs: (row, head) `[R, 2]`; head -1 silences nothing.
        positions: Where to silence them.
        n_rows: Rows of the baseline pass.
    """

    layer: int
    pairs: Tensor
    positions: Positions
    n_rows: int


def from_layer(
    parts: Anatomy,
    contexts: Contexts,
    wanted: Tensor,
    max_bytes: int,
    plain: BaselinePass | None = None,
    *,
    positions: Positions,
    sharing: Sharing,
) -> Iterator[VariantLogits]:
    """Yield the logits of the baseline pass, then those with each wanted head `[N, L, H]` silenced alone."""
    n_rows, n_tokens = contexts.input_ids.shape
    at_once = max(1, max_bytes // bytes_per_variant(parts, n_tokens))
    with attach(parts.model, Handlers({})):
        plain = plain or record(parts, contexts, attached_handlers(parts.model))
        yield VariantLogits(torch.tensor([[row, 0, -1] for row in range(n_rows)]), plain.logits)
        _check_replay(parts, plain, n_rows, sharing)
        for layer in range(parts.n_layers):
            # an attached edit may treat rows differently, so then every row stays at its place in the batch
            chunks = list(_chunks(wanted[:, layer], at_once, in_rows=is_edited(parts)))
            if not chunks:
                continue
            pairs = torch.cat(chunks)
            shared = sharing.of_layer(layer, plain.calls[layer], len(pairs)) if positions == "all" else None
            hidden = torch.cat(
                [_rerun(parts, plain.calls, _Variants(layer, c, positions, n_rows), sharing, shared) for c in chunks]
            )
            del shared
            where = torch.stack([pairs[:, 0], torch.full_like(pairs[:, 0], layer), pairs[:, 1]], dim=1)
            # an edited model runs all rows together, also those that were not wanted
            is_wanted = wanted[tuple(where.T)]
            yield from _unembedded(parts, where[is_wanted], hidden[is_wanted.to(hidden.device)])


def bytes_per_variant(parts: Anatomy, n_tokens: int) -> int:
    """Return the memory that one variant takes inside a block at its widest point: about eight residual streams."""
    return n_tokens * parts.d_model * int(parts.model.dtype.itemsize) * 8


def _unembedded(parts: Anatomy, where: Tensor, hidden: Tensor) -> Iterator[VariantLogits]:
    step = max(1, 2**25 // parts.d_vocab)
    for start in range(0, len(where), step):
        rows = slice(start, start + step)
        yield VariantLogits(where[rows], unembed(parts, parts.final_norm(hidden[rows])))


def _chunks(wanted: Tensor, at_once: int, *, in_rows: bool) -> Iterator[Tensor]:
    """Yield (row, head) pairs `[R, 2]` that cover `wanted` `[N, H]`; `in_rows`: each row once, in order."""
    if not in_rows:
        pairs = wanted.nonzero()
        yield from (pairs[i : i + at_once] for i in range(0, len(pairs), at_once))
        return
    rows = torch.arange(len(wanted))
    for head in wanted.any(0).nonzero()[:, 0]:
        yield torch.stack([rows, head.expand_as(rows)], dim=1)


def _check_replay(parts: Anatomy, plain: BaselinePass, n_rows: int, sharing: Sharing) -> None:
    """Raise UnsupportedModel unless the layers run one by one give what the model gave, on the first row."""
    n_rerun = n_rows if is_edited(parts) else 1
    every = torch.stack([torch.arange(n_rerun), torch.full((n_rerun,), -1)], dim=1)
    # from layer 0 all layers are replayed; from the last one alone, also its shortened form
    for layer in {0, parts.n_layers - 1}:
        hidden = _rerun(parts, plain.calls, _Variants(layer, every, "all", n_rows), sharing)
        off = total_variation(unembed(parts, parts.final_norm(hidden[:1])), plain.logits[:1])
        if not off <= rounding_tolerance(parts):  # written so that NaN fails too
            advice = "use method='gradient'" if has_gradients(parts) else ONE_BY_ONE
            raise UnsupportedModel(
                f"The layers of this {parts.model.config.model_type} model, called one by one, move {off:.3g} of the "
                "probability that the whole model gives, so single knockouts cannot share what they have in common; "
                f"{advice}."
            )


def _rerun(
    parts: Anatomy, calls: list[LayerCall], variants: _Variants, sharing: Sharing, shared: Shared | None = None
) -> Tensor:
    """Return the last layer's output at the last position `[R, D]` with each variant's head silenced."""
    rows = variants.pairs[:, 0]
    hidden: Tensor | None = None
    for i in range(variants.layer, parts.n_layers):
        layer, call = parts.layers[i], calls[i]
        args, kwargs = for_rows(call, rows, variants.n_rows, hidden)
        is_first, is_last = i == variants.layer, i == parts.n_layers - 1 and call.is_positionwise
        with ExitStack() as stack:
            if is_last:
                # the logits need only the last position: its z alone, then the rest of the layer for one position
                z = _silenced(call.z[:, -1:], variants) if is_first else sharing.last_query.z(args, kwargs)
                args, kwargs = _at_last_position(args, kwargs)
                stack.enter_context(_attention_gives(layer, call, z))
            elif is_first and shared is not None:
                # the silenced head's own layer: the formula of `same_layer`, or else its projection run again
                stack.enter_context(shared.given(rows, variants.pairs[:, 1]))
            elif is_first:
                stack.enter_context(_attention_gives(layer, call, _silenced(call.z, variants)))
            hidden = first_tensor(layer.block(*args, **kwargs))
    assert hidden is not None
    return hidden[:, -1].clone()


def _silenced(z: Tensor, variants: _Variants) -> Tensor:
    """Return z of each variant `[R, P, H, d]` with its head set to zero."""
    rows, heads = variants.pairs.T
    z = z[rows.to(z.device)]
    (silenced,) = (heads >= 0).nonzero(as_tuple=True)
    where = slice(None) if variants.positions == "all" else -1
    z[silenced, where, heads[silenced]] = 0
    return z


def _attention_gives(layer: Layer, call: LayerCall, z: Tensor) -> AbstractContextManager[None]:
    """Make the layer's attention module return the projection of `z` instead of attending."""
    output = as_output(call, layer.out_proj(z.flatten(-2)).reshape(*z.shape[:2], -1))
    return returning(layer.attention, lambda *args, **kwargs: output)


def _at_last_position(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if args:
        return (args[0][:, -1:], *args[1:]), kwargs
    return args, {**kwargs, "hidden_states": kwargs["hidden_states"][:, -1:]}
