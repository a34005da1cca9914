"""Test-time correction of reasoning: at a doubtful token, silence one of a few erroneous heads and read again.

1. The detector flags a token before it is chosen.
2. The selector ranks the candidate heads. If it ranks 'silence nothing' first, the token stays as it is.
3. Each of the best-ranked heads is silenced alone, and the next token is read each time.
4. The tokens are voted on: a majority wins; without one, the token with the highest mean probability.

The flagged logits are replaced by the mean distribution of the heads that voted for the winner: greedy decoding then
takes the winner, and sampling draws from what those heads would have said.

With `decision="verify"` steps 2 to 4 are others: every candidate head is silenced alone, and a small network reads what
that does to the model's first and second choice, and says which of the two it is (`verifier`).

Source: TCR (arXiv 2601.21214), section 4. Departures: the selector may abstain; what sampling draws from and the
verifier are ours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from chainwright._config import Config
from chainwright._errors import BadInput, unknown_name
from chainwright._registry import register
from chainwright.edits import Head
from chainwright.models.anatomy import Anatomy, anatomy
from chainwright.repair.base import Origin
from chainwright.repair.tcr._mlp import Perceptron
from chainwright.repair.tcr._parts import part_tensors
from chainwright.repair.tcr._two_best import N_FEATURES
from chainwright.repair.tcr.config import FitConfig, TCRConfig
from chainwright.repair.tcr.detector import detector_settings, restore_detector
from chainwright.repair.tcr.fit import Fitted, fit_tcr
from chainwright.repair.tcr.selector import Selector, restore_selector, selector_settings
from chainwright.repair.tcr.token_repair import CorrectingRepair, Detector, Seen, Without
from chainwright.repair.tcr.verifier import Verifier
from chainwright.traces import Trace


class _Settings(Config):
    heads: tuple[tuple[int, int], ...] = Field(description="The candidate heads.")
    layers: tuple[int, ...] = Field(description="The layers that are read.")
    lens_layers: tuple[int, ...] = Field(default=(), description="The layers that are read through the logit lens.")
    end_ids: tuple[int, ...] = Field(description="Tokens that end a response.")
    config: dict[str, Any] = Field(description="How it decodes.")
    detector: dict[str, Any] = Field(description="The detector's kind and settings.")
    selector: dict[str, Any] = Field(description="The selector's kind and settings.")


@register("repair", "tcr")
class TCR(CorrectingRepair):
    """A detector, candidate heads, a selector among them, and a vote; or a verifier in place of selector and vote.

    Attributes:
        heads: The candidate heads (H in the paper).
        selector: Scores them, and last the choice to silence nothing.
        verifier: Decides where `config.decision` is "verify", else may be None.
        config: How it decodes.
    """

    kind = "tcr"
    schema = _Settings
    remedy = "fit one for this model (chainwright fit tcr)"

    def __init__(
        self,
        heads: Sequence[Head],
        selector: Selector,
        detector: Detector,
        *,
        config: TCRConfig | None = None,
        layers: Sequence[int] = (),
        lens_layers: Sequence[int] = (),
        end_ids: Sequence[int] = (),
        origin: Origin | None = None,
        verifier: Verifier | None = None,
    ):
        super().__init__(origin)
        if not heads:
            raise BadInput("TCR needs at least one candidate head; the list of heads is empty.")
        self.heads: list[Head] = [(int(layer), int(head)) for layer, head in heads]
        self.selector = selector
        self.detector = detector
        self.config = config or TCRConfig()
        self.verifier = verifier
        self.layers = tuple(layers)
        self.lens_layers = tuple(lens_layers)
        self.end_ids = tuple(end_ids)
        self.positions = self.config.positions
        self.scale = self.config.scale
        self.max_bytes = self.config.max_bytes
        if self.config.decision == "verify" and verifier is None:
            raise BadInput("decision='verify' needs a verifier, and none was given; fit one, or decide by 'vote'.")
        if not self.layers and (verifier is not None or selector.reads_hidden or detector.reads_hidden):
            raise BadInput("This selector or detector reads hidden states, but no layers were given to read them from.")

    @classmethod
    def fit(
        cls,
        model: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        traces: Sequence[Trace],
        *,
        config: FitConfig | None = None,
    ) -> TCR:
        """Return a TCR fitted on traces of a model; `fit_tcr` also returns what it measured.

        Args:
            model: A Transformers decoder.
            tokenizer: Its tokenizer.
            traces: Its greedy traces of problems, right and wrong ones.
            config: How to fit.

        Raises:
            BadInput: The traces hold no error or no right token, or have no problems.
        """
        return cls.from_fit(fit_tcr(model, tokenizer, traces, config=config))

    @classmethod
    def from_fit(cls, fitted: Fitted) -> TCR:
        """Return the repair made of what `fit_tcr` fitted, bound to the model that it was fitted on."""
        return cls(
            fitted.heads,
            fitted.selector,
            fitted.detector,
            config=fitted.config,
            layers=fitted.layers,
            lens_layers=fitted.lens_layers,
            end_ids=fitted.end_ids,
            origin=fitted.origin,
            verifier=fitted.verifier,
        )

    def corrected(self, parts: Anatomy, seen: Seen, without: Without) -> Tensor:
        """Return the logits that the verifier makes, or the vote, which leaves rows where the selector abstains."""
        if self.config.decision == "verify":
            assert self.verifier is not None
            asked = [(row, head) for row in range(len(seen.logits)) for head in self.heads]
            return self.verifier.logits(seen, without(asked).view(len(seen.logits), len(self.heads), -1))
        scores = self.selector.scores(seen).cpu()
        acts = (scores.argmax(-1) < len(self.heads)).nonzero()[:, 0].tolist()
        new = seen.logits.clone()
        if not acts:
            return new
        n_votes = min(self.config.n_votes, len(self.heads))
        chosen = scores[acts, : len(self.heads)].topk(n_votes, dim=-1).indices.tolist()
        found = without([(row, self.heads[k]) for row, ks in zip(acts, chosen, strict=True) for k in ks])
        new[acts] = vote(found.view(len(acts), n_votes, -1)).to(new)
        return new

    def describe(self) -> str:
        """Return what the repair does."""
        named = ", ".join(f"L{layer}H{head}" for layer, head in self.heads)
        detector, selector = detector_settings(self.detector), selector_settings(self.selector)
        flagged = f"Test-time correction (arXiv 2601.21214): tokens flagged by the detector ({_plain(detector)}) are"
        silenced = f"({named}), each silenced alone at {self.config.positions} positions"
        if self.config.decision == "verify":
            return (
                f"{flagged} decided between the model's first and second choice, by a verifier that reads both without "
                f"each of {len(self.heads)} heads {silenced}. config.decision='vote' takes the paper's vote instead, "
                f"here of {min(self.config.n_votes, len(self.heads))}, chosen by the selector ({_plain(selector)})."
            )
        return (
            f"{flagged} decided by a vote of {min(self.config.n_votes, len(self.heads))} of {len(self.heads)} heads "
            f"{silenced}, chosen by the selector ({_plain(selector)})."
        )

    def settings(self) -> dict[str, Any]:
        """Return heads, layers, end tokens, detector, selector and how it decodes."""
        return {
            "heads": [list(head) for head in self.heads],
            "layers": list(self.layers),
            **({"lens_layers": list(self.lens_layers)} if self.lens_layers else {}),
            "end_ids": list(self.end_ids),
            "config": self.config.record(),
            "detector": detector_settings(self.detector),
            "selector": selector_settings(self.selector),
        }

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors of detector, selector and verifier."""
        out: dict[str, Tensor] = {}
        for name in ("detector", "selector", "verifier"):
            part = getattr(self, name)
            out |= {f"{name}.{key}": value for key, value in part_tensors(part).items()}
        return out

    @classmethod
    def restore(cls, settings: Mapping[str, Any], tensors: Mapping[str, Tensor], origin: Origin) -> TCR:
        """Return the repair that `settings` and `tensors` describe."""
        network = _of(tensors, "verifier.")
        made = cls(
            [(layer, head) for layer, head in settings["heads"]],
            restore_selector(settings["selector"], _of(tensors, "selector.")),
            restore_detector(settings["detector"], _of(tensors, "detector.")),
            config=_decoding(settings["config"]),
            layers=settings["layers"],
            lens_layers=settings.get("lens_layers", ()),
            end_ids=settings["end_ids"],
            origin=origin,
            verifier=Verifier(Perceptron.restore(network)) if network else None,
        )
        made._check_widths(set())
        return made

    def check_model(self, model: nn.Module) -> None:
        """Raise BadInput if the repair was made for another model, or reads or silences what this one does not have."""
        super().check_model(model)
        parts = anatomy(model)
        if outside := [head for head in self.heads if head[0] >= parts.n_layers or head[1] >= parts.n_heads]:
            raise BadInput(
                f"The repair silences head {outside[0]}, and the model has {parts.n_layers} layers of {parts.n_heads} "
                f"heads (counted from 0); {self.remedy}."
            )
        self._check_widths({float(parts.d_model)})

    def _check_widths(self, d_models: set[float]) -> None:
        """Raise BadInput if a network does not fit the heads, the layers, or the model or another network."""
        k, n_doubt = len(self.heads), 4 + N_FEATURES * len(self.lens_layers)
        parts = (("detector", n_doubt, 1), ("selector", 0, k + 1), ("verifier", n_doubt + 3 * k, 1))
        for name, n_beside, n_out in parts:
            network = getattr(getattr(self, name), "network", None)
            if not isinstance(network, Perceptron):
                continue
            n_read = len(network.mean) - n_beside
            d_models.add(n_read / max(1, len(self.layers)))
            if network.last.out_features != n_out or n_read % max(1, len(self.layers)) or len(d_models) > 1:
                raise BadInput(
                    f"The repair is damaged: its {name} does not fit {k} heads and {len(self.layers)} layers; save or "
                    "fetch it again."
                )


