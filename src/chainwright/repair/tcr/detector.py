"""Detectors: which coming tokens are doubtful.

- `EntropyDetector`: next-token entropy above tau, the paper's.
- `TrainedDetector`: the probability that the coming token is wrong, read from hidden states and logits.
- `GoldDetector`: knows the right chain; an upper bound for studies, not for use.

To add one, from inside or outside of the package, register a class under the kind "detector". It has `min_entropy`,
`reads_hidden` and `flags`, and, so that repairs with it can be saved, `settings()` (plain JSON values), optionally
`tensors()`, and a class method `restore(settings, tensors)`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from chainwright._errors import BadInput
from chainwright._registry import register
from chainwright.diagnose.right_tokens import right_token
from chainwright.repair.tcr._mlp import Perceptron, train_perceptron
from chainwright.repair.tcr._parts import part_settings, restore_part
from chainwright.repair.tcr.config import TrainConfig
from chainwright.repair.tcr.token_repair import Detector, Seen, entropy_nats
from chainwright.traces import Trace


@register("detector", "entropy")
@dataclass(frozen=True)
class EntropyDetector:
    """Flags a token when the next-token entropy is above a threshold.

    Attributes:
        tau: Threshold in nats.

    Source: TCR (arXiv 2601.21214), section 4: 0.3, and 0.4 for a reasoning model.
    """

    tau: float = 0.3

    def __post_init__(self) -> None:
        """Refuse a threshold that is no number from 0."""
        if not 0 <= self.tau < float("inf"):
            raise BadInput(f"tau must be an entropy in nats, 0 or more; got {self.tau}.")

    @property
    def min_entropy(self) -> float:
        """The threshold."""
        return self.tau

    @property
    def reads_hidden(self) -> bool:
        """Whether it reads hidden states."""
        return False

    def flags(self, seen: Seen) -> Tensor:
        """Return which entropies are above tau."""
        return entropy_nats(seen.logits) > self.tau

    def settings(self) -> dict[str, Any]:
        """Return the threshold."""
        return {"tau": self.tau}

    @classmethod
    def restore(cls, settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> EntropyDetector:
        """Return the detector with a saved threshold."""
        return cls(settings["tau"])


def doubt_features(seen: Seen) -> Tensor:
    """Return what a trained detector reads, `[N, F]`.

    Hidden states, entropy, the two best log-probabilities and their margin; and, where it is read, the lens.
    """
    log_probs = seen.logits.log_softmax(-1)
    best = log_probs.topk(2, dim=-1).values
    shape = torch.stack([entropy_nats(seen.logits), best[:, 0], best[:, 1], best[:, 0] - best[:, 1]], dim=-1)
    lens = [] if seen.lens is None else [seen.lens.flatten(1)]
    return torch.cat([seen.hidden.flatten(1), shape, *lens], dim=-1).float().cpu()


@register("detector", "trained")
class TrainedDetector:
    """Flags a token when a small network gives it more than a threshold probability of being wrong.

    Attributes:
        network: Takes `doubt_features`, returns one logit.
        threshold: Probability above which a token is flagged.
        min_entropy: Tokens with less entropy (nats) are never flagged: on those it was not tuned.
    """

    def __init__(self, network: Perceptron, threshold: float, min_entropy: float = 0.0):
        if not 0 <= threshold <= 1:
            raise BadInput(f"threshold must be a probability from 0 to 1; got {threshold}.")
        self.network = network
        self.threshold = threshold
        self.min_entropy = min_entropy

    @property
    def reads_hidden(self) -> bool:
        """Whether it reads hidden states."""
        return True

    def p_wrong(self, seen: Seen) -> Tensor:
        """Return the probability that each coming token is wrong, `[N]`."""
        with torch.no_grad():
            return self.network(doubt_features(seen))[:, 0].sigmoid()  # type: ignore[no-any-return]

    def flags(self, seen: Seen) -> Tensor:
        """Return which tokens are uncertain and more likely wrong than the threshold."""
        entropy = entropy_nats(seen.logits).cpu()
        return (self.p_wrong(seen) > self.threshold) & (entropy > self.min_entropy)

    def settings(self) -> dict[str, Any]:
        """Return both thresholds."""
        return {"threshold": self.threshold, "min_entropy": self.min_entropy}

    def tensors(self) -> dict[str, Tensor]:
        """Return the network's weights."""
        return dict(self.network.state_dict())

    @classmethod
    def restore(cls, settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> TrainedDetector:
        """Return the detector with saved weights and thresholds."""
        return cls(Perceptron.restore(tensors), settings["threshold"], settings["min_entropy"])


def fit_detector(features: Tensor, is_wrong: Tensor, *, config: TrainConfig | None = None) -> Perceptron:
    """Return a network that tells wrong tokens from right ones.

    Args:
        features: `doubt_features` of tokens, `[N, F]`.
        is_wrong: bool `[N]`.
        config: How to train.

    Raises:
        BadInput: All tokens are right, or all are wrong.
    """
    n_wrong = int(is_wrong.sum())
    if n_wrong in (0, len(is_wrong)):
        only = "right" if n_wrong == 0 else "wrong"
        raise BadInput(
            f"All {len(is_wrong)} tokens are {only}, so nothing tells wrong from right; fit on harder cells."
        )
    return train_perceptron(features, is_wrong.float(), 1, _cross_entropy, config or TrainConfig())


def _cross_entropy(outputs: Tensor, labels: Tensor) -> Tensor:
    return nn.functional.binary_cross_entropy_with_logits(outputs[:, 0], labels)


class GoldDetector:
    """Flags a token when the model is about to leave the right chain, known from the problems.

    It makes TCR-gold: what the repair would reach if every first error were found and nothing else were flagged. Once
    a chain has left the right one it flags nothing more.

    Attributes:
        right: The right continuation of each prompt, by the prompt's tokens.
    """

    min_entropy = -1.0

    def __init__(self, right: Mapping[tuple[int, ...], Sequence[int]]):
        self.right = {tuple(prompt): list(ids) for prompt, ids in right.items()}

    @classmethod
    def of_traces(cls, tokenizer: PreTrainedTokenizerBase, traces: Sequence[Trace]) -> GoldDetector:
        """Return the detector that flags the first errors of some traces, such as their pivots, and nothing else.

        What is right is then the response up to its first error and the right token there; a response without an error
        is right as a whole, and of one whose right token is unknown nothing is.

        Raises:
            BadInput: Two traces have the same prompt, so it is not clear which response is meant.
        """
        right: dict[tuple[int, ...], list[int]] = {}
        for i, trace in enumerate(traces):
            prompt = tuple(trace.input_ids[: trace.response_start].tolist())
            if prompt in right:
                raise BadInput(f"Trace {i} has the prompt of an earlier one; pass one trace per problem.")
            position, error = trace.first_error_position, trace.first_error
            due = None if position is None or error is None else right_token(tokenizer, trace)
            if due is not None and position is not None:
                right[prompt] = [*trace.input_ids[trace.response_start : position].tolist(), due]
            else:
                right[prompt] = trace.response_ids.tolist() if error is None and trace.is_correct else []
        return cls(right)

    @property
    def reads_hidden(self) -> bool:
        """Whether it reads hidden states."""
        return False

    def right_ids(self, seen: Seen) -> list[int | None]:
        """Return the token due in each row, None where the chain is not the right one or is over."""
        return [self._due(list(p), list(c)) for p, c in zip(seen.prompts, seen.contexts, strict=True)]

    def _due(self, prompt: list[int], context: list[int]) -> int | None:
        right = self.right.get(tuple(prompt))
        if right is None:
            raise BadInput(
                "The gold detector met a prompt that is none of its problems; make it from the same problems."
            )
        written = context[len(prompt) :]
        return right[len(written)] if len(written) < len(right) and right[: len(written)] == written else None

    def flags(self, seen: Seen) -> Tensor:
        """Return where the model's own choice is wrong."""
        chosen = seen.logits.argmax(-1).tolist()
        due = self.right_ids(seen)
        return torch.tensor([d is not None and c != d for c, d in zip(chosen, due, strict=True)], dtype=torch.bool)


def detector_settings(detector: Detector) -> dict[str, Any]:
    """Return a detector's settings for `restore_detector`.

    Raises:
        BadInput: Its class is not registered, or has no `settings`.
    """
    return part_settings("detector", detector)


def restore_detector(settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Detector:
    """Return the detector of `detector_settings` with its tensors.

    Raises:
        BadInput: No detector of that kind is registered.
    """
    return cast(Detector, restore_part("detector", settings, tensors))


__all__ = [
    "Detector",
    "EntropyDetector",
    "GoldDetector",
    "TrainedDetector",
    "detector_settings",
    "doubt_features",
    "entropy_nats",
    "fit_detector",
    "restore_detector",
]
