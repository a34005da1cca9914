"""The flow of an answer of several tokens: the sum of each token's flow, given the tokens before it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from chainwright.diagnose.flow.attribution import LogitFlow

_FFN = 1


def added(flows: Sequence[LogitFlow], targets: list[int]) -> LogitFlow:
    """Return the sum of the flows of an answer's tokens, in order; the context is that of the last one."""
    first, last = flows[0], flows[-1]
    n_tokens = len(last.input_ids)
    groups = _all_groups(flows)
    neurons = torch.cat([_regrouped(flow.neurons, flow.groups, groups) for flow in flows])
    queries = torch.cat([_regrouped(flow.query_neurons, flow.groups, groups) for flow in flows])
    importance, credit = (torch.cat([getattr(f, name) for f in flows]) for name in ("importance", "query_credit"))
    best, traced = importance.argsort(descending=True), credit.argsort(descending=True)
    return replace(
        first,
        input_ids=last.input_ids,
        target_ids=targets,
        logprob=sum(f.logprob for f in flows),
        embedding=sum(f.embedding for f in flows),
        attention=_sum([f.attention for f in flows]),
        mlp=_sum([f.mlp for f in flows]),
        between=_sum([f.between for f in flows]),
        head=_sum([f.head for f in flows]),
        head_position=_sum([_padded(f.head_position, 2, n_tokens) for f in flows]),
        flow=_sum([_padded(f.flow, 1, n_tokens) for f in flows]),
        neurons=neurons[best],
        importance=importance[best],
        coefficient=torch.cat([f.coefficient for f in flows])[best],
        words=torch.cat([f.words for f in flows])[best],
        cell_words=last.cell_words,
        query_neurons=queries[traced],
        query_credit=credit[traced],
        groups=groups,
    )


def _sum(tensors: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(tensors)).sum(0)


def _padded(tensor: Tensor, dim: int, size: int) -> Tensor:
    shape = list(tensor.shape)
    shape[dim] = size - shape[dim]
    return torch.cat([tensor, tensor.new_zeros(shape)], dim)


def _all_groups(flows: Sequence[LogitFlow]) -> list[list[str]]:
    """Return the names of all FFN output matrices of each layer: each token may use other experts."""
    layers = zip(*(flow.groups for flow in flows), strict=True)
    return [list(dict.fromkeys(name for names in layer for name in names)) for layer in layers]


def _regrouped(neurons: Tensor, old: list[list[str]], new: list[list[str]]) -> Tensor:
    """Return neurons with their matrices renumbered by another list of names."""
    out = neurons.clone()
    for row in out:
        layer, kind, group = (int(row[i]) for i in (1, 2, 3))
        if kind == _FFN:
            row[3] = new[layer].index(old[layer][group])
    return out
