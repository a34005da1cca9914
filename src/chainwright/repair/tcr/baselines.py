"""What a correction is to be compared with: doing something simpler at the same tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from chainwright._config import Config
from chainwright._registry import register
from chainwright.edits import Head
from chainwright.models.anatomy import Anatomy
from chainwright.models.residual import unembed
from chainwright.repair.base import Origin
from chainwright.repair.tcr._parts import part_tensors
from chainwright.repair.tcr.detector import GoldDetector, detector_settings, restore_detector
from chainwright.repair.tcr.token_repair import CorrectingRepair, Detector, Seen, Without


class _Settings(Config):
    layers: tuple[int, ...] = Field(description="The layers that the detector reads.")
    lens_layers: tuple[int, ...] = Field(default=(), description="The layers that it reads through the logit lens.")
    end_ids: tuple[int, ...] = Field(description="Tokens that end a response.")
    detector: dict[str, Any] = Field(description="The detector's kind and settings.")


class _DoLaSettings(Config):
    n_layers: int = Field(ge=1, description="Layers of the model.")
    layers: tuple[int, ...] = Field(description="Earlier layers to choose from.")
    relative_top: float = Field(description="Tokens below this share of the best probability are ruled out.")
    repetition_penalty: float = Field(description="What logits of repeated tokens are divided by.")
    end_ids: tuple[int, ...] = Field(description="Tokens that end a response.")


@register("repair", "remove-and-resample")
class RemoveAndResample(CorrectingRepair):
    """At a flagged token, drops the token that the model would have taken: greedy decoding takes its second choice.

    Source: TCR (arXiv 2601.21214), section 5, as a baseline.
    """

    kind = "remove-and-resample"
    schema = _Settings
    remedy = "make one with a detector that was fitted for this model (chainwright fit tcr)"

    def __init__(
        self,
        detector: Detector,
        *,
        layers: Sequence[int] = (),
        lens_layers: Sequence[int] = (),
        end_ids: Sequence[int] = (),
        origin: Origin | None = None,
    ):
        super().__init__(origin)
        self.detector = detector
        self.layers = tuple(layers)
        self.lens_layers = tuple(lens_layers)
        self.end_ids = tuple(end_ids)

    def corrected(self, parts: Anatomy, seen: Seen, without: Without) -> Tensor:
        """Return the logits without the likeliest token."""
        return seen.logits.scatter(-1, seen.logits.argmax(-1, keepdim=True), float("-inf"))

    def describe(self) -> str:
        """Return what the repair does."""
        return "Takes the model's second choice at flagged tokens: a baseline."

    def settings(self) -> dict[str, Any]:
        """Return the detector's settings and what it reads."""
        return {
            "layers": list(self.layers),
            **({"lens_layers": list(self.lens_layers)} if self.lens_layers else {}),
            "end_ids": list(self.end_ids),
            "detector": detector_settings(self.detector),
        }

    def tensors(self) -> dict[str, Tensor]:
        """Return the detector's tensors."""
        return {f"detector.{key}": value for key, value in part_tensors(self.detector).items()}

    @classmethod
    def restore(cls, settings: Mapping[str, Any], tensors: Mapping[str, Tensor], origin: Origin) -> RemoveAndResample:
        """Return the repair that `settings` and `tensors` describe."""
        kept = {name.removeprefix("detector."): value for name, value in tensors.items()}
        detector = restore_detector(settings["detector"], kept)
        return cls(
            detector,
            layers=settings["layers"],
            lens_layers=settings.get("lens_layers", ()),
            end_ids=settings["end_ids"],
            origin=origin,
        )


class BestHead(CorrectingRepair):
    """At a gold-flagged token, takes the right token if any candidate head, silenced alone, would give it.

    An upper bound on every selector for these heads; for studies only, since it knows the answer.
    """

    kind = "best-head"

    def __init__(self, heads: Sequence[Head], gold: GoldDetector, *, end_ids: Sequence[int] = ()):
        super().__init__()
        self.heads = list(heads)
        self.detector = self.gold = gold
        self.end_ids = tuple(end_ids)

    def corrected(self, parts: Anatomy, seen: Seen, without: Without) -> Tensor:
        """Return the logits of the first head that gives the right token, or of the first head."""
        due = self.gold.right_ids(seen)
        n, k = len(seen.logits), len(self.heads)
        found = without([(row, head) for row in range(n) for head in self.heads]).view(n, k, -1)
        chosen = []
        for row, votes in enumerate(found.argmax(-1).tolist()):
            chosen.append(votes.index(due[row]) if due[row] in votes else 0)
        return found[torch.arange(n), chosen]

    def describe(self) -> str:
        """Return what the repair does."""
        return "Chooses the head by the right answer: an upper bound."