def _decoding(saved: Mapping[str, Any]) -> TCRConfig:
    if others := [name for name in saved if name not in TCRConfig.model_fields]:
        raise unknown_name("setting of TCR", others[0], TCRConfig.model_fields)
    return TCRConfig(**saved)


def _of(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _plain(settings: Mapping[str, Any]) -> str:
    kept = {k: v for k, v in settings.items() if k in ("kind", "tau", "threshold", "min_entropy", "base", "seed")}
    return ", ".join(str(v) if k == "kind" else f"{k} {v}" for k, v in kept.items())


def vote(logits: Tensor) -> Tensor:
    """Return the logits that a vote of the heads' next-token distributions makes.

    A token that more than half of the heads put first wins; without one, that of the voted tokens whose mean
    probability over all heads is highest. The result is the log of the mean distribution of the heads that voted for
    the winner, whose likeliest token is the winner.

    Args:
        logits: `[N, heads, V]`.

    Returns:
        `[N, V]`.
    """
    probs = logits.softmax(-1)
    votes = probs.argmax(-1)  # (row, head)
    n_same = (votes[:, :, None] == votes[:, None, :]).sum(-1)
    mean_probs = probs.mean(1).gather(-1, votes)
    worth = torch.where(2 * n_same > logits.shape[1], mean_probs + 1, mean_probs)
    winner = votes.gather(-1, worth.argmax(-1, keepdim=True))
    voters = (votes == winner)[:, :, None]
    return ((probs * voters).sum(1) / voters.sum(1)).log()
