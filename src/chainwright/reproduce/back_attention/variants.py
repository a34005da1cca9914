"""The variants of back attention that the study fits beside a frozen model, and what the fitted module reads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from chainwright.diagnose.flow.attribution import logit_flow
from chainwright.edits import AttendBack, BackHead, edit
from chainwright.edits.back_attention import Scores
from chainwright.lab.knowledge import answers
from chainwright.lab.two_hop import N_PREFIXES
from chainwright.models.anatomy import anatomy
from chainwright.repair.back_attention.repair import D_BACK, begin
from chainwright.repair.back_attention.training import AnswerTraining, train
from chainwright.reproduce.back_attention.low_rank import low_rank, trained_parameters
from chainwright.tasks.base import Problem

FIRST_RELATION = 2  # <bos> e1 r1 r2


class Variant(NamedTuple):
    """One way of repairing the model.

    Attributes:
        source: Source layers.
        targets: Which depths are read, see `depths`.
        positions: As in `AttendBack`.
        is_low_rank: Low-rank updates with as many parameters, in place of back attention.
        n_prefixes: Copies of each question behind a random word that are trained on beside it.
        start: As in `BackAttention.fit`.
        rate: Multiple of the study's learning rate: low-rank updates learn next to nothing at that of a module.
    """

    source: tuple[int, ...] = (0,)
    targets: str = "top"
    d_back: int = D_BACK
    positions: tuple[int, ...] | Literal["own"] | None = None
    first_hop_weight: float = 1.0
    is_normed: bool = True
    is_low_rank: bool = False
    n_prefixes: int = N_PREFIXES
    start: float = 0.5
    rate: float = 1.0


def variants(n_layers: int, dims: Sequence[int]) -> dict[str, Variant]:
    """Return every variant of the study, the main one first."""
    found = {"back attention": Variant(), "LoRA of equal size": Variant(is_low_rank=True, rate=5.0)}
    found |= {f"source {s}": Variant(source=(s,)) for s in range(1, n_layers)}
    found |= {f"size {d}": Variant(d_back=d) for d in dims if d != 64}
    alone = Variant(n_prefixes=0)
    first = (FIRST_RELATION,)
    found |= {
        "sources 0 and 1": Variant(source=(0, 1)),
        "input of the last layer": Variant(targets="last input"),
        "upper half": Variant(targets="upper half"),
        "whole stack": Variant(targets="stack"),
        "own position only": Variant(positions="own"),
        "no first-hop loss": Variant(first_hop_weight=0.0),
        "inputs not normed": Variant(is_normed=False),
        "started from zero": Variant(start=0.0),
        "no prefixes, first relation only": alone._replace(positions=first),
        "no prefixes": alone,
        "no prefixes, whole stack": alone._replace(targets="stack"),
        "no prefixes, stack, first relation": alone._replace(targets="stack", positions=first),
    }
    return found


def depths(targets: str, source: int, n_layers: int) -> tuple[int, ...]:
    """Return the depths that "top", "last input", "upper half" or "stack" mean for a source layer."""
    return {
        "top": (n_layers,),
        "last input": (n_layers - 1,),
        "upper half": tuple(range(n_layers // 2, n_layers + 1)),
        "stack": tuple(range(source, n_layers + 1)),
    }[targets]


@dataclass(frozen=True)
class Fitted:
    """What was fitted: heads, or low-rank updates."""

    heads: tuple[BackHead, ...] = ()
    positions: tuple[int, ...] | Literal["own"] | None = None
    low_rank: PeftModel | None = None

    @contextmanager
    def attached(self, model: nn.Module, **options: Any) -> Iterator[nn.Module]:
        """Yield what is to be asked: the model, run with the heads, or its copy with low-rank updates."""
        if self.low_rank is not None:
            yield self.low_rank
            return
        with edit(model, AttendBack(self.heads, positions=self.positions, **options)):
            yield model

    @property
    def n_parameters(self) -> int:
        """Return the number of parameters."""
        if self.low_rank is not None:
            return sum(p.numel() for p in trained_parameters(self.low_rank))
        return sum(p.numel() for head in self.heads for p in head.parameters())


def fit(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    problems: Sequence[Problem],
    variant: Variant,
    training: AnswerTraining,
) -> Fitted:
    """Fit one variant on questions that the model has not seen."""
    parts = anatomy(model)
    if variant.is_low_rank:
        n_parameters = 4 * parts.d_model * variant.d_back
        adapted = low_rank(parts.model, n_parameters, training.seed)
        train(adapted, tokenizer, trained_parameters(adapted), problems, training)
        return Fitted(low_rank=adapted)
    torch.manual_seed(training.seed)
    heads = tuple(
        BackHead(parts.d_model, s, depths(variant.targets, s, parts.n_layers), variant.d_back, variant.is_normed)
        for s in variant.source
    )
    begin(heads, model, tokenizer, problems, variant.start)
    trained = nn.ModuleList(heads)
    with edit(model, AttendBack(heads, positions=variant.positions)):
        train(model, tokenizer, trained.parameters(), problems, training)
    trained.requires_grad_(False)
    return Fitted(heads=heads, positions=variant.positions)


def readings(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, fitted: Fitted, asked: Sequence[Problem]
) -> Mapping[str, Any]:
    """Return where the module reads at the last position, as mean weight by depth and position: right against wrong."""
    seen: list[Scores] = []
    with fitted.attached(model, on_scores=seen.append):
        got = answers(model, tokenizer, asked, batch_size=len(asked))
    right = torch.tensor([a == p.answer for a, p in zip(got, asked, strict=True)])
    last = seen[0].pattern[:, -1]  # (row, target, key)
    return {
        "targets": list(seen[0].targets),
        "positions": ["<bos>", "e1", "r1", "r2"],
        "right": _mean(last[right]),
        "wrong": _mean(last[~right]),
        "n_right": int(right.sum()),
        "n_wrong": int((~right).sum()),
    }


def _mean(rows: Tensor) -> list[list[float]] | None:
    return rows.mean(0).tolist() if len(rows) else None


def conflict(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, asked: Sequence[Problem], wrong: str
) -> dict[str, Any]:
    """Return the mean log-probability of e3 less that of the usual wrong answer, by position and depth.

    Args:
        model: The model, with or without back attention attached.
        tokenizer: Its tokenizer.
        asked: Two-hop questions.
        wrong: Name of the wrong answer among a problem's facts, such as "e2".
    """
    curves, flows = [], []
    for problem in asked:
        if problem.facts[wrong] == problem.answer:
            continue
        ids = tokenizer(problem.prompt, return_tensors="pt")["input_ids"]
        token, other = tokenizer.convert_tokens_to_ids([problem.answer, problem.facts[wrong]])
        flow = logit_flow(model, ids, token, conflict_id=other, norm="frozen", n_neurons=10, n_traced=0, n_words=0)
        curves.append(flow.contrast)
        flows.append(torch.stack([flow.attention, flow.mlp, flow.between]))
    return {
        "against": wrong,
        "n": len(curves),
        "contrast": torch.stack(curves).mean(0).tolist(),
        "importance of e3": dict(
            zip(("attention", "mlp", "between"), torch.stack(flows).mean(0).tolist(), strict=True)
        ),
    }
