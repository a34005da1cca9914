"""What TCR does at a doubtful token: detector, selector and vote, or verifier.

1. The detector flags a token before it is chosen: by entropy, or by a small network.
2. Some heads are silenced, each alone, and the next token is read each time: with a vote those that the selector
   ranks first (none, if it ranks silencing nothing first), with the verifier all candidates.
3. A vote: a majority wins; without one, the token with the highest mean probability. The verifier: a small network
   reads what each silenced head does to the model's two best tokens, and the two share their probability accordingly.

Only arithmetic stands here; where the runs without heads come from is `doubts`. The same formulas as in the package
chainwright (`repair/tcr`), whose tests compare the two.

Source: TCR (arXiv 2601.21214), section 4; the trained detector, the light selector's inputs and the verifier are ours.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from chainwright_vllm.networks import Perceptron
from chainwright_vllm.spec import Head


class Seen(NamedTuple):
    """What is known of N tokens before they are chosen.

    Attributes:
        hidden: What the read layers put out at the last position, `[N, R, D]`; R = 0 where nothing reads them.
        logits: The model's own next-token logits `[N, V]`, float32.
    """

    hidden: Tensor
    logits: Tensor


def entropy_nats(logits: Tensor) -> Tensor:
    """Return the entropy of the distributions that logits `[..., V]` make, in nats."""
    entropy: Tensor = torch.special.entr(logits.softmax(-1)).sum(-1)
    return entropy


def doubt_features(seen: Seen) -> Tensor:
    """Return what trained networks read of each token, `[N, F]`.

    Hidden states, entropy, the two best log-probabilities and their margin.
    """
    best = seen.logits.log_softmax(-1).topk(2, dim=-1).values
    shape = torch.stack([entropy_nats(seen.logits), best[:, 0], best[:, 1], best[:, 0] - best[:, 1]], dim=-1)
    return torch.cat([seen.hidden.flatten(1), shape], dim=-1).float().cpu()


@dataclass(frozen=True)
class Detector:
    """Flags doubtful tokens.

    Attributes:
        min_entropy: Tokens with no more entropy (nats) are never flagged.
        network: Takes `doubt_features`; None where entropy alone decides.
        threshold: Probability of being wrong above which a token is flagged.
    """

    min_entropy: float
    network: Perceptron | None = None
    threshold: float = 0.0

    def flags(self, seen: Seen) -> Tensor:
        """Return which tokens are doubtful, bool `[N]` on the CPU."""
        flags = entropy_nats(seen.logits).cpu() > self.min_entropy
        if self.network is not None:
            flags &= self.network(doubt_features(seen))[:, 0].sigmoid() > self.threshold
        return flags


class Selector(Protocol):
    """Ranks the candidate heads at a doubtful token."""

    def scores(self, seen: Seen) -> Tensor:
        """Return `[N, heads + 1]`: higher is better, the last column is to silence nothing."""


@dataclass(frozen=True)
class LightSelector:
    """Reads hidden states.

    Attributes:
        network: Takes them flattened.
    """

    network: Perceptron

    def scores(self, seen: Seen) -> Tensor:
        """Return the network's scores."""
        out: Tensor = self.network(seen.hidden.flatten(1))
        return out


@dataclass(frozen=True)
class FixedSelector:
    """Ranks the heads in one order everywhere; never silences nothing.

    Attributes:
        n_heads: Candidate heads.
        order: Indices of them, best first.
    """

    n_heads: int
    order: tuple[int, ...]

    def scores(self, seen: Seen) -> Tensor:
        """Return the same scores for each token."""
        row = torch.full((self.n_heads + 1,), -math.inf)
        row[list(self.order)] = -torch.arange(len(self.order)).float()
        return row.expand(len(seen.logits), -1)


