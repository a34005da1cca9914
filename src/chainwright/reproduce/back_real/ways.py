"""The ways of answering that the study compares: back attention, and what explains its gain away."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from chainwright.diagnose.heads._sweep.half_products import can_halve
from chainwright.edits import AttendBack, BackHead, edit
from chainwright.edits.back_attention import Positions
from chainwright.models.anatomy import anatomy
from chainwright.repair.back_attention.repair import BackAttention
from chainwright.repair.back_attention.training import AnswerTraining, train
from chainwright.reproduce.back_attention.low_rank import low_rank, trained_parameters
from chainwright.reproduce.back_real.config import ReproduceBackRealConfig
from chainwright.tasks import Problem

ALONE, MAIN, CONTROL, TWICE = "model alone", "back attention", "LoRA of equal size", "layers twice, no parameters"
OWN, FIRST_HOP = "own position only", "first hop only"
_FIRST_HOP_WORD = " located"  # ends the first hop of every two-hop question, "the country where X is located"
_LORA_RATE = 0.5  # of the module's: at equal rates low-rank updates of a pretrained model diverge


class Way(NamedTuple):
    """One way: a source layer and what may be read, low-rank updates, or the same layers run twice."""

    source: int | None = None
    positions: Positions = None
    reads_first_hop: bool = False
    is_low_rank: bool = False
    is_twice: bool = False


def ways(config: ReproduceBackRealConfig) -> Mapping[str, Way]:
    """Return the ways of a study by name, in the order in which they are measured."""
    found = {
        ALONE: Way(),
        MAIN: Way(config.source),
        CONTROL: Way(is_low_rank=True),
        TWICE: Way(config.source, is_twice=True),
    }
    if config.kind == "facts":
        found |= {FIRST_HOP: Way(config.source, reads_first_hop=True), OWN: Way(config.source, positions="own")}
    return found | {f"source {s}": Way(s) for s in config.sweep}


@dataclass(frozen=True)
class Answering:
    """What answers: a model, with a repair or an edit attached.

    Attributes:
        model: The model, or its copy with low-rank updates.
        repair: Back attention, or None.
        head: The parameter-free head that runs the layers again, or None.
    """

    model: PreTrainedModel
    repair: BackAttention | None = None
    head: BackHead | None = None
    n_parameters: int = 0

    @contextmanager
    def attached(self) -> Iterator[PreTrainedModel]:
        """Yield the model, ready to be asked."""
        if self.repair is not None:
            with self.repair.attached(self.model):
                yield self.model
        elif self.head is not None:
            with edit(self.model, AttendBack([self.head], positions="own")):
                yield self.model
        else:
            yield self.model


def answering(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    way: Way,
    problems: Sequence[Problem],
    config: ReproduceBackRealConfig,
    seed: int,
) -> Answering:
    """Return what answers in one way, trained on the problems where it has parameters.

    Of more problems than the training draws the first are taken, as many as it draws.
    """
    problems = problems[: config.n_steps * config.batch_size]
    training = AnswerTraining(
        n_steps=config.n_steps, batch_size=config.batch_size, lr=config.lr, seed=seed, first_hop_weight=0.0,
        n_warmup=max(1, config.n_steps // 10), is_kept=True,
    )  # fmt: skip
    if way.is_low_rank:
        return _low_rank(model, tokenizer, problems, config, training)
    if way.source is None:
        return Answering(model)
    if way.is_twice:
        return Answering(model, head=Again(anatomy(model).d_model, way.source, anatomy(model).n_layers))
    tokens = tokenizer(_FIRST_HOP_WORD, add_special_tokens=False)["input_ids"] if way.reads_first_hop else None
    n_layers = anatomy(model).n_layers
    targets = read_depths(n_layers, way.source, config.every)
    repair = BackAttention.fit(
        model, tokenizer, problems, source=way.source, targets=targets, d_back=config.d_back, positions=way.positions,
        tokens=tokens, start=config.start, training=training, progress=False,
    )  # fmt: skip
    return Answering(model, repair, n_parameters=repair.n_parameters)


def read_depths(n_layers: int, source: int, every: int) -> tuple[int, ...]:
    """Return every few depths from the last layer's output down to above the source."""
    return tuple(range(n_layers, source, -every))[::-1]


def _low_rank(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    problems: Sequence[Problem],
    config: ReproduceBackRealConfig,
    training: AnswerTraining,
) -> Answering:
    parts = anatomy(model)
    adapted = low_rank(parts.model, 4 * parts.d_model * config.d_back, training.seed)
    trained = trained_parameters(adapted)
    settings = training.replace(lr=_LORA_RATE * config.lr, is_kept=False)
    with torch.autocast(parts.device.type, torch.bfloat16, enabled=can_halve(parts)):
        train(adapted, tokenizer, trained, problems, settings)
    merged: PreTrainedModel = adapted.merge_and_unload()
    return Answering(merged.eval(), n_parameters=sum(p.numel() for p in trained))


class Again(BackHead):
    """Lets the layers from the source on run again on what the last one returned, without parameters."""

    def __init__(self, d_model: int, source: int, n_layers: int):
        super().__init__(d_model, source, (n_layers,), 1)
        self.requires_grad_(False)
        self.given: Tensor | None = None

    def keys_values(self, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Return equal keys, and what is read as it is."""
        return targets[..., :1] * 0, targets

    def pattern(self, source: Tensor, keys: Tensor, visible: Tensor) -> Tensor:
        """Return one at each query's own position, the only one that it may read."""
        self.given = source
        return visible[:, :, None, :].to(source)

    def read(self, pattern: Tensor, values: Tensor) -> Tensor:
        """Return what takes the place of the source's input, less that input."""
        assert self.given is not None
        own: Tensor = torch.einsum("nqtk,ntkd->nqd", pattern, values)
        return own - self.given


__all__ = [
    "ALONE", "CONTROL", "FIRST_HOP", "MAIN", "OWN", "TWICE", "Answering", "Way", "answering", "read_depths", "ways",
]  # fmt: skip
