"""The verifier: of the model's two best tokens at a doubtful place, which one is right?

1. At a flagged token every candidate head is silenced alone.
2. A small network reads what the detector reads, and the log-probabilities of the model's first and second choice
   without each head. It says how probable the second is, of the two.
3. The two share their probability accordingly; all other tokens keep theirs.

A vote asks the heads for tokens, and most heads repeat the model's; the verifier reads how far each of the two tokens
moves. It cannot give a third token.

Source: ours. TCR (arXiv 2601.21214) takes a vote of three selected heads.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from chainwright._errors import BadInput
from chainwright.repair.tcr._mlp import Perceptron, train_perceptron
from chainwright.repair.tcr.config import TrainConfig
from chainwright.repair.tcr.detector import doubt_features
from chainwright.repair.tcr.token_repair import Seen


class Verifier:
    """Weighs the second choice against the first.

    Attributes:
        network: Takes `verifier_features`, returns one logit.
    """

    def __init__(self, network: Perceptron):
        self.network = network

    def p_second(self, features: Tensor) -> Tensor:
        """Return the probability of the second choice, of the two, `[N]`.

        Args:
            features: `verifier_features`, `[N, F]`.
        """
        with torch.no_grad():
            return self.network(features)[:, 0].sigmoid()  # type: ignore[no-any-return]

    def logits(self, seen: Seen, without: Tensor) -> Tensor:
        """Return the logits `[N, V]` in which the two best tokens share their probability as the verifier weighs them.

        Args:
            seen: What is known of N tokens.
            without: Next-token logits without each head, `[N, heads, V]`.
        """
        best = seen.logits.topk(2, dim=-1).indices
        pairs = pair_log_probs(without, best)
        p_second = self.p_second(verifier_features(doubt_features(seen), pairs.cpu())).to(seen.logits)
        return weighed(seen.logits, best, p_second)


def pair_log_probs(without: Tensor, best: Tensor) -> Tensor:
    """Return the log-probabilities of two tokens without each head, `[N, heads, 2]`.

    Args:
        without: Next-token logits, `[N, heads, V]`.
        best: The two tokens, `[N, 2]`.
    """
    log_probs = without.float().log_softmax(-1)
    return log_probs.gather(-1, best[:, None].expand(-1, log_probs.shape[1], -1))


def verifier_features(doubt: Tensor, pairs: Tensor) -> Tensor:
    """Return what the verifier reads, `[N, F + 3 heads]`: the detector's features, both log-probabilities, their gaps.

    Args:
        doubt: `doubt_features`, `[N, F]`.
        pairs: `pair_log_probs`, `[N, heads, 2]`.
    """
    pairs = pairs.float().clamp(min=-20.0)  # what is less probable than that says no more
    return torch.cat([doubt, pairs.flatten(1), pairs[..., 0] - pairs[..., 1]], dim=1)


def weighed(logits: Tensor, best: Tensor, p_second: Tensor) -> Tensor:
    """Return log-probabilities in which two tokens share the probability that both have together.

    Args:
        logits: `[N, V]`.
        best: The two tokens, `[N, 2]`.
        p_second: The share of the second, `[N]`.
    """
    log_probs = logits.log_softmax(-1)
    both = log_probs.gather(-1, best).logsumexp(-1, keepdim=True)
    shares = torch.stack([1 - p_second, p_second], dim=-1)
    return log_probs.scatter(-1, best, both + shares.clamp(min=1e-12).log())


def fit_verifier(
    features: Tensor, is_first: Tensor, is_second: Tensor, *, config: TrainConfig | None = None
) -> Verifier:
    """Return a verifier trained on tokens at which one of the two choices is right; others are ignored.

    Args:
        features: `verifier_features`, `[N, F]`.
        is_first: Whether the first choice is right, bool `[N]`.
        is_second: Whether the second is, bool `[N]`.
        config: How to train.

    Raises:
        BadInput: The second choice, or the first, is right at no token.
    """
    for name, is_right in (("first", is_first), ("second", is_second)):
        if not bool(is_right.any()):
            raise BadInput(
                f"The model's {name} choice is right at none of {len(is_right)} doubtful tokens, so there is nothing "
                "to verify; make more traces, or decide by a vote (decision='vote', --decision vote)."
            )
    usable = is_first | is_second
    network = train_perceptron(features[usable], is_second[usable].float(), 1, _cross_entropy, config or TrainConfig())
    return Verifier(network)


def _cross_entropy(outputs: Tensor, labels: Tensor) -> Tensor:
    return nn.functional.binary_cross_entropy_with_logits(outputs[:, 0], labels)
