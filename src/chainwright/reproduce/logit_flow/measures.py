"""What is read off the flow of one answer, as plain values, and what a set of answers says together.

Credit is in nats, and negative credit is ignored, as in `FlowStages`. A layer's depth is its number over the number of
layers, so that models of any size compare: layers 7 to 20 and 20 to 31 of 32 are 0.22 to 0.62 and 0.62 to 0.97.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import scipy
import torch
from torch import Tensor, nn

from chainwright._stats import Interval, bootstrap_interval, median_interval, percentile_interval, resamples
from chainwright.diagnose.flow._trace_back import ATTN, FFN
from chainwright.diagnose.flow.attribution import LogitFlow, logit_flow
from chainwright.diagnose.flow.contrast import FlowContrast
from chainwright.diagnose.flow.stages import FlowStages
from chainwright.reproduce.logit_flow.asking import KNOWN, ROLES, Query

Row = Mapping[str, Any]
_N_NEURONS = 100
_RESAMPLES = 2000


def follow(model: nn.Module, query: Query) -> dict[str, Any]:
    """Return what writes one answer and what activated that: a row of lists, `[2, L]` for attention and FFN.

    `credit` is that of query components by role, `value` that of the traced value neurons, `neurons` the importance of
    the best 100 value neurons of each kind, `reads` what heads read from each role at the last position `[L]`, and
    `contrast` the log-probability over the rival's at each role and depth, mean over its positions `[D]`.
    """
    flow = logit_flow(
        model, query.input_ids, query.token_id, conflict_id=query.conflict_id, norm="frozen", n_neurons=_N_NEURONS,
        n_words=0,
    )  # fmt: skip
    places = {role: list(positions) for role, positions in query.roles.items()}
    traced = flow.flow[1:].clamp(min=0).sum(0)  # (position, layer, kind)
    reads = flow.head_position.clamp(min=0).sum(1)  # (layer, position)
    return {
        "group": query.group,
        "sizes": {role: len(at) for role, at in places.items()},
        "credit": {role: _rounded(traced[at].sum(0).T) for role, at in places.items()},
        "value": _rounded(flow.flow[0].clamp(min=0).sum(0).T),
        "neurons": _rounded(_by_layer(flow)),
        "reads": {role: _rounded(reads[:, at].sum(1)) for role, at in places.items()},
        "contrast": _contrast(flow, places),
    }


def _by_layer(flow: LogitFlow) -> Tensor:
    """Return the positive importance of the value neurons by kind and layer, `[2, L]`."""
    out = torch.zeros(2, len(flow.attention))
    layer, kind = flow.neurons[:, 1], flow.neurons[:, 2]
    out.index_put_((kind, layer), flow.importance.float().clamp(min=0), accumulate=True)
    return out


def _contrast(flow: LogitFlow, places: Mapping[str, list[int]]) -> dict[str, list[float]] | None:
    if not flow.contrast.numel():
        return None
    return {role: _rounded(flow.contrast[at].mean(0)) for role, at in places.items() if at}


def _rounded(values: Tensor) -> Any:
    return (values.float() * 1e5).round().div(1e5).tolist()


def stages_of(rows: Sequence[Row], name: str, provenance: Mapping[str, str]) -> FlowStages:
    """Return the stage table of one-hop answers; the relation and the end count together."""
    each, sizes = [], []
    for row in rows:
        credit = {role: torch.tensor(values) for role, values in row["credit"].items()}
        late = credit["relation"] + credit["end"]
        written = torch.tensor(row["value"]).sum(0)
        stages = [credit["entity"][FFN], credit["entity"][ATTN], late[FFN], late[ATTN] + written]
        each.append(torch.stack([*stages, credit["elsewhere"].sum(0)]))
        sizes.append(
            [row["sizes"]["entity"], row["sizes"]["relation"] + row["sizes"]["end"], row["sizes"]["elsewhere"]]
        )
    every = torch.stack(each)
    return FlowStages(
        credit=every[:, :4].mean(0), elsewhere=every[:, 4].mean(0), each=every, sizes=torch.tensor(sizes),
        n_queries=len(rows), name=name, provenance=dict(provenance),
    )  # fmt: skip


def contrasts_of(rows: Sequence[Row], provenance: Mapping[str, str]) -> FlowContrast | None:
    """Return what is followed over its rival by role and depth, for the groups of two hops; None without rivals."""
    compared = [row for row in rows if row["contrast"] is not None and not row["group"].startswith(KNOWN)]
    if not compared:
        return None
    # a question that ends with its relation has no end of its own
    roles = [role for role in ROLES[2][:-1] if all(role in row["contrast"] for row in compared)]
    groups: dict[str, list[Tensor]] = {}
    for row in compared:
        groups.setdefault(row["group"], []).append(torch.tensor([row["contrast"][role] for role in roles]))
    return FlowContrast(
        curves=torch.stack([torch.stack(curves).mean(0) for curves in groups.values()]),
        groups=list(groups), n=[len(curves) for curves in groups.values()], positions=roles,
        what="what is followed over its rival (e2 where the answer is right)", provenance=dict(provenance),
    )  # fmt: skip


def depths(rows: Sequence[Row]) -> dict[str, np.ndarray[Any, Any]]:
    """Return the depth of each stage, of both pairs of stages and of the value neurons in each one-hop answer, `[N]`.

    A stage without credit is NaN.
    """
    each = stages_of(rows, "", {}).each
    pairs = {"A": each[:, 0], "B": each[:, 1], "C": each[:, 2], "D": each[:, 3]}
    pairs |= {"A and B": each[:, :2].sum(1), "C and D": each[:, 2:4].sum(1), "elsewhere": each[:, 4]}
    neurons = torch.tensor([row["neurons"] for row in rows])
    pairs |= {"attention value neurons": neurons[:, ATTN], "FFN value neurons": neurons[:, FFN]}
    pairs["value neurons"] = neurons.sum(1)
    return {name: centres(credit) for name, credit in pairs.items()}


def centres(credit: Tensor) -> np.ndarray[Any, Any]:
    """Return the credit-weighted mean layer of each row as a share of the number of layers, `[N]` from `[N, L]`."""
    layers = torch.arange(credit.shape[-1], dtype=credit.dtype)
    return np.asarray((credit @ layers / credit.sum(-1)) / credit.shape[-1])


def role_shares(rows: Sequence[Row], role: str) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Return the share of each answer's credit that a role has in the lower and the upper half of the layers, `[N]`."""
    low, high = [], []
    for row in rows:
        credit = torch.tensor(row["credit"][role]).sum(0)
        total = sum(torch.tensor(c).sum() for c in row["credit"].values()) + torch.tensor(row["value"]).sum()
        half = len(credit) // 2
        low.append(float(credit[:half].sum() / total))
        high.append(float(credit[half:].sum() / total))
    return np.array(low), np.array(high)