@dataclass(frozen=True, eq=False)
class TCR:
    """A saved TCR, ready to decide.

    Attributes:
        heads: The candidate heads.
        layers: The layers whose output is read.
        positions: Where heads are silenced, "all" or "last".
        scale: What they are multiplied by.
        end_ids: Tokens after which nothing is decided any more.
        n_votes: Heads that vote.
        detector: What flags.
        selector: What ranks the heads for a vote; None with a verifier.
        verifier: Decides between the two best tokens; None with a vote.
    """

    heads: tuple[Head, ...]
    layers: tuple[int, ...]
    positions: str
    scale: float
    end_ids: tuple[int, ...]
    n_votes: int
    detector: Detector
    selector: Selector | None = None
    verifier: Perceptron | None = None

    def heads_to_ask(self, seen: Seen) -> list[tuple[Head, ...]]:
        """Return for each of N doubtful tokens the heads without which the model is to be asked; none leaves it."""
        if self.selector is None:
            return [self.heads] * len(seen.logits)
        scores = self.selector.scores(seen).cpu()
        n_votes = min(self.n_votes, len(self.heads))
        out: list[tuple[Head, ...]] = []
        for row in scores:
            acts = int(row.argmax()) < len(self.heads)
            out.append(tuple(self.heads[k] for k in row[:-1].topk(n_votes).indices.tolist()) if acts else ())
        return out

    def kept(self, logits: Tensor, best: Tensor) -> Tensor:
        """Return what has to be kept of a run without a head, to decide later.

        Args:
            logits: Its next-token logits `[V]`.
            best: The model's own two best tokens, `[2]`.

        Returns:
            The two tokens' log-probabilities `[2]` for the verifier, the logits `[V]` for a vote.
        """
        return logits.float() if self.verifier is None else logits.float().log_softmax(-1)[best]

    def decided(self, seen: Seen, without: Tensor) -> Tensor:
        """Return the logits `[V]` that take the place of one token's.

        Args:
            seen: What is known of the token, N = 1.
            without: What was `kept` of the runs without each head, stacked in the order of `heads_to_ask`.
        """
        if self.verifier is None:
            return vote(without[None])[0]
        best = seen.logits.topk(2, dim=-1).indices
        features = verifier_features(doubt_features(seen), without[None].cpu())
        return weighed(seen.logits, best, self.verifier(features)[:, 0].sigmoid().to(seen.logits))[0]


def vote(logits: Tensor) -> Tensor:
    """Return the logits `[N, V]` that a vote of next-token distributions `[N, heads, V]` makes.

    A token that more than half of the heads put first wins; without one, that of the voted tokens whose mean
    probability over all heads is highest. The result is the log of the mean distribution of the winner's voters.
    """
    probs = logits.softmax(-1)
    votes = probs.argmax(-1)  # (row, head)
    n_same = (votes[:, :, None] == votes[:, None, :]).sum(-1)
    mean_probs = probs.mean(1).gather(-1, votes)
    worth = torch.where(2 * n_same > logits.shape[1], mean_probs + 1, mean_probs)
    winner = votes.gather(-1, worth.argmax(-1, keepdim=True))
    voters = (votes == winner)[:, :, None]
    return ((probs * voters).sum(1) / voters.sum(1)).log()


def verifier_features(doubt: Tensor, pairs: Tensor) -> Tensor:
    """Return what the verifier reads, `[N, F + 3 heads]`.

    Args:
        doubt: `doubt_features`, `[N, F]`.
        pairs: Log-probabilities of the two best tokens without each head, `[N, heads, 2]`.
    """
    pairs = pairs.float().clamp(min=-20.0)  # what is less probable than that says no more
    return torch.cat([doubt, pairs.flatten(1), pairs[..., 0] - pairs[..., 1]], dim=1)


def weighed(logits: Tensor, best: Tensor, p_second: Tensor) -> Tensor:
    """Return log-probabilities `[N, V]` in which two tokens share the probability that both have together.

    Args:
        logits: `[N, V]`.
        best: The two tokens, `[N, 2]`.
        p_second: The share of the second, `[N]`.
    """
    log_probs = logits.log_softmax(-1)
    both = log_probs.gather(-1, best).logsumexp(-1, keepdim=True)
    shares = torch.stack([1 - p_second, p_second], dim=-1)
    return log_probs.scatter(-1, best, both + shares.clamp(min=1e-12).log())
