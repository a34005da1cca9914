"""Attention weights computed from what a layer hands to its attention function.

The attention functions of Transformers return the head outputs, and `sdpa` never forms the weights. Reading or
changing them means computing them here, as each model's own eager function does.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from chainwright.models.seam import AttentionCall, widened


def attn_pattern(call: AttentionCall) -> Tensor:
    """Return the attention weights of a call, `[N, H, Tq, Tk]`, computed from queries and keys.

    Softcaps, sinks and position biases are applied; with sinks a row sums to less than one. The row of a query that
    sees no key (a padding query) is zero.

    Source: softmax(q k^T * scaling) as in each model's eager function.
    """
    n_rows, n_heads, n_queries, d = call.q.shape
    # the query heads that share a key head lie side by side, so the keys need not be repeated
    q, k = call.q.reshape(-1, n_heads // call.k.shape[1] * n_queries, d), call.k.flatten(0, 1)
    scale = call.options.get("scaling")
    scores = torch.bmm(q, k.transpose(1, 2)).mul_(d**-0.5 if scale is None else scale)
    scores = scores.view(n_rows, n_heads, n_queries, -1)  # (batch, head, query, key)
    if (cap := call.options.get("softcap")) is not None:
        scores = cap * torch.tanh(scores / cap)
    if (bias := call.options.get("position_bias")) is not None:
        scores = scores + bias
    scores = widened(scores)
    sinks = attention_sinks(call)
    if call.mask is None and call.q.shape[2] == 1 and sinks is None:
        return scores.softmax(-1)  # one decoding step: its query sees every key
    scores = scores.masked_fill(~_visible(call, scores), float("-inf"))
    if call.mask is not None and call.mask.dtype != torch.bool:
        scores = scores + call.mask
    return _normalised(scores, sinks)


def weighted_values(call: AttentionCall, weights: Tensor) -> Tensor:
    """Return z `[N, Tq, H, dv]` from attention weights `[N, H, Tq, Tk]`, in the type of the values."""
    n_rows, n_heads, n_queries, n_keys = weights.shape
    v = call.v.flatten(0, 1)
    by_key_head = weights.view(len(v), -1, n_keys)  # as in attn_pattern, values are not repeated
    z = torch.bmm(by_key_head.to(v.dtype), v)
    return z.view(n_rows, n_heads, n_queries, -1).transpose(1, 2)


def has_one_query(call: AttentionCall) -> bool:
    """Return whether `one_query_pattern` can be asked: a token decoded alone on the CPU, without a gradient."""
    q, options = call.q, call.options
    if q.shape[0] != 1 or q.shape[2] != 1 or call.mask is not None or not q.is_cpu or q.dtype.itemsize < 4:
        return False
    has_more = options.get("softcap") is not None or options.get("position_bias") is not None
    return not (has_more or q.requires_grad or call.k.requires_grad or attention_sinks(call) is not None)


def one_query_pattern(call: AttentionCall) -> Tensor:
    """Return what `attn_pattern` does for the one query of one row, `[G, H / G, Tk]`, with fewer calls of PyTorch."""
    q, k = call.q.view(call.k.shape[1], -1, call.q.shape[3]), call.k.squeeze(0)
    scale = call.options.get("scaling")
    scale = q.shape[2] ** -0.5 if scale is None else scale
    return torch.baddbmm(_nothing(q.dtype), q, k.transpose(1, 2), beta=0, alpha=scale).softmax(-1)


@lru_cache
def _nothing(dtype: torch.dtype) -> Tensor:
    """Return what `baddbmm` with `beta=0` is given to add, which it then does not read."""
    return torch.zeros((), dtype=dtype, device="cpu")  # whatever the default device is


def one_query_values(call: AttentionCall, weights: Tensor) -> Tensor:
    """Return z `[1, 1, H, dv]` from what `one_query_pattern` returned."""
    return torch.bmm(weights, call.v.squeeze(0)).view(1, 1, call.q.shape[1], -1)


def _visible(call: AttentionCall, scores: Tensor) -> Tensor:
    if call.mask is None:
        # aligned at the upper left: a static cache hands over more keys than there are tokens
        n_query, n_key = scores.shape[-2:]
        every = torch.ones(n_query, n_key, dtype=torch.bool, device=scores.device)
        return every.tril() if n_query > 1 and _is_causal(call) else every
    if call.mask.dtype == torch.bool:
        return call.mask
    # a float mask hides a key by adding the smallest number of its dtype; anything larger is a bias
    return call.mask > torch.finfo(call.mask.dtype).min / 2


def _is_causal(call: AttentionCall) -> bool:
    option = call.options.get("is_causal")
    return bool(getattr(call.module, "is_causal", True) if option is None else option)


def attention_sinks(call: AttentionCall) -> Tensor | None:
    """Return the sink logits of the heads, `[1, H, 1, 1]`, or None for a model without sinks."""
    sinks = call.options.get("s_aux")  # every modelling file that has sinks hands them over
    return None if sinks is None else widened(sinks).reshape(1, -1, 1, 1)


def _normalised(scores: Tensor, sinks: Tensor | None) -> Tensor:
    # softmax by hand: a sink takes part in the sum but gets no column, and a row of -inf must give 0 and not NaN
    peak = scores.amax(-1, keepdim=True).clamp(min=torch.finfo(scores.dtype).min)
    if sinks is not None:
        peak = torch.maximum(peak, sinks)
    mass = (scores - peak).exp()
    total = mass.sum(-1, keepdim=True)
    if sinks is not None:
        total = total + (sinks - peak).exp()
    return mass / total.clamp(min=torch.finfo(scores.dtype).tiny)
