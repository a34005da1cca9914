"""The records of the findings on iteration heads in a trained model (`chainwright.reproduce.findings`).

Those on trainings from scratch are read off the table that the command prints.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from chainwright import tasks
from chainwright._stats import bootstrap_interval, wilson
from chainwright.diagnose.iteration.findings import IterationScores
from chainwright.reproduce.iteration_heads.study import IterationHeads

_LINK = "recall"  # the paper's shifted diagonal in chains that restate every input
_LEAST, _SIGNIFICANCE = 0.3, 0.05


def records_of(found: IterationHeads, command: str) -> list[dict[str, Any]]:
    """Return what `Result` takes for each finding on the model that was looked at; none without its scores.

    Args:
        found: What a reproduction found.
        command: What ran it.
    """
    scores = {task: one for task, one in found.scores.items() if _LINK in one.links}
    if not scores:
        return []
    seeds = sorted({int(one.config.get("seed_of_problems", 0)) for one in scores.values()})
    common = {"model": found.model, "command": command, "seeds": seeds}
    return [{**record, **common} for record in (_heads(scores), _causal(scores), _overlap(found))]


def _heads(scores: dict[str, IterationScores]) -> dict[str, Any]:
    shown, has_head = [], []
    for task, one in scores.items():
        k, head = one.link(_LINK), one.ranking(_LINK)[0]
        score, p = float(one.score[k][head]), float(one.p_value[k][head])
        has_head.append(score >= _LEAST and p < _SIGNIFICANCE)
        shown.append(
            f"{tasks.title(task)} L{head[0]}H{head[1]} {score:.2f} (shuffled {float(one.null_mean[k][head]):.2f}, "
            f"p {p:.3f}, {one.n_steps[k]} steps)"
        )
    n, total = sum(has_head), len(has_head)
    low, high = wilson(n, total)
    return {
        "finding": "iteration-heads",
        "value": n / total,
        "shown": f"{n} of {total} tasks",
        "low": low,
        "high": high,
        "n": total,
        "n_what": "tasks",
        "note": f"{'; '.join(shown)}.",
    }


def _causal(scores: dict[str, IterationScores]) -> dict[str, Any]:
    lost = np.array([_lost(one) for one in scores.values()])
    low, high = bootstrap_interval(lost, n_resamples=2000, seed=0)
    each = "; ".join(f"{tasks.title(task)} {value:+.2f}" for task, value in zip(scores, lost, strict=True))
    return {
        "finding": "iteration-causal",
        "value": float(lost.mean()),
        "shown": f"{lost.mean():+.3f} of the tokens",
        "low": low,
        "high": high,
        "n": len(lost),
        "n_what": "tasks",
        "note": f"{each}.",
    }


def _lost(one: IterationScores) -> float:
    """Return the share of tokens lost without the best head, less the mean over the random controls."""
    k, best = one.link(_LINK), list(one.ranking(_LINK)[0])
    lost = one.accuracy[k] - one.accuracy_without[:, k]
    is_control = [why == "control" for why in one.checked_for]
    controls = [float(lost[c]) for c, is_one in enumerate(is_control) if is_one]
    mine = next(float(lost[c]) for c, head in enumerate(one.checked) if list(head) == best)
    return mine - (sum(controls) / len(controls) if controls else 0.0)


def _overlap(found: IterationHeads) -> dict[str, Any]:
    overlaps = {task: by_link[_LINK] for task, by_link in found.overlaps.items() if _LINK in by_link}
    n, total = sum(len(one.shared) for one in overlaps.values()), sum(one.n for one in overlaps.values())
    expected = sum(one.expected for one in overlaps.values())
    ranks = "; ".join(f"{tasks.title(task)} {one.rank_correlation:+.2f}" for task, one in overlaps.items())
    return {
        "finding": "iteration-cp-heads",
        "value": (n - expected) / total,
        "shown": f"{n} of {total} ({expected:.1f} by chance)",
        "n": total,
        "n_what": "heads",
        "note": f"Rank correlation over all heads: {ranks}.",
    }
