"""Whether the traces of an engine are those of the local model: its log-probabilities beside the local scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite, nan
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor, nn

from chainwright._errors import BadInput
from chainwright._finding import Finding
from chainwright._registry import register
from chainwright.scoring import score_all
from chainwright.traces import Trace

N_CHECKED = 8
"""Traces of each part that are scored by the local model before they are used."""


@register("finding", "EngineCheck")
@dataclass(frozen=True, kw_only=True)
class EngineCheck(Finding):
    """How far the log-probabilities of an engine are from the local model's, in traces that it wrote.

    Attributes:
        engine: The engine.
        tolerance: Largest mean difference per token that was allowed, nats.
        rows: One per part: `part`, `n_traces` (written), `n_checked`, `n_tokens` (compared), `engine_logprob` and
            `local_logprob` (means per token), `difference` (mean of the absolute differences), `largest`, `n_text`
            (traces of which only the text came back).
    """

    engine: str
    tolerance: float
    rows: list[dict[str, Any]]

    def _mean(self, name: str) -> float:
        n = sum(row["n_tokens"] for row in self.rows)
        return float(sum(row["n_tokens"] * row[name] for row in self.rows) / n)

    def summary(self) -> str:
        """Return the comparison in a sentence."""
        n_traces, n_checked, n_tokens, n_text = (
            sum(row[name] for row in self.rows) for name in ("n_traces", "n_checked", "n_tokens", "n_text")
        )
        text = f" Of {n_text} traces only the text came back." if n_text else ""
        theirs, own = self._mean("engine_logprob"), self._mean("local_logprob")
        return (
            f"{n_traces} traces were written by {self.engine}. In {n_checked} of them, {n_tokens} tokens, it gave a "
            f"mean log-probability of {theirs:.4f} and this model gives {own:.4f}; they are "
            f"{self._mean('difference'):.2g} nats apart per token (allowed: {self.tolerance:g}), at most "
            f"{max(row['largest'] for row in self.rows):.2g}.{text}"
        )

    def to_frame(self) -> pa.Table:
        """Return one row per part."""
        return pa.Table.from_pylist(self.rows)


def checked(
    model: nn.Module, traces: Sequence[Trace], logprobs: Sequence[Tensor], engine: str, tolerance: float
) -> dict[str, Any]:
    """Return the comparison of some of the traces, a row of `EngineCheck` without its part.

    Args:
        model: The local model.
        traces: What the engine wrote.
        logprobs: What it gave the tokens of each response, NaN where unknown.
        engine: Its name.
        tolerance: Largest mean difference per token, nats.

    Raises:
        BadInput: They are further apart, or there is nothing to compare.
    """
    known = [i for i, each in enumerate(logprobs) if bool(each.isfinite().any())]
    chosen = known[:: max(1, len(known) // N_CHECKED)][:N_CHECKED]
    if not chosen:
        raise BadInput(
            f"None of the {len(traces)} responses of {engine} came with log-probabilities whose tokens are those of "
            "this model's tokenizer, so nothing can be checked; serve the model that is diagnosed, with a server that "
            "returns token ids."
        )
    found = score_all(model, [traces[i] for i in chosen])
    own = torch.cat([scores.logprob[traces[i].response_start :] for i, scores in zip(chosen, found, strict=True)])
    theirs = torch.cat([logprobs[i] for i in chosen])
    both = theirs.isfinite() & own.isfinite()
    apart = (theirs - own)[both].abs()
    row = {
        "n_traces": len(traces),
        "n_checked": len(chosen),
        "n_tokens": int(both.sum()),
        "engine_logprob": float(theirs[both].mean()),
        "local_logprob": float(own[both].mean()),
        "difference": float(apart.mean()),
        "largest": float(apart.max()),
    }
    if not row["difference"] <= tolerance:
        raise BadInput(
            f"The traces of {engine} are not this model's: over {row['n_tokens']} tokens of {len(chosen)} responses "
            f"it gave a mean log-probability of {row['engine_logprob']:.3f} and this model gives "
            f"{row['local_logprob']:.3f}, {row['difference']:.3g} nats apart per token, and {tolerance:g} is allowed; "
            "serve the same weights with log-probabilities of the model itself (not after temperature), or raise "
            "--engine-tolerance."
        )
    return row


def padded(values: Sequence[float | None], n: int) -> Tensor:
    """Return log-probabilities of n tokens, NaN where they are unknown or not finite."""
    numbers = [nan if value is None or not isfinite(value) else float(value) for value in values[:n]]
    return torch.tensor([*numbers, *[nan] * (n - len(numbers))], dtype=torch.float32)