class _EveryToken:
    """Flags every token."""

    min_entropy = -1.0
    reads_hidden = True

    def flags(self, seen: Seen) -> Tensor:
        return torch.ones(len(seen.logits), dtype=torch.bool)


@register("repair", "dola")
class DoLa(CorrectingRepair):
    """Contrasts the last layer with the earlier layer that disagrees most with it, at every token.

    Transformers offers DoLa only as code fetched from the Hub, so this is the method implemented from its paper, as
    a change of the logits.

    Attributes:
        layers: Earlier layers to choose from; by default the lower half, as in `dola_layers="low"`.
        relative_top: Tokens below this share of the best probability are ruled out.
        repetition_penalty: What logits of tokens that stand in the context are divided by, or multiplied by where they
            are negative. The DoLa paper asks for 1.2 on long answers; 1 leaves them.

    Source: DoLa (arXiv 2309.03883), equations 1 to 6: Jensen-Shannon divergence, adaptive plausibility 0.1. Departure:
    the final norm is applied before the unembedding of earlier layers.
    """

    kind = "dola"
    schema = _DoLaSettings
    remedy = "make one for this model's number of layers (DoLa)"

    def __init__(
        self,
        n_layers: int,
        *,
        layers: Sequence[int] | None = None,
        relative_top: float = 0.1,
        repetition_penalty: float = 1.0,
        end_ids: Sequence[int] = (),
        origin: Origin | None = None,
    ):
        super().__init__(origin)
        self.n_layers = n_layers
        self.detector = _EveryToken()
        self.layers = tuple(range(max(1, n_layers // 2)) if layers is None else layers)
        self.relative_top = relative_top
        self.repetition_penalty = repetition_penalty
        self.end_ids = tuple(end_ids)

    def corrected(self, parts: Anatomy, seen: Seen, without: Without) -> Tensor:
        """Return the contrasted logits."""
        n, n_read, d_model = seen.hidden.shape
        early = unembed(parts, parts.final_norm(seen.hidden.reshape(-1, d_model).to(parts.model.dtype)))
        early = early.view(n, n_read, -1).log_softmax(-1)
        last = seen.logits.log_softmax(-1)
        chosen = _divergence(last[:, None], early).argmax(-1)
        out = last - early[torch.arange(n), chosen]
        floor = last.max(-1, keepdim=True).values + torch.tensor(self.relative_top).log()
        return self._penalised(out.masked_fill(last < floor, float("-inf")), seen)

    def _penalised(self, logits: Tensor, seen: Seen) -> Tensor:
        if self.repetition_penalty == 1:
            return logits
        for row, ids in enumerate(seen.contexts):
            at = torch.tensor(sorted(set(ids)), device=logits.device)
            there = logits[row, at]
            logits[row, at] = torch.where(there < 0, there * self.repetition_penalty, there / self.repetition_penalty)
        return logits

    def describe(self) -> str:
        """Return what the repair does."""
        return "Contrasts the last layer with an earlier one at every token (DoLa, arXiv 2309.03883): a baseline."

    def settings(self) -> dict[str, Any]:
        """Return the layers and numbers that make it."""
        return {
            "n_layers": self.n_layers,
            "layers": list(self.layers),
            "relative_top": self.relative_top,
            "repetition_penalty": self.repetition_penalty,
            "end_ids": list(self.end_ids),
        }

    @classmethod
    def restore(cls, settings: Mapping[str, Any], tensors: Mapping[str, Tensor], origin: Origin) -> DoLa:
        """Return the repair that `settings` describe."""
        return cls(**settings, origin=origin)


def _divergence(last: Tensor, early: Tensor) -> Tensor:
    """Return the Jensen-Shannon divergence of log-probabilities over the last dimension."""
    middle = (last.exp() + early.exp()).div(2).log()
    return ((last.exp() * (last - middle)).sum(-1) + (early.exp() * (early - middle)).sum(-1)) / 2
