"""Choosing on tune lessons: how many heads vote, which threshold flags, and how many chains that makes right."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from chainwright.repair.tcr.selector import best_is_right, hit_at_1
from chainwright.repair.tcr.training_data import Outcomes
from chainwright.repair.tcr.verifier import Verifier

VOTES = (3, 1)  # the paper's, and what may take its place


class Detection(NamedTuple):
    """How well first wrong tokens are found, each chain followed up to its first wrong token.

    Attributes:
        precision: Share of flagged tokens that are wrong.
        recall: Share of chains with a wrong token whose first one is flagged.
        rate: Share of tokens that are flagged.
    """

    precision: float
    recall: float
    rate: float


def detection(found: Outcomes, flagged: Tensor) -> Detection:
    """Return precision and recall of flags `[S]` on first wrong tokens."""
    before = _up_to_first_error(found)
    wrong = ~found.is_right & before
    hit = int((flagged & wrong).sum())
    n_flagged = int((flagged & before).sum())
    return Detection(hit / max(1, n_flagged), hit / max(1, int(wrong.sum())), n_flagged / max(1, int(before.sum())))


def ranking(found: Outcomes, doubts: Tensor, min_entropy: float) -> float:
    """Return how often a first wrong token ranks above a right one, of the tokens above an entropy.

    Args:
        found: What the model does at each token.
        doubts: Higher where a token is more doubtful, `[S]`.
        min_entropy: Tokens with less entropy (nats) are not compared, since they are never flagged.

    Returns:
        The area under the curve of recall by false alarms, ties counted as a half; NaN without a pair.
    """
    counted = _up_to_first_error(found) & (found.entropy > min_entropy)
    wrong, right = doubts[counted & ~found.is_right], doubts[counted & found.is_right]
    pairs = wrong[:, None] - right[None]
    return float(((pairs > 0).double() + (pairs == 0).double() / 2).mean())


def _up_to_first_error(found: Outcomes) -> Tensor:
    """Return which tokens are at or before the first wrong one of their chain."""
    wrong = (~found.is_right).long()
    earlier = wrong.cumsum(0) - wrong
    starts = torch.cat([torch.tensor([True]), found.lesson[1:] != found.lesson[:-1]])
    at_start = torch.zeros(int(found.lesson.max()) + 1, dtype=torch.long)
    at_start[found.lesson[starts]] = earlier[starts]
    return earlier == at_start[found.lesson]


def exact_share(found: Outcomes, flagged: Tensor, decided: Tensor) -> float:
    """Return the share of chains that are right as a whole when flagged tokens are decided again."""
    return float(found.chains_right(found.repaired(flagged, decided)).float().mean())


class Decided(NamedTuple):
    """What each way of deciding makes of the doubtful tokens of some lessons.

    Attributes:
        scores: A selector's, `[D, K + 1]`.
        by_vote: Whether a vote gives the right token, bool `[D]`.
        by_verifier: Whether the verifier does; None without one.
        by_blind: Whether one does that knows nothing of the runs without heads.
    """

    scores: Tensor
    by_vote: Tensor
    by_verifier: Tensor | None
    by_blind: Tensor | None

    @property
    def best(self) -> Tensor:
        """Return what the repair decides by."""
        return self.by_vote if self.by_verifier is None else self.by_verifier

    @classmethod
    def of(
        cls, found: Outcomes, scores: Tensor, n_votes: int, verifier: Verifier | None, blind: Verifier | None
    ) -> Decided:
        """Return what they make of these outcomes."""
        read = (found.verifier_features, found.doubt[found.doubtful])
        judged = [
            None if judge is None else found.verified(judge.p_second(features))
            for judge, features in zip((verifier, blind), read, strict=True)
        ]
        return cls(scores, found.decided(scores, n_votes), *judged)


def tuned_votes(held: Outcomes, scores: Tensor) -> int:
    """Return 3, or 1 if with gold flags it makes more chains right by over two standard errors of the difference."""
    three, one = (held.chains_right(held.repaired(~held.is_right, held.decided(scores, n))) for n in VOTES)
    won, lost = int((one & ~three).sum()), int((three & ~one).sum())
    return VOTES[won - lost > 2 * (won + lost) ** 0.5]


def tuned_threshold(held: Outcomes, flags: Sequence[Tensor], decided: Decided, slack: float) -> int:
    """Return which flags to take: the last of those that make nearly as many chains right as the best.

    Args:
        held: Outcomes of tune lessons.
        flags: Flagged tokens, bool `[S]`, from the lowest threshold to the highest.
        decided: What is made of them.
        slack: Share of chains that fewer flags may cost.
    """
    shares = [exact_share(held, flagged, decided.best) for flagged in flags]
    return max(i for i, share in enumerate(shares) if share >= max(shares) - slack)


def tune_figures(held: Outcomes, decided: Decided, flagged: Tensor) -> dict[str, float]:
    """Return what was measured on tune lessons by name.

    Args:
        held: Their outcomes.
        decided: What each way of deciding makes of them.
        flagged: What the chosen detector flags, bool `[S]`.
    """
    is_error = ~held.is_right[held.doubtful]
    scores, labels = decided.scores, held.labels
    chance = labels.float().mean(-1)
    at = detection(held, flagged)
    entropy = detection(held, held.entropy > 0.3)
    gold = ~held.is_right
    decisions = {"decided by the verifier": decided.by_verifier, "by a verifier that knows no runs": decided.by_blind}
    return {
        "chains right, model alone": float(held.chains_right(held.is_right).float().mean()),
        "chains right, repaired": exact_share(held, flagged, decided.best),
        "chains right, decided by vote": exact_share(held, flagged, decided.by_vote),
        **{f"chains right, {how}": exact_share(held, flagged, d) for how, d in decisions.items() if d is not None},
        "chains right, entropy 0.3, decided by vote": exact_share(held, held.entropy > 0.3, decided.by_vote),
        "chains right, gold flags, decided by vote": exact_share(held, gold, decided.by_vote),
        "chains right, gold flags, best head each time": exact_share(held, gold, labels[:, :-1].any(1)),
        "chains right, gold flags, second choice": exact_share(held, gold, held.second_is_right[held.doubtful]),
        "detector precision": at.precision,
        "detector recall": at.recall,
        "flagged tokens": at.rate,
        "entropy 0.3 precision": entropy.precision,
        "entropy 0.3 recall": entropy.recall,
        "Hit@1 at doubtful tokens": hit_at_1(scores, labels),
        "Hit@1 at doubtful tokens, random": float(chance.mean()),
        "Hit@1 at errors": hit_at_1(scores[is_error], labels[is_error]),
        "Hit@1 at errors, random": float(chance[is_error].mean()),
        "best choice right at doubtful tokens": best_is_right(scores, labels),
    }
