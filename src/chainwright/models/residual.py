"""What is written to the residual stream and what is read from it: head writes, the final norm, the unembedding.

Everything that turns a residual vector into logits is the model's own code: `unembed` replaces the unembedding's input
and lets the model continue from there, so softcaps, logit scales and unusual output heads are included.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, nn

from chainwright.models.anatomy import Anatomy, Layer
from chainwright.models.seam import suspended, widened

NormMode = Literal["final", "frozen"]
_EPS_NAMES = ("variance_epsilon", "eps", "epsilon", "layer_norm_epsilon", "layer_norm_eps")


def head_writes(layer: Layer, z: Tensor) -> Tensor:
    """Return what each head writes to the residual stream, without the projection's bias.

    Args:
        layer: The layer that `z` was read in.
        z: Head outputs before the output projection, `[R, H, d]`.

    Returns:
        `[R, H, D]`. Where the model norms the attention's output before adding it, the norm's scale is the one it
        has for all heads together, so that the heads (and the bias) add up to what was added.
    """
    n_rows, n_heads, d_head = z.shape
    alone = torch.zeros(n_rows, n_heads, n_heads, d_head, dtype=z.dtype, device=z.device)
    heads = torch.arange(n_heads, device=z.device)
    alone[:, heads, heads] = z
    out = layer.project(alone) - layer.project(z.new_zeros(1, n_heads, d_head))  # (row, head, model)
    if layer.post_attn is not None:
        whole = layer.project(z)[:, None].expand_as(out)
        out = norm_at_scale(layer.post_attn, out, whole) - norm_at_scale(layer.post_attn, 0 * whole, whole)
    return out * layer.multiplier


def norm_at_scale(norm: nn.Module, v: Tensor, reference: Tensor) -> Tensor:
    """Return `norm` applied to `v` with the scale that it has for `reference`: linear in `v` up to a bias.

    Works for modules that do nothing in evaluation (dropout) and for layer norms and RMS norms of any name: whether
    the norm subtracts the mean is measured.

    Args:
        norm: The norm module.
        v: Vectors `[..., D]`.
        reference: Vectors of the same shape.
    """
    own = norm(v)
    if torch.equal(norm(2 * reference), 2 * norm(reference)):
        return own  # type: ignore[no-any-return]
    bias = (norm(reference) + norm(-reference)) / 2
    centred = _is_centred(norm, reference)
    ratio = _scale(norm, v, centred) / _scale(norm, reference, centred)
    return bias + (own - bias) * ratio.to(own.dtype)  # type: ignore[no-any-return]


def _is_centred(norm: nn.Module, reference: Tensor) -> bool:
    """Return whether the norm subtracts the mean: then adding a constant to all coordinates changes nothing."""
    ramp = torch.linspace(-1, 1, reference.shape[-1], device=reference.device).to(reference.dtype)
    still = norm(ramp.expand(1, 1, -1)).float()
    return bool((norm((ramp + 1).expand(1, 1, -1)).float() - still).norm() < 0.1 * still.norm())


def _scale(norm: nn.Module, v: Tensor, centred: bool) -> Tensor:
    eps = float(next((getattr(norm, name) for name in _EPS_NAMES if hasattr(norm, name)), 0.0) or 0.0)
    v = widened(v)
    if centred:
        v = v - v.mean(-1, keepdim=True)
    return (v.pow(2).mean(-1, keepdim=True) + eps).sqrt()


def unembed(parts: Anatomy, normed: Tensor) -> Tensor:
    """Return the model's logits for vectors taken after the final norm.

    Args:
        parts: Anatomy of the model.
        normed: `[R, D]`.

    Returns:
        Logits `[R, V]`, float32 (float64 in a float64 model), differentiable in `normed`.

    Note:
        Costs one forward pass of one token besides the unembedding itself.
    """
    any_token = torch.zeros(1, 1, dtype=torch.long, device=normed.device)
    with suspended(parts.model), _given_to_unembedding(parts, normed[None]):
        logits: Tensor = parts.model(input_ids=any_token, use_cache=False).logits
    return widened(logits.reshape(normed.shape[0], -1))


@contextmanager
def _given_to_unembedding(parts: Anatomy, normed: Tensor) -> Iterator[None]:
    def put(module: nn.Module, args: tuple[Tensor, ...]) -> Tensor:
        return (normed * parts.unembed_scale).to(args[0].dtype)

    handle = parts.model.get_output_embeddings().register_forward_pre_hook(put)
    try:
        yield
    finally:
        handle.remove()


def lens_log_probs(
    parts: Anatomy,
    v: Tensor,
    token_ids: Tensor,
    *,
    norm: NormMode = "final",
    reference: Tensor | None = None,
    max_rows: int | None = None,
) -> Tensor:
    """Return `log lens(v)[token]`: the log-probability that a token would get if the model ended at `v`.

    Args:
        parts: Anatomy of the model.
        v: Residual vectors `[R, D]`.
        token_ids: One token per row, `[R]`.
        norm: "final" recomputes the final norm's scale for each vector, "frozen" uses that of `reference`.
        reference: The last layer's output at the same position `[R, D]`; needed for "frozen".
        max_rows: Vectors unembedded at once; None keeps the logits below about 256 MB.

    Returns:
        `[R]`, nats, float32 (float64 in a float64 model).
    """
    step = max_rows or max(1, 2**26 // parts.d_vocab)
    out = []
    for start in range(0, v.shape[0], step):
        rows = slice(start, start + step)
        if norm == "final":
            normed = parts.final_norm(v[rows])
        else:
            assert reference is not None, "the frozen norm needs the last layer's output"
            normed = norm_at_scale(parts.final_norm, v[rows], reference[rows])
        log_probs = unembed(parts, normed).log_softmax(-1)
        out.append(log_probs.gather(-1, token_ids[rows, None])[:, 0])
    return torch.cat(out)
