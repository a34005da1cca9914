"""What the repair's parts do at first errors, where whole right chains are not known (many right wordings).

Lessons are then the model's own responses up to their first errors, with the right token there. At each error: which
decision would give the right token, were it flagged? At each doubtful right token: which would leave it right? And
which flags find the errors?
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from chainwright.repair.tcr.detector import TrainedDetector
from chainwright.repair.tcr.fit import choice_scores, detection
from chainwright.repair.tcr.repair import TCR
from chainwright.repair.tcr.thresholds import ranking
from chainwright.repair.tcr.training_data import Outcomes


def first_error_rows(found: Outcomes, tcr: TCR, tau: float) -> dict[str, list[dict[str, Any]]]:
    """Return the tables "decisions" and "flags".

    Args:
        found: What the model does at the tokens of its own responses.
        tcr: The repair.
        tau: Threshold of the entropy detector, nats.
    """
    return {"decisions": _decisions(found, tcr), "flags": _flags(found, tcr, tau)}


def _decisions(found: Outcomes, tcr: TCR) -> list[dict[str, Any]]:
    scores = choice_scores(tcr.selector, found)
    bold = scores.clone()
    bold[:, -1] = float("-inf")
    random = torch.rand(scores.shape, generator=torch.Generator().manual_seed(0))
    random[:, -1] = -1.0
    is_right = found.is_right[found.doubtful]
    decisions = {
        "verifier": None if tcr.verifier is None else found.verified(tcr.verifier.p_second(found.verifier_features)),
        "selector, 3 votes": found.decided(scores, 3),
        "selector, 1 vote": found.decided(scores, 1),
        "selector that never abstains, 3 votes": found.decided(bold, 3),
        "random head": found.decided(random, 1),
        "any head, chosen by the answer": found.labels[:, :-1].any(1),
        "second choice": found.second_is_right[found.doubtful],
    }
    return [
        {
            "decision": name,
            "errors fixed": _share(decided[~is_right]),
            "errors": int((~is_right).sum()),
            "doubtful right tokens kept": _share(decided[is_right]),
            "right tokens": int(is_right.sum()),
        }
        for name, decided in decisions.items()
        if decided is not None
    ]


def _flags(found: Outcomes, tcr: TCR, tau: float) -> list[dict[str, Any]]:
    flags = {f"entropy above {tau:g}": (found.entropy > tau, found.entropy)}
    if isinstance(tcr.detector, TrainedDetector):
        with torch.no_grad():
            doubts = tcr.detector.network(found.doubt)[:, 0].sigmoid()
        flagged = (doubts > tcr.detector.threshold) & (found.entropy > tcr.detector.min_entropy)
        flags["trained detector"] = (flagged, doubts)
    floor = tcr.detector.min_entropy
    rows = []
    for name, (flagged, doubts) in flags.items():
        at = detection(found, flagged)
        rows.append(
            {
                "flags": name,
                "flagged": at.rate,
                "precision": at.precision,
                "recall": at.recall,
                "area under the curve": ranking(found, doubts, floor),
            }
        )
    return rows


def _share(flags: Tensor) -> float | None:
    return float(flags.float().mean()) if len(flags) else None


__all__ = ["first_error_rows"]
