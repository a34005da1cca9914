"""What a study of back attention found, as one finding: tables of fits and trainings, readings, the conflict."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from chainwright._finding import Finding
from chainwright._registry import register

if TYPE_CHECKING:
    from plotly.graph_objects import Figure


@register("finding", "BackAttentionFinding")
@dataclass(frozen=True, kw_only=True)
class BackAttentionFinding(Finding):
    """Two-hop questions repaired beside a frozen model, and arithmetic from scratch.

    Attributes:
        rows: One for each variant of the repair: variant, parameters, seeds, one hop, held_out and the other parts, and
            the shares of the usual wrong answers; the first is no change.
        scratch: One for each training from scratch: variant, parameters, accuracy, by seed, steps to 90%.
        readings: Where the main module reads at the last position, right against wrong.
        conflict: Right against the usual wrong answer by position and depth, "before" and "after".
        failures: What is answered to held-out compositions, as shares: right (e3), the first hop's answer (e2), the
            second relation of e1, e1 itself, or something else; without a module, with it, and with LoRA.
        cost: One for the plain model and each source layer: milliseconds to the first token and per token, their
            ratios, and 1 + (L - s) / L; empty if it was not measured.
    """

    rows: list[dict[str, Any]]
    scratch: list[dict[str, Any]] = field(default_factory=list)
    readings: Mapping[str, Any] = field(default_factory=dict)
    conflict: Mapping[str, Any] = field(default_factory=dict)
    failures: list[dict[str, Any]] = field(default_factory=list)
    cost: list[dict[str, Any]] = field(default_factory=list)

    def summary(self) -> str:
        """Return what each variant reaches, one line per variant."""
        lines = [
            f"{row['variant']}: {row['held_out']:.1%} of held-out compositions, {row['one hop']:.1%} of single hops, "
            f"{row['parameters']:,} parameters"
            for row in self.rows
        ]
        lines += [
            f"{row['variant']} from scratch: {row['accuracy']:.1%} with {row['parameters']:,} parameters, 90% after "
            f"steps {', '.join(map(str, row['steps to 90%']))}"
            for row in self.scratch
        ]
        return "\n".join(lines)

    def to_frame(self) -> pa.Table:
        """Return one row per variant."""
        return pa.Table.from_pylist(self.rows)

    def plot(self) -> Figure:
        """Return the held-out share of each variant as bars."""
        from chainwright.figures.back_attention import fits

        return fits(self.rows)
