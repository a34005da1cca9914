"""Step measures of right and wrong traces compared, matched on slot and position (`_matched_pairs.py`).

Each wrong trace is taken at the step of its first error, its partner at the step that fills the same slot.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import scipy
import torch
from torch import Tensor

from chainwright._errors import BadInput
from chainwright._finding import Finding
from chainwright._registry import register
from chainwright._stats import bootstrap_interval, percentile_interval, resamples
from chainwright.diagnose.steps._matched_pairs import partners
from chainwright.diagnose.steps.measures import row_shares
from chainwright.diagnose.steps.saliency import StepSaliency
from chainwright.traces import Trace

if TYPE_CHECKING:
    from plotly.graph_objects import Figure


@register("finding", "StepGroups")
@dataclass(frozen=True, kw_only=True)
class StepGroups(Finding):
    """Right and wrong traces compared, matched on slot and position; P pairs.

    Attributes:
        right: Measures of the right partners, `[P, L, 3]`: lock-in, reach, and the row's share on the question.
        wrong: The same for the wrong traces.
        rows: One entry per measure and layer: means, U, p (Mann-Whitney, two-sided), and `effect` (the probability that
            a wrong trace's value is larger, minus the reverse: -1 to 1) with its 95% bootstrap interval over pairs.
        n_unmatched: Wrong traces without a partner.
    """

    right: Tensor
    wrong: Tensor
    rows: list[dict[str, Any]]
    n_unmatched: int

    @property
    def matched_on(self) -> str:
        """Return what the partners have in common: slot and position of the first error, or length as a whole."""
        return "length" if self.config.get("matched_on") == BY_LENGTH else "slot and position"

    def summary(self) -> str:
        """Return the number of pairs and the largest effect, in words."""
        best = max(self.rows, key=lambda row: abs(row["effect"]))
        return (
            f"{len(self.right)} pairs matched on {self.matched_on}, {self.n_unmatched} wrong traces without a partner. "
            f"Largest difference: {best['measure']} in layer {best['layer']}, {best['wrong']:.3f} where wrong and "
            f"{best['right']:.3f} where right, effect {best['effect']:+.2f} ({best['low']:+.2f} to "
            f"{best['high']:+.2f}), p {best['p']:.2g} of {len(self.rows)} tests."
        )

    def curves(self, n_resamples: int = 1000, seed: int = 0) -> list[dict[str, Any]]:
        """Return one row per measure, layer and side: the mean with a 95% bootstrap interval over pairs.

        A side without any value in a layer has no row; with fewer than two values the interval is None.
        """
        return [
            {"measure": name, "layer": layer, "side": side, **_mean(values[:, layer, m], n_resamples, seed)}
            for m, name in enumerate(_MEASURES)
            for side, values in (("right", self.right), ("wrong", self.wrong))
            for layer in range(values.shape[1])
            if not bool(values[:, layer, m].isnan().all())
        ]

    def plot(self, *, columns: int = 3) -> Figure:
        """Return the means of right and wrong traces by layer with their intervals, one panel per measure."""
        from chainwright import figures

        return figures.step_curves(self.curves(), columns=columns)

    def to_frame(self) -> pa.Table:
        """Return `rows` as a table."""
        return pa.Table.from_pylist(self.rows)


_MEASURES = ("lock_in", "reach", "on_question")
BY_LENGTH = "length of the response"


def compare_steps(
    traces: Sequence[Trace],
    maps: Sequence[StepSaliency],
    *,
    max_distance: int = 8,
    n_resamples: int = 1000,
    seed: int = 0,
) -> StepGroups:
    """Return how step measures differ between right and wrong traces at the step of the first error.

    Args:
        traces: Judged traces of problems, right and wrong ones.
        maps: Their step maps, in the same order.
        max_distance: Largest distance in tokens between the slots of two partners.
        n_resamples: Bootstrap samples.
        seed: Seed of the bootstrap.

    Raises:
        BadInput: Maps and traces differ in number, a trace has no problem, or no pair matches.
    """
    if len(traces) != len(maps):
        raise BadInput(f"There must be one step map per trace; got {len(maps)} maps and {len(traces)} traces.")
    pairs, n_unmatched = partners(traces, max_distance)
    right = torch.stack([_row(maps[pair.right], pair.right_start) for pair in pairs])
    wrong = torch.stack([_row(maps[pair.wrong], pair.wrong_start) for pair in pairs])
    config = {"matched_on": "task, hops, slot, position", "max_distance": max_distance, "seed": seed}
    return StepGroups(
        right=right,
        wrong=wrong,
        rows=_rows(right, wrong, n_resamples, seed),
        n_unmatched=n_unmatched,
        config=config,
        provenance=maps[0].provenance,
    )


def compare_whole_steps(
    traces: Sequence[Trace],
    maps: Sequence[StepSaliency],
    *,
    max_ratio: float = 1.5,
    n_resamples: int = 1000,
    seed: int = 0,
) -> StepGroups:
    """Return how step measures differ between right and wrong responses as wholes, where no first error is known.

    Each wrong trace is paired with the right one of the nearest length, since long responses draw less on each step
    and less on the question. A trace's measure is the mean over the steps that the model wrote.

    Args:
        traces: Judged traces; only those whose outcome is right or wrong are compared.
        maps: Their step maps, in the same order.
        max_ratio: Longest response of a pair over the shortest, in tokens.
        n_resamples: Bootstrap samples.
        seed: Seed of the bootstrap.

    Raises:
        BadInput: Maps and traces differ in number, or no pair matches.
    """
    if len(traces) != len(maps):
        raise BadInput(f"There must be one step map per trace; got {len(maps)} maps and {len(traces)} traces.")
    lengths = [len(trace.response_ids) for trace in traces]
    sides = {side: [i for i, trace in enumerate(traces) if trace.outcome == side] for side in ("right", "wrong")}
    pairs = [
        (near, i)
        for i in sides["wrong"]
        if (near := min(sides["right"], key=lambda j: (_ratio(lengths[i], lengths[j]), j), default=None)) is not None
        and _ratio(lengths[i], lengths[near]) <= max_ratio
    ]
    if not pairs:
        counts = f"{len(sides['right'])} right and {len(sides['wrong'])} wrong"
        raise BadInput(f"No right and wrong responses of similar length to compare; there are {counts} ones with maps.")
    right = torch.stack([_whole(maps[i], traces[i]) for i, _ in pairs])
    wrong = torch.stack([_whole(maps[i], traces[i]) for _, i in pairs])
    return StepGroups(
        right=right,
        wrong=wrong,
        rows=_rows(right, wrong, n_resamples, seed),
        n_unmatched=len(sides["wrong"]) - len(pairs),
        config={"matched_on": BY_LENGTH, "max_ratio": max_ratio, "seed": seed},
        provenance=maps[0].provenance,
    )


def _rows(right: Tensor, wrong: Tensor, n_resamples: int, seed: int) -> list[dict[str, Any]]:
    return [
        {"measure": name, "layer": layer, **_tested(right[:, layer, m], wrong[:, layer, m], n_resamples, seed)}
        for m, name in enumerate(_MEASURES)
        for layer in range(right.shape[1])
    ]


def _ratio(a: int, b: int) -> float:
    return max(a, b) / max(1, min(a, b))


def _whole(saliency: StepSaliency, trace: Trace) -> Tensor:
    """Return the means of the measures over the steps that the model wrote, `[L, 3]`."""
    values = saliency.map.double()
    own = torch.tensor(trace.is_models_step)
    on_question = values[:, :, 0] / values.sum(-1)
    return torch.stack([m[:, own].nanmean(1) for m in (*row_shares(values), on_question)], dim=-1).float()


def _row(saliency: StepSaliency, position: int) -> Tensor:
    """Return the measures of the step that contains a token, `[L, 3]`."""
    step = saliency.step_of(position)
    values = saliency.map.double()
    lock_in, reach = row_shares(values)
    on_question = values[:, step, 0] / values[:, step].sum(-1)
    return torch.stack([lock_in[:, step], reach[:, step], on_question], dim=-1).float()


def _mean(values: Tensor, n_resamples: int, seed: int) -> dict[str, Any]:
    known = values[~values.isnan()].double().numpy()
    row: dict[str, Any] = {"n": len(known), "mean": float(known.mean()), "low": None, "high": None}
    if len(known) > 1:
        row |= bootstrap_interval(known, n_resamples=n_resamples, seed=seed)._asdict()
    return row


def _tested(right: Tensor, wrong: Tensor, n_resamples: int, seed: int) -> dict[str, Any]:
    a, b = right.numpy(), wrong.numpy()
    test = scipy.stats.mannwhitneyu(b, a, alternative="two-sided")
    drawn = (rows for block in resamples(len(a), n_resamples, seed) for rows in block)
    low, high = percentile_interval([_effect(a[rows], b[rows]) for rows in drawn])
    return {
        "right": float(a.mean()),
        "wrong": float(b.mean()),
        "u": float(test.statistic),
        "p": float(test.pvalue),
        "effect": _effect(a, b),
        "low": low,
        "high": high,
    }


def _effect(right: np.ndarray[Any, Any], wrong: np.ndarray[Any, Any]) -> float:
    """Return the share of (right, wrong) pairs with a larger wrong value, minus the share with a smaller one."""
    return float(np.sign(wrong[:, None] - right[None]).mean())
