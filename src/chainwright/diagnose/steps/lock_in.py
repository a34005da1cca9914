"""How much attention a token pays to the segment that it builds on, in right and wrong traces: lock-in seen directly.

1. A query in the thinking builds on the question, one in the summary on the thinking; its bridge mass is the share of a
   head's attention that goes there. StepFlow's bridge sets a lower bound on exactly this mass.
2. The mass is read where a token is decided: at the position before it.
3. Wrong traces are compared, at the first wrong token, with traces that are right there, matched on slot and position
   (`_matched_pairs.py`), since early tokens attend to the question more, right or wrong.

Attention shows where a head looks, not what it reads there, and a mass that differs need not be the cause.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import scipy
import torch
from torch import Tensor, nn

from chainwright._errors import BadInput
from chainwright._finding import Finding
from chainwright._registry import register
from chainwright._stats import bootstrap_interval
from chainwright.diagnose._attention_rows import read_rows
from chainwright.diagnose.steps._matched_pairs import Pair, partners
from chainwright.diagnose.steps.measures import SUMMARY, THINKING
from chainwright.models.anatomy import anatomy, evaluating
from chainwright.scoring import check_fits
from chainwright.traces import Trace


@register("finding", "BridgeGroups")
@dataclass(frozen=True, kw_only=True)
class BridgeGroups(Finding):
    """Bridge masses at the first error of wrong traces, and of their right partners; P pairs.

    Attributes:
        right: Masses of the right partners `[P, L, H]`.
        wrong: Masses of the wrong traces `[P, L, H]`.
        segments: "thinking" (mass on the question) or "summary" (mass on the thinking) for each pair.
        rows: One entry per segment and layer, over heads and pairs: means, the difference wrong minus right with its
            95% bootstrap interval over pairs, and `p` of Wilcoxon's signed-rank test that wrong is lower. Also, for the
            head whose mean falls most: `head`, `head_right`, `head_wrong`.
        n_unmatched: Wrong traces without a partner.
    """

    right: Tensor
    wrong: Tensor
    segments: list[str]
    rows: list[dict[str, Any]]
    n_unmatched: int

    def of(self, segment: str) -> tuple[Tensor, Tensor]:
        """Return the right and wrong masses of the pairs in one segment, "thinking" or "summary"."""
        here = torch.tensor([name == segment for name in self.segments], dtype=torch.bool)
        return self.right[here], self.wrong[here]

    def summary(self) -> str:
        """Return the layer where wrong traces fall furthest below right ones, for each segment, in words."""
        lines = [f"{len(self.right)} pairs matched on slot and position, {self.n_unmatched} without a partner."]
        for segment, target in ((THINKING, "question"), (SUMMARY, "thinking")):
            rows = [row for row in self.rows if row["segment"] == segment]
            if not rows:
                continue
            row = min(rows, key=lambda row: row["difference"])
            lines.append(
                f"Mass on the {target} differs most in layer {row['layer']}: {row['wrong']:.3f} where wrong and "
                f"{row['right']:.3f} where right ({row['low']:+.3f} to {row['high']:+.3f}; {row['n']} pairs, "
                f"p {row['p']:.2g})."
            )
        return " ".join(lines)

    def to_frame(self) -> pa.Table:
        """Return `rows` as a table."""
        return pa.Table.from_pylist(self.rows)


@torch.no_grad()
def bridge_mass(model: nn.Module, trace: Trace) -> Tensor:
    """Return each head's attention on the segment that a token builds on, `[L, H, T]`; NaN where there is none.

    The value at t is that of the query at t, which decides token t + 1. Tokens of the question have none, nor does the
    summary of a trace without thinking. Attached edits that change scores or hidden states are in force; a bridge
    changes the weights themselves, and the mass is that before it.

    Raises:
        BadTrace: The trace does not fit the model.
    """
    parts = anatomy(model)
    check_fits(parts, trace)
    masses = torch.full((parts.n_layers, parts.n_heads, len(trace)), float("nan"))
    is_read = [t for t in range(trace.question.end, len(trace)) if _bridge(trace, t) is not None]
    if not is_read:
        return masses

    def read(layer: int, rows: Tensor, attention: Tensor) -> None:
        sums = torch.cat([attention.new_zeros(len(attention), len(rows), 1), attention.cumsum(-1)], dim=-1)
        ends = torch.tensor([_bridge(trace, t) for t in rows.tolist()], device=attention.device)  # (row, start and end)
        cumulative = sums.gather(-1, ends.expand(len(attention), -1, -1))
        masses[layer][:, rows.cpu()] = (cumulative[..., 1] - cumulative[..., 0]).float().cpu()

    with evaluating(parts.model):
        read_rows(parts, trace.input_ids, torch.tensor(is_read), read, innermost=True)
    return masses


def _bridge(trace: Trace, position: int) -> tuple[int, int] | None:
    """Return the span of tokens that a query in the response builds on, or None."""
    if position < trace.thinking.end:
        return (0, trace.question.end)
    return (trace.thinking.start, trace.thinking.end) if trace.thinking.start < trace.thinking.end else None


def compare_bridges(
    traces: Sequence[Trace],
    masses: Sequence[Tensor],
    *,
    whole: bool = False,
    max_distance: int = 8,
    n_resamples: int = 1000,
    seed: int = 0,
) -> BridgeGroups:
    """Return how bridge masses differ between right and wrong traces at the query that decides the first wrong token.

    Args:
        traces: Judged traces of problems, right and wrong ones.
        masses: `bridge_mass` of each, in the same order.
        whole: Take only partners that are right to their end. Otherwise partners may fail after the slot, which gives
            more pairs where few long chains are right. Needed if the masses of the wrong traces come from an edited
            model.
        max_distance: Largest distance in tokens between the slots of two partners.
        n_resamples: Bootstrap samples.
        seed: Seed of the bootstrap.

    Raises:
        BadInput: Masses and traces differ in number, a trace has no problem, or no pair matches.
    """
    if len(traces) != len(masses):
        raise BadInput(f"There must be one tensor of masses per trace; got {len(masses)} for {len(traces)} traces.")
    pairs, n_unmatched = partners(traces, max_distance, whole=whole)
    read = [(_deciding(traces, pair), pair) for pair in pairs]
    usable = [(right, wrong, pair) for (right, wrong), pair in read if _has(masses, pair, right, wrong)]
    if not usable:
        raise BadInput("No pair has its first error in the response, at a token with a segment to build on.")
    right = torch.stack([masses[pair.right][..., position] for position, _, pair in usable])
    wrong = torch.stack([masses[pair.wrong][..., position] for _, position, pair in usable])
    segments = [THINKING if position < traces[pair.wrong].thinking.end else SUMMARY for _, position, pair in usable]
    rows = []
    for segment in (THINKING, SUMMARY):
        here = torch.tensor([name == segment for name in segments])
        if bool(here.any()):
            rows += _rows(segment, right[here], wrong[here], n_resamples, seed)
    config = {"matched_on": "task, hops, slot, position", "whole": whole, "max_distance": max_distance, "seed": seed}
    return BridgeGroups(
        right=right, wrong=wrong, segments=segments, rows=rows, n_unmatched=n_unmatched + len(pairs) - len(usable),
        config=config,
    )  # fmt: skip


def _deciding(traces: Sequence[Trace], pair: Pair) -> tuple[int, int]:
    """Return the positions in the right and the wrong trace that decide the first wrong token."""
    error = traces[pair.wrong].first_error_position
    into = 0 if error is None else max(0, error - pair.wrong_start)
    return pair.right_start + into - 1, pair.wrong_start + into - 1


def _has(masses: Sequence[Tensor], pair: Pair, right: int, wrong: int) -> bool:
    """Return whether both traces of a pair have masses at these positions."""
    of_right, of_wrong = masses[pair.right], masses[pair.wrong]
    inside = right < of_right.shape[-1] and wrong < of_wrong.shape[-1]
    return inside and not bool(of_right[..., right].isnan().any() or of_wrong[..., wrong].isnan().any())


def _rows(segment: str, right: Tensor, wrong: Tensor, n_resamples: int, seed: int) -> list[dict[str, Any]]:
    return [
        {"segment": segment, "layer": layer, **_compared(right[:, layer], wrong[:, layer], n_resamples, seed)}
        for layer in range(right.shape[1])
    ]


def _compared(right: Tensor, wrong: Tensor, n_resamples: int, seed: int) -> dict[str, Any]:
    """Return the entries of one row, from one layer's masses `[P, H]`."""
    differences = (wrong - right).mean(1).double().numpy()
    low, high = bootstrap_interval(differences, n_resamples=n_resamples, seed=seed)
    head = int((wrong - right).mean(0).argmin())
    return {
        "n": len(right),
        "right": float(right.mean()),
        "wrong": float(wrong.mean()),
        "difference": float(differences.mean()),
        "low": low,
        "high": high,
        "p": lower(differences),
        "head": head,
        "head_right": float(right[:, head].mean()),
        "head_wrong": float(wrong[:, head].mean()),
    }


def lower(differences: np.ndarray[Any, Any]) -> float:
    """Return the p-value of Wilcoxon's signed-rank test that paired differences are below 0; 1 if all are 0."""
    if not np.any(differences):
        return 1.0
    return float(scipy.stats.wilcoxon(differences, alternative="less").pvalue)
