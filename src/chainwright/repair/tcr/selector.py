"""Selectors: which heads to silence at a doubtful token, or none.

A selector scores the candidate heads and, last, the choice to silence nothing. The labels and the loss are the same for
every form: y[k] = 1 where that choice gives the right token, and -log(sum_k y_k exp f_k / sum_k exp f_k).

- `LightSelector` reads the model's own hidden states at the token; no second model.
- `ClassifierSelector` (`lora_selector`) is the paper's: a small language model with LoRA that reads the context.
- `RandomSelector` and `FixedSelector` are baselines.

To add one, from inside or outside of the package, register a class under the kind "selector". It has `reads_hidden` and
`scores`, and, so that repairs with it can be saved, `settings()` (plain JSON values), optionally `tensors()`, and a
class method `restore(settings, tensors)`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from random import Random
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from chainwright._errors import BadInput
from chainwright._registry import register
from chainwright.repair.tcr._mlp import Perceptron, train_perceptron
from chainwright.repair.tcr._parts import part_settings, restore_part
from chainwright.repair.tcr.config import TrainConfig
from chainwright.repair.tcr.token_repair import Seen


class Selector(Protocol):
    """Scores the choices at doubtful tokens."""

    @property
    def reads_hidden(self) -> bool:
        """Whether it reads `Seen.hidden`."""

    def scores(self, seen: Seen) -> Tensor:
        """Return `[N, heads + 1]`: higher is better, the last column is to silence nothing."""


def multilabel_loss(scores: Tensor, labels: Tensor) -> Tensor:
    """Return the mean of `-log(sum_k y_k exp f_k / sum_k exp f_k)`.

    Args:
        scores: f, `[N, K]`.
        labels: y, 0 or 1, `[N, K]`, at least one 1 a row.

    Source: TCR (arXiv 2601.21214), section 4.
    """
    positive = scores.masked_fill(labels == 0, float("-inf")).logsumexp(-1)
    return (scores.logsumexp(-1) - positive).mean()


def hit_at_1(scores: Tensor, labels: Tensor) -> float:
    """Return the chance that a choice drawn from softmax(scores) is a right one, averaged over tokens.

    Args:
        scores: `[N, K]`.
        labels: 0 or 1, `[N, K]`.
    """
    return float((scores.softmax(-1) * labels).sum(-1).mean())


def best_is_right(scores: Tensor, labels: Tensor) -> float:
    """Return the share of tokens at which the highest-scored choice is a right one."""
    return float(labels.gather(-1, scores.argmax(-1, keepdim=True)).float().mean())


@register("selector", "light")
class LightSelector:
    """Reads the outputs of a few layers at the token that comes before the doubtful one.

    Attributes:
        network: Takes the flattened hidden states, returns the scores.
    """

    def __init__(self, network: Perceptron):
        self.network = network

    @property
    def reads_hidden(self) -> bool:
        """Whether it reads hidden states."""
        return True

    def scores(self, seen: Seen) -> Tensor:
        """Return the network's scores."""
        with torch.no_grad():
            return self.network(choice_features(seen))  # type: ignore[no-any-return]

    def settings(self) -> dict[str, Any]:
        """Return no settings: the weights are all there is."""
        return {}

    def tensors(self) -> dict[str, Tensor]:
        """Return the network's weights."""
        return dict(self.network.state_dict())

    @classmethod
    def restore(cls, settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> LightSelector:
        """Return the selector with saved weights."""
        return cls(Perceptron.restore(tensors))


def choice_features(seen: Seen) -> Tensor:
    """Return what the light selector reads, `[N, R D]`."""
    return seen.hidden.flatten(1).float().cpu()


def fit_light_selector(features: Tensor, labels: Tensor, *, config: TrainConfig | None = None) -> LightSelector:
    """Return a light selector trained on tokens and which choices are right at each.

    Args:
        features: `choice_features`, `[N, F]`.
        labels: `[N, heads + 1]`, 1 where the choice gives the right token. Rows without a 1 are ignored.
        config: How to train.

    Raises:
        BadInput: No token has a right choice.
    """
    usable = labels.sum(-1) > 0
    if not bool(usable.any()):
        raise BadInput(
            "At no token does any choice of heads give the right one, so there is nothing to learn to select."
        )
    network = train_perceptron(
        features[usable], labels[usable].float(), labels.shape[1], multilabel_loss, config or TrainConfig()
    )
    return LightSelector(network)


class NeverAbstains:
    """Another selector without the choice to silence nothing: for tokens that are known to be wrong."""

    def __init__(self, inner: Selector):
        self.inner = inner

    @property
    def reads_hidden(self) -> bool:
        """Whether it reads hidden states."""
        return self.inner.reads_hidden

    def scores(self, seen: Seen) -> Tensor:
        """Return the inner scores with the last column at minus infinity."""
        scores = self.inner.scores(seen).clone()
        scores[:, -1] = -math.inf
        return scores


@register("selector", "random")
class RandomSelector:
    """Scores heads at random, the same for the same tokens and seed; never silences nothing."""

    def __init__(self, n_heads: int, seed: int = 0):
        self.n_heads = n_heads
        self.seed = seed

    @property
    def reads_hidden(self) -> bool:
        """Whether it reads hidden states."""
        return False

    def scores(self, seen: Seen) -> Tensor:
        """Return random scores."""
        draws = [Random(f"{self.seed}/{list(context)}") for context in seen.contexts]
        return torch.tensor([[*(d.random() for _ in range(self.n_heads)), -math.inf] for d in draws])

    def settings(self) -> dict[str, Any]:
        """Return the number of heads and the seed."""
        return {"n_heads": self.n_heads, "seed": self.seed}

    @classmethod
    def restore(cls, settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> RandomSelector:
        """Return the selector with a saved seed."""
        return cls(settings["n_heads"], settings["seed"])


@register("selector", "fixed")
class FixedSelector:
    """Ranks the heads in one order everywhere; never silences nothing.

    Attributes:
        order: Indices into the candidate heads, best first; heads that it lacks come last.
    """

    def __init__(self, n_heads: int, order: Sequence[int]):
        self.n_heads = n_heads
        self.order = list(order)

    @property
    def reads_hidden(self) -> bool:
        """Whether it reads hidden states."""
        return False

    def scores(self, seen: Seen) -> Tensor:
        """Return the same scores for each token."""
        row = torch.full((self.n_heads + 1,), -math.inf)
        row[self.order] = -torch.arange(len(self.order)).float()
        return row.expand(len(seen.logits), -1)

    def settings(self) -> dict[str, Any]:
        """Return the number of heads and their order."""
        return {"n_heads": self.n_heads, "order": self.order}

    @classmethod
    def restore(cls, settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> FixedSelector:
        """Return the selector with a saved order."""
        return cls(settings["n_heads"], settings["order"])


def selector_settings(selector: Selector) -> dict[str, Any]:
    """Return a selector's settings for `restore_selector`.

    Raises:
        BadInput: Its class is not registered, or has no `settings`.
    """
    return part_settings("selector", selector)


def restore_selector(settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Selector:
    """Return the selector of `selector_settings` with its tensors.

    Raises:
        BadInput: No selector of that kind is registered.
    """
    return cast(Selector, restore_part("selector", settings, tensors))