def read_shares(rows: Sequence[Row], role: str) -> np.ndarray[Any, Any]:
    """Return the share of what heads add at the last position that they read from a role, `[N]`."""
    return np.array([sum(row["reads"][role]) / sum(map(sum, row["reads"].values())) for row in rows])


def densities(rows: Sequence[Row]) -> np.ndarray[Any, Any]:
    """Return the credit of a token of the entity relative to that of an unmarked one, `[N]`; none without credit."""
    out = []
    for row in rows:
        size = row["sizes"]
        first, rest = (float(np.sum(row["credit"][role])) / max(1, size[role]) for role in ("entity", "elsewhere"))
        if rest > 0:
            out.append(first / rest)
    return np.array(out)


def mean_interval(values: np.ndarray[Any, Any]) -> tuple[float, Interval]:
    """Return a mean and its bootstrap interval over answers; NaN is dropped."""
    known = values[np.isfinite(values)]
    return float(known.mean()), bootstrap_interval(known, n_resamples=_RESAMPLES, seed=0)


def median_and_interval(values: np.ndarray[Any, Any]) -> tuple[float, Interval | None]:
    """Return a median and its interval; None where there are fewer than six values."""
    return float(np.median(values)), median_interval(values.tolist())


def difference(first: np.ndarray[Any, Any], second: np.ndarray[Any, Any]) -> tuple[float, Interval, float]:
    """Return the difference of two means, its bootstrap interval, and the p-value of a Mann-Whitney test."""
    draws = [
        np.concatenate([values[rows].mean(1) for rows in resamples(len(values), _RESAMPLES, seed)])
        for seed, values in enumerate((first, second))
    ]
    p = float(scipy.stats.mannwhitneyu(first, second).pvalue)
    return float(first.mean() - second.mean()), percentile_interval(draws[0] - draws[1]), p
